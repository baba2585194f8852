import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
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

describe('create_request', () => {
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

  it('an answer that never comes is indeterminate, and nothing is repeated', async () => {
    desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'POST', path: '/requests' } })
    const before = writes().length
    const failure = await carol.fails('create_request', { subject: 'Lost answer' })
    expect(failure).toMatch(/may have been|was made or not|been made or not/i)
    expect(failure).toMatch(/Read the record first/)
    expect(writes().length - before).toBeLessThanOrEqual(1)
  })
})

describe('update_request', () => {
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
})

describe('add_note', () => {
  it('is private unless said otherwise, and tells what it became', async () => {
    const { number } = await fresh()
    const note = await carol.ok('add_note', { request_id: number, text: 'Checked the <cable>\n\n- fine' })
    expect(note).toMatchObject({ visibility: 'private', note_id: expect.stringMatching(/^\d+$/) })
    expect(note.mail).toBeUndefined()
    const shown = await carol.ok('add_note', { request_id: number, text: 'We are on it', visibility: 'requester' })
    expect(shown.visibility).toBe('requester')
    expect(shown.mail).toContain('depends')
  })

  it('uses the root this site takes', async () => {
    const { number } = await fresh()
    desk.simulator.faults.set({ noteRoot: 'note' })
    expect((await carol.ok('add_note', { request_id: number, text: 'x' })).visibility).toBe('private')
  })
})
