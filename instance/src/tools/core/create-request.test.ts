import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { rowsOf } from '../../../../simulator/src/state.ts'
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

it('creates a ticket with names resolved, and shows it as it became', async () => {
  const created = await carol.ok('create_request', {
    subject: 'VPN down for sales',
    description: 'No **tunnel** since 9:00 <b>',
    requester: 'ana.ferreira@northwind.example',
    category: 'network',
    subcategory: 'vpn',
    priority: 'HIGH',
    group: 'Network',
    technician: 'me',
    due_by: 'tomorrow 17:00',
    custom_fields: { txt_environment: 'Production' },
  })
  expect(created).toMatchObject({
    done: true,
    status: 'Open',
    priority: 'High',
    requester: 'Ana Ferreira',
    technician: 'Carol Jensen',
    group: 'Network',
    due: expect.stringMatching(/T17:00/),
    url: expect.stringContaining('/app/itdesk/ui/requests/'),
  })
  expect(created.changes).toBeUndefined()
  const ticket = await carol.ok('get_request', { request_id: created.number })
  expect(ticket.description).toContain('No **tunnel** since 9:00')
  expect(ticket).toMatchObject({ category: 'Network', subcategory: 'VPN', custom: { txt_environment: 'Production' } })
})

it('shows what it would send and sends nothing', async () => {
  const before = writes().length
  const shown = await carol.ok('create_request', { subject: 'Nothing yet', priority: 'low', dry_run: true })
  expect(shown).toMatchObject({
    dry_run: true,
    would_create: { subject: 'Nothing yet', priority: { id: expect.any(String) } },
  })
  expect(writes().length).toBe(before)
})

it('stops at a likely duplicate of the same requester, unless told otherwise', async () => {
  const first = await fresh({ subject: 'Badge reader dead' })
  const failure = await carol.fails('create_request', { subject: 'badge reader DEAD', requester: 'Ana Ferreira' })
  expect(failure).toContain(`#${first.number}`)
  await carol.ok('create_request', { subject: 'badge reader DEAD', requester: 'Ben Whitaker' })
  await carol.ok('create_request', { subject: 'badge reader DEAD', requester: 'Ana Ferreira', allow_duplicate: true })
})

it('lists all missing mandatory fields, from the template or from the site', async () => {
  desk.simulator.faults.set({ mandatoryRequestFields: ['category', 'mode'] })
  const failure = await carol.fails('create_request', { subject: 'Half a ticket' })
  expect(failure).toMatch(/category/)
  expect(failure).toMatch(/mode/)
  expect(failure).toMatch(/Next: .*list_field_options/)
})

it('refuses an unknown additional field instead of dropping it', async () => {
  const before = writes().length
  const failure = await carol.fails('create_request', { subject: 'x', custom_fields: { txt_nonsense: 1 } })
  expect(failure).toContain('txt_nonsense')
  expect(failure).toContain('txt_environment')
  expect(writes().length).toBe(before)
})

it('a ticket whose answer never comes is found by reading, and not made twice', async () => {
  desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'POST', path: '/requests' } })
  const before = writes().length
  const { number, subject } = await carol.ok('create_request', { subject: 'Lost answer' })
  expect(subject).toBe('Lost answer')
  expect(writes().length - before).toBe(1)
  desk.simulator.faults.clear()
  const { requests } = await carol.ok('search_requests', { text: 'Lost answer' })
  expect(requests.map((row: { number: string }) => row.number)).toEqual([number])
})

it('an older ticket of the same subject is not taken for the one whose answer is lost: that stays indeterminate', async () => {
  const row = { subject: 'Lost call', requester: 'Ana Ferreira' }
  const { id } = await carol.ok('create_request', row)
  const ticket = rowsOf(desk.simulator.state.portals[0]!, 'requests').find(one => one.id === id)
  Object.assign(ticket!, { created_time: Date.now() - 3_600_000 })
  desk.simulator.faults.add({ kind: 'drop', match: { method: 'POST', path: '/requests' } })
  const before = writes().length
  const failure = await carol.fails('create_request', { ...row, allow_duplicate: true })
  expect(failure).toMatch(/been made or not[\s\S]*not there yet/)
  expect(failure).toMatch(/Do not repeat it blindly/)
  expect(writes().length - before).toBeLessThanOrEqual(1)
})
