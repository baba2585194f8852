import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const writes = () => desk.simulator.log.list().filter(({ method }) => method !== 'GET' && method !== undefined)
let serial = 0
const fresh = async (more = {}) =>
  (await carol.ok('create_request', {
    subject: `Scanner ${++serial} is stuck`,
    requester: 'Ana Ferreira',
    ...more,
  })) as { id: string; number: string }

it('changes several fields in one call and tells before, asked and actual', async () => {
  const { number } = await fresh({ priority: 'Low' })
  const result = await carol.ok('update_request', {
    request_id: number,
    priority: 'high',
    group: 'network',
    technician: 'alice',
    subject: 'Scanner is stuck & hot',
    custom_fields: { num_affected_users: 12 },
  })
  expect(result.done).toBe(true)
  expect(result.changes).toEqual(
    expect.arrayContaining([
      { field: 'priority', before: 'Low', asked: 'High', actual: 'High' },
      { field: 'technician', asked: 'Alice Moreau', actual: 'Alice Moreau' },
      expect.objectContaining({ field: 'subject', actual: 'Scanner is stuck & hot' }),
      expect.objectContaining({ field: 'num_affected_users', asked: '12' }),
    ]),
  )
  expect(
    desk.simulator.log
      .list()
      .filter(({ method }) => method === 'PUT')
      .at(-1)?.input,
  ).toMatchObject({
    request: { priority: { id: expect.any(String) } },
  })
})

it('empties a field with "none"', async () => {
  const { number } = await fresh({ technician: 'me' })
  const { changes } = await carol.ok('update_request', { request_id: number, technician: 'none' })
  expect(changes).toEqual([{ field: 'technician', before: 'Carol Jensen', actual: 'empty' }])
})

it('the same call twice leaves the same state', async () => {
  const { number } = await fresh()
  const args = { request_id: number, priority: 'Medium' }
  await carol.ok('update_request', args)
  expect((await carol.ok('update_request', args)).changes).toEqual([
    { field: 'priority', asked: 'Medium', actual: 'Medium' },
  ])
})

it('takes additional fields of every type, by key or label', async () => {
  const { number } = await fresh()
  const result = await carol.ok('update_request', {
    request_id: number,
    custom_fields: {
      Environment: 'Test',
      num_affected_users: 3,
      date_last_worked: '2025-03-31 14:30',
      dt_needed_by: 'tomorrow',
      bool_remote_ok: true,
      txt_affected_tools: ['Editor'],
    },
  })
  expect(result.changes.filter((change: { note?: string }) => change.note)).toEqual([])
  const { custom } = await carol.ok('get_request', { request_id: number })
  expect(custom).toMatchObject({
    txt_environment: 'Test',
    num_affected_users: 3,
    date_last_worked: expect.stringMatching(/^2025-03-31T14:30/),
    bool_remote_ok: true,
  })
})

it('takes any other field of the form by key, but not past the checks of its own parameter', async () => {
  const { number } = await fresh()
  const result = await carol.ok('update_request', {
    request_id: number,
    custom_fields: { impact_details: 'The whole floor', scheduled_start_time: 'tomorrow 09:00', is_fcr: true },
  })
  expect(result.done).toBe(true)
  expect(result.changes.map(({ field }: { field: string }) => field)).toEqual([
    'impact_details',
    'scheduled_start_time',
    'is_fcr',
  ])
  const before = writes().length
  expect(
    await carol.fails('update_request', { request_id: number, custom_fields: { priority: 'Whatever' } }),
  ).toContain('parameter of its own')
  expect(await carol.fails('update_request', { request_id: number, custom_fields: { created_by: 'me' } })).toContain(
    'read-only',
  )
  expect(writes().length).toBe(before)
})

it('explains a locked priority and changes nothing', async () => {
  const { number } = await fresh({ priority: 'Low' })
  desk.simulator.faults.set({ priorityLocked: true })
  const failure = await carol.fails('update_request', { request_id: number, priority: 'High', subject: 'Other' })
  expect(failure).toContain('status code 4002')
  expect(failure).toContain('urgency and impact')
  expect((await carol.ok('get_request', { request_id: number })).subject).not.toBe('Other')
})

it('puts a ticket on hold until a time', async () => {
  const { number } = await fresh()
  const result = await carol.ok('update_request', {
    request_id: number,
    status: 'on hold',
    on_hold_until: '+2d',
    reason: 'waiting for a part',
  })
  expect(result.changes).toContainEqual(expect.objectContaining({ field: 'status', actual: 'On Hold' }))
  expect(await carol.fails('update_request', { request_id: number, on_hold_until: '+2d' })).toContain('status')
})

it('refuses a field it does not know, naming the one that was meant', async () => {
  const { number } = await fresh()
  expect(await carol.fails('update_request', { request_id: number, prioritty: 'High' })).toContain(
    'did you mean priority?',
  )
  expect(await carol.fails('update_request', { request_id: number })).toContain('nothing to change')
})

it('a dry run shows the change and sends nothing', async () => {
  const { number } = await fresh({ priority: 'Low' })
  const before = writes().length
  const shown = await carol.ok('update_request', { request_id: number, priority: 'High', dry_run: true })
  expect(shown.changes).toEqual([{ field: 'priority', before: 'Low', asked: 'High' }])
  expect(writes().length).toBe(before)
})
