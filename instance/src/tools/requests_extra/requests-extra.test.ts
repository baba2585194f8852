import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'
import { confirmed, writesOf } from '../../testing/support.ts'

let desk: Desk
let carol: Session
let number: string
let other: string
let serial = 0
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
beforeEach(async () => {
  const create = async (requester: string) =>
    (await carol.ok('create_request', { subject: `Extra scanner ${++serial}`, requester })).number as string
  number = await create('Ana Ferreira')
  other = await create('Ben Whitaker')
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

it('similar tickets share words, the most alike first, with how they were solved', async () => {
  const { requests, words } = await carol.ok('find_similar_requests', { request_id: '12' })
  expect(words.length).toBeGreaterThan(0)
  for (const row of requests) expect(words.some((word: string) => row.subject.toLowerCase().includes(word))).toBe(true)
  expect(requests.some((row: { number: string }) => row.number === '12')).toBe(false)
  const { requests: solved } = await carol.ok('find_similar_requests', { request_id: '12', solved: true })
  if (Array.isArray(solved)) for (const row of solved) expect(['Closed', 'Resolved', 'Cancelled']).toContain(row.status)
})

it('linking twice is one link, and unlinking removes it', async () => {
  for (let round = 0; round < 2; round++) {
    expect(
      (await carol.ok('link_requests', { request_id: number, others: [other], comments: 'same cause' })).done,
    ).toBe(true)
  }
  const { linked } = await carol.ok('get_request', { request_id: number, include: ['linked'] })
  expect(linked).toEqual([expect.objectContaining({ number: other, comments: 'same cause' })])
  expect(await carol.ok('link_requests', { request_id: number, others: [other], remove: true })).toMatchObject({
    done: true,
    linked: 'none',
  })
  expect(await carol.fails('link_requests', { request_id: number, others: [number] })).toContain('itself')
})

it('asking for approval mails only after consent, and shows who is asked', async () => {
  const before = writesOf(desk).length
  await carol.ok('request_approval', { request_id: number, approvers: ['alice'] })
  expect(writesOf(desk).length).toBe(before)
  const asked = await confirmed(carol, 'request_approval', {
    request_id: number,
    approvers: ['alice', 'bob'],
    message: 'Please',
  })
  expect(asked).toMatchObject({ done: true, level: 1, approvers: ['Alice Moreau', 'Bob Okafor'], mail: 'sent' })
  const { approvals } = await carol.ok('get_request_approvals', { request_id: number })
  expect(approvals.map(({ approver, status }: { approver: string; status: string }) => [approver, status])).toEqual([
    ['Alice Moreau', 'Pending Approval'],
    ['Bob Okafor', 'Pending Approval'],
  ])
  expect((await confirmed(carol, 'request_approval', { request_id: number, approvers: ['bob'] })).level).toBe(2)
})

it('does not claim a mail that the site refused', async () => {
  desk.simulator.faults.add({ kind: 'status', status: 403, match: { method: 'PUT', path: '/requests' } })
  const { mail } = await confirmed(carol, 'request_approval', { request_id: number, approvers: ['alice'] })
  expect(mail).toContain('Do not say that a mail was sent')
})

it('a note is changed and read back', async () => {
  const { note_id } = await carol.ok('add_note', { request_id: number, text: 'old' })
  const edited = await carol.ok('edit_note', { request_id: number, note_id, text: 'new **text**' })
  expect(edited).toMatchObject({ done: true, visibility: 'private' })
  expect((await carol.ok('edit_note', { request_id: number, note_id, visibility: 'requester' })).visibility).toBe(
    'requester',
  )
  const { entries } = await carol.ok('get_request_activity', { request_id: number, kinds: ['notes'] })
  expect(entries[0].text).toContain('new **text**')
})

it('the last change is undone field by field, once', async () => {
  await carol.ok('update_request', {
    request_id: number,
    priority: 'Low',
    group: 'Network',
    custom_fields: { txt_environment: 'Test' },
  })
  await carol.ok('update_request', {
    request_id: number,
    subject: 'Something else',
    priority: 'High',
    technician: 'bob',
    group: 'none',
    custom_fields: { txt_environment: 'Production' },
  })
  const undone = await carol.ok('revert_change', { request_id: number })
  expect(undone.done).toBe(true)
  const ticket = await carol.ok('get_request', { request_id: number })
  expect(ticket).toMatchObject({
    subject: expect.stringContaining('Extra scanner'),
    priority: 'Low',
    group: 'Network',
    custom: { txt_environment: 'Test' },
  })
  expect(ticket.technician).toBeUndefined()
  expect(await carol.fails('revert_change', { request_id: number })).toContain('No change of this ticket is remembered')
})

describe('bulk_update_requests', () => {
  it('shows every ticket first and acts only on that very plan', async () => {
    const before = writesOf(desk).length
    const ask = { requests: [number, other, number], priority: 'High', technician: 'alice' }
    const plan = await carol.ok('bulk_update_requests', ask)
    expect(plan.tickets).toHaveLength(2)
    expect(plan.tickets[0].changes).toEqual(['priority: empty -> High', 'technician: empty -> Alice Moreau'])
    expect(writesOf(desk).length).toBe(before)
    const { plan_token } = plan
    await carol.fails('bulk_update_requests', { ...ask, dry_run: false })
    await carol.fails('bulk_update_requests', { ...ask, dry_run: false, plan_token, priority: 'Low' })
    await carol.fails('bulk_update_requests', { ...ask, requests: [number], dry_run: false, plan_token })
    expect(writesOf(desk).length).toBe(before)
    const done = await carol.ok('bulk_update_requests', { ...ask, dry_run: false, plan_token })
    expect(done).toMatchObject({ done: true, changed: 2, failed: 0 })
    await carol.fails('bulk_update_requests', { ...ask, dry_run: false, plan_token })
    expect(writesOf(desk).length).toBe(before + 2)
  })

  it('goes on after one failure, stops at a limit, and names what it did not try', async () => {
    const ask = { requests: [number, other], priority: 'High' }
    desk.simulator.faults.add({ kind: 'status', status: 403, match: { method: 'PUT' }, count: 1 })
    const { plan_token } = await carol.ok('bulk_update_requests', ask)
    expect(await carol.ok('bulk_update_requests', { ...ask, dry_run: false, plan_token })).toMatchObject({
      done: false,
      changed: 1,
      failed: 1,
    })
    const second = await carol.ok('bulk_update_requests', { ...ask, priority: 'Low' })
    desk.simulator.faults.add({ kind: 'rate-limit', status: 429, retryAfterSeconds: 300, match: { method: 'PUT' } })
    const stopped = await carol.ok('bulk_update_requests', {
      ...ask,
      priority: 'Low',
      dry_run: false,
      plan_token: second.plan_token,
    })
    expect(stopped).toMatchObject({ done: false, changed: 0, failed: 1, not_tried: [expect.any(String)] })
  })

  it('takes at most 25 tickets', async () => {
    const requests = Array.from({ length: 26 }, (_, index) => String(index + 1))
    expect(await carol.fails('bulk_update_requests', { requests, priority: 'High' })).toMatch(/requests:.*25/)
  })

  it('tells how far it is', async () => {
    const steps: string[] = []
    await carol.client.callTool(
      { name: 'bulk_update_requests', arguments: { requests: [number, other], priority: 'High' } },
      undefined,
      {
        onprogress: ({ progress, total, message }) => steps.push(`${progress}/${total} ${message}`),
      },
    )
    expect(steps).toEqual(['2/2 tickets read'])
  })
})
