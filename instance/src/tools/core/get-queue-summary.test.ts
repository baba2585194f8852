import { afterAll, beforeAll, expect, it } from 'vitest'
import { insert, nextDisplayId, nextId, rowsOf } from '../../../../simulator/src/state.ts'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterAll(() => desk[Symbol.asyncDispose]())

const sum = (counts: Record<string, number>) => Object.values(counts).reduce((total, one) => total + one, 0)

const searches = () => desk.simulator.log.list().filter(({ path }) => path.endsWith('/requests'))

it.each(['mine', 'my_groups', 'unassigned', 'all'])('counts of scope %s add up, from one call', async scope => {
  // knows who "me" is and their groups
  await carol.ok('get_queue_summary', { scope })
  desk.simulator.log.clear()
  const summary = await carol.ok('get_queue_summary', { scope })
  expect(summary.open).toBeGreaterThan(0)
  expect(sum(summary.by_status)).toBe(summary.open)
  expect(sum(summary.by_priority)).toBe(summary.open)
  expect(carol.calls.at(-1)?.sdpCalls).toBe(1)
  // nothing that could be read by a model: no subject, no text
  expect(searches().map(({ input }) => input)).toEqual([
    expect.objectContaining({
      list_info: expect.objectContaining({
        fields_required: ['id', 'status', 'priority', 'technician', 'due_by_time', 'responded_time'],
      }),
    }),
  ])
})

it.each([
  ['rows', 250, 3],
  ['counts', 320, 20],
])('a queue counted by %s (%i more tickets) gives the same numbers in at most %i calls', async (_by, more, calls) => {
  const own = await startDesk()
  try {
    const [portal] = own.simulator.state.portals
    const isOpen = (id: unknown) => rowsOf(portal!, 'statuses').find(row => row.id === id)?.in_progress === true
    const model = rowsOf(portal!, 'requests').find(ticket => isOpen(ticket.status) && ticket.priority)
    for (let index = 0; index < more; index++) {
      const due = index % 3 === 0 ? Date.now() - 86_400_000 : null
      const copy = { ...model, id: nextId(portal!), display_id: nextDisplayId(portal!, 'requests'), due_by_time: due }
      insert(portal!, 'requests', index % 2 === 0 ? copy : { ...copy, technician: null, responded_time: null })
    }
    const session = await own.connect(await own.context('carol'))
    await session.ok('get_queue_summary', { scope: 'all' })
    const summary = await session.ok('get_queue_summary', { scope: 'all' })
    expect(session.calls.at(-1)?.sdpCalls).toBeLessThanOrEqual(calls)
    const count = async (args: Record<string, unknown>) =>
      (await session.ok('search_requests', { ...args, limit: 1, total: true })).total
    const inProgress = [{ field: 'status.in_progress', condition: 'is', value: true }]
    expect(summary).toMatchObject({
      open: await count({ criteria: inProgress }),
      overdue: await count({ view: 'overdue' }),
      due_today: await count({ view: 'due_today' }),
      unassigned: await count({ view: 'unassigned' }),
      without_first_response: await count({
        criteria: [...inProgress, { field: 'responded_time', condition: 'is', logical_operator: 'AND' }],
      }),
    })
    expect(sum(summary.by_status)).toBe(summary.open)
  } finally {
    await own[Symbol.asyncDispose]()
  }
})

it('counts one by one where the site does not give the fields', async () => {
  const whole = await carol.ok('get_queue_summary', { scope: 'all' })
  desk.simulator.faults.add({ kind: 'status', status: 400, match: { path: '/requests', method: 'GET' }, count: 1 })
  const counted = await carol.ok('get_queue_summary', { scope: 'all' })
  desk.simulator.faults.clear()
  expect(counted).toEqual(whole)
})

it('agrees with the search', async () => {
  const { open, overdue } = await carol.ok('get_queue_summary', { scope: 'all' })
  expect((await carol.ok('search_requests', { view: 'overdue', total: true })).total).toBe(overdue)
  const group = await carol.ok('get_queue_summary', { scope: 'all', group: 'network' })
  expect(group.open).toBeLessThan(open)
})

it('an empty queue is a zero, not an error', async () => {
  const alice = await desk.connect(await desk.context('alice'))
  expect(
    (await alice.ok('get_queue_summary', { scope: 'all', group: 'payroll' }).catch(() => ({ open: 0 }))).open,
  ).toBe(0)
})
