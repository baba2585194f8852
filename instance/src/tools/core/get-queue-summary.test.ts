import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterAll(() => desk[Symbol.asyncDispose]())

const sum = (counts: Record<string, number>) => Object.values(counts).reduce((total, one) => total + one, 0)

it.each(['mine', 'my_groups', 'unassigned', 'all'])(
  'counts of scope %s add up, without a row being read',
  async scope => {
    desk.simulator.log.clear()
    const summary = await carol.ok('get_queue_summary', { scope })
    expect(summary.open).toBeGreaterThan(0)
    expect(sum(summary.by_status)).toBe(summary.open)
    expect(sum(summary.by_priority)).toBe(summary.open)
    const searches = desk.simulator.log.list().filter(({ path }) => path.endsWith('/requests'))
    for (const { input } of searches) {
      expect(input).toMatchObject({ list_info: { row_count: 1, get_total_count: true, fields_required: ['id'] } })
    }
    expect(carol.calls.at(-1)?.sdpCalls).toBeLessThanOrEqual(20)
  },
)

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
