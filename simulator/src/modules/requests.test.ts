import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type ApiClient, type Desk, messageOf, startDesk } from '../testing/desk.ts'

let desk: Desk
let alice: ApiClient
let bob: ApiClient
let carol: ApiClient
beforeAll(async () => {
  desk = await startDesk()
  alice = await desk.as('alice')
  bob = await desk.as('bob')
  carol = await desk.as('carol')
})
afterEach(() => desk.sim.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const create = async (client: ApiClient, request: Record<string, unknown> = {}) => {
  const { body } = await client.post('/requests', { request: { subject: 'A ticket', ...request } })
  return body.request
}
const failureOf = (answer: Awaited<ReturnType<ApiClient['get']>>) => ({ http: answer.status, ...messageOf(answer) })

async function allIds(client: ApiClient): Promise<string[]> {
  const { body } = await client.get('/requests', { list_info: { row_count: 100, fields_required: ['id'] } })
  return body.requests.map((row: { id: string }) => row.id)
}

test('alice and bob see no ticket in common, carol sees all', async () => {
  const [hers, his, all] = await Promise.all([allIds(alice), allIds(bob), allIds(carol)])
  expect(hers.length).toBeGreaterThan(5)
  expect(his.length).toBeGreaterThan(5)
  expect(hers.filter(id => his.includes(id))).toEqual([])
  expect(all).toEqual(expect.arrayContaining([...hers, ...his]))
})

test('a ticket outside the view scope can be neither read nor changed nor noted', async () => {
  const [hers] = await allIds(alice)
  for (const answer of [
    await bob.get(`/requests/${hers}`),
    await bob.get(`/requests/${hers}/notes`),
    await bob.put(`/requests/${hers}`, { request: { subject: 'mine now' } }),
    await bob.post(`/requests/${hers}/notes`, { request_note: { description: 'x' } }),
    await bob.put(`/requests/${hers}/_pickup`),
  ])
    expect(failureOf(answer)).toMatchObject({ http: 403, status_code: 4002 })
  desk.sim.faults.set({ invisibleRecord: 404 })
  expect(failureOf(await bob.get(`/requests/${hers}`))).toMatchObject({ http: 404, status_code: 4007 })
})

test('a technician with his own view sees only what is assigned to or requested by him', async () => {
  const dave = await desk.as('dave')
  const { body } = await dave.get('/requests', { list_info: { row_count: 100 } })
  expect(body.requests.length).toBeGreaterThan(2)
  const isHis = (row: { technician?: { name: string }; requester?: { name: string } }) =>
    row.technician?.name === 'Dave Lindqvist' || row.requester?.name === 'Dave Lindqvist'
  expect(body.requests.every(isHis)).toBe(true)
})

test('a requester creates and reads her own tickets but changes nothing', async () => {
  const heidi = await desk.as('heidi')
  const { id } = await create(heidi)
  expect((await heidi.get(`/requests/${id}`)).status).toBe(200)
  expect(failureOf(await heidi.put(`/requests/${id}`, { request: { subject: 'x' } }))).toMatchObject({
    http: 403,
    status_code: 4002,
  })
  expect(failureOf(await heidi.put(`/requests/${id}/_close`))).toMatchObject({ http: 403, status_code: 4002 })
})

test('a subject is enough: the rest is filled in', async () => {
  const created = await create(alice, { subject: 'VPN down' })
  expect(created).toMatchObject({
    id: expect.stringMatching(/^\d{18}$/),
    display_id: expect.stringMatching(/^\d{1,5}$/),
    status: { name: 'Open' },
    requester: { email_id: 'alice@northwind.example' },
    created_by: { email_id: 'alice@northwind.example' },
    template: { name: 'Default Request' },
    site: { name: 'Rotterdam' },
    is_service_request: false,
  })
  expect(Number(created.created_time.value)).toBeGreaterThan(Date.now() - 60_000)
})

test('references are given by id, by name without case, or by e-mail', async () => {
  const created = await create(carol, {
    requester: { email_id: 'ana.ferreira@northwind.example' },
    priority: { name: 'high' },
    status: { id: '990000000000006664' },
    category: { name: 'Network' },
    subcategory: { name: 'vpn' },
    technician: { email_id: 'ALICE@northwind.example' },
  })
  expect(created).toMatchObject({
    requester: { name: 'Ana Ferreira', is_vip_user: true },
    priority: { name: 'High' },
    status: { name: 'In Progress' },
    subcategory: { name: 'VPN' },
    technician: { name: 'Alice Moreau' },
  })
  expect(Number(created.due_by_time.value) - Number(created.created_time.value)).toBe(8 * 3600 * 1000)
})

test.each([
  [
    'a plain text for a reference',
    { status: 'Closed' },
    { status_code: 4001, field: 'status', message: 'Unable to parse JSON for : status' },
  ],
  ['an unknown priority', { priority: { name: 'Urgentissimo' } }, { status_code: 4001, field: 'priority' }],
  [
    'an unknown requester',
    { requester: { email_id: 'nobody@nowhere.example' } },
    { status_code: 4001, field: 'requester' },
  ],
  ['a deleted site', { site: { name: 'Old Warehouse' } }, { status_code: 4001, field: 'site' }],
  ['a requester as technician', { technician: { name: 'Ana Ferreira' } }, { status_code: 4001, field: 'technician' }],
  [
    'a subcategory of another category',
    { category: { name: 'Network' }, subcategory: { name: 'Phishing' } },
    { status_code: 4001, field: 'subcategory' },
  ],
  [
    '`email` for `email_id`',
    { requester: { email: 'ana.ferreira@northwind.example' } },
    { message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'email' },
  ],
  [
    'an ISO date',
    { due_by_time: '2030-01-01T00:00:00Z' },
    { status_code: 4001, message: 'Unable to parse JSON for : due_by_time' },
  ],
  ['a word for a time', { due_by_time: { value: 'tomorrow' } }, { status_code: 4001, field: 'due_by_time' }],
  ['a word for a flag', { is_fcr: 'perhaps' }, { status_code: 4021, field: 'is_fcr' }],
  ['a read-only field', { is_overdue: true }, { status_code: 4014, field: 'is_overdue' }],
  ['an unknown field', { colour: 'red' }, { message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'colour' }],
  ['a subject of 251 characters', { subject: 'x'.repeat(251) }, { status_code: 4001, field: 'subject' }],
  ['a subject of two lines', { subject: 'a\nb' }, { status_code: 4001, field: 'subject' }],
  ['tags as texts', { tags: ['vip'] }, { message: 'EXTRA_VALUE_FOUND_IN_JSONARRAY', field: 'tags' }],
  [
    'an unknown additional field',
    { udf_fields: { txt_unknown: 'x' } },
    { message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'udf_fields.txt_unknown' },
  ],
  ['a text for a number of an additional field', { udf_fields: { num_affected_users: 'many' } }, { status_code: 4021 }],
  [
    'a start after the end',
    { scheduled_start_time: { value: 2 }, scheduled_end_time: { value: '1' } },
    { status_code: 4016 },
  ],
])('creating with %s is refused and adds nothing', async (_name, fields, expected) => {
  const before = (await allIds(carol)).length
  const answer = await carol.post('/requests', { request: { subject: 'x', ...fields } })
  expect(answer.status).toBe(400)
  expect(answer.body.response_status).toMatchObject({ status_code: 4000, status: 'failed' })
  expect(messageOf(answer)).toMatchObject(expected)
  expect((await allIds(carol)).length).toBe(before)
})

test('numbers and flags are taken as texts too', async () => {
  const created = await create(carol, {
    is_fcr: 'true',
    udf_fields: { num_affected_users: '12', bool_remote_ok: 'false' },
  })
  expect(created).toMatchObject({ is_fcr: true, udf_fields: { num_affected_users: 12, bool_remote_ok: false } })
})

test('missing mandatory fields are listed together', async () => {
  desk.sim.faults.set({ mandatoryRequestFields: ['category', 'urgency'], subcategoryWithCategory: true })
  const none = await carol.post('/requests', { request: { subject: 'x' } })
  expect([none.status, none.body]).toEqual([
    400,
    {
      response_status: {
        status_code: 4000,
        status: 'failed',
        messages: [{ status_code: 4012, type: 'failed', fields: ['category', 'urgency'] }],
      },
    },
  ])
  const some = await carol.post('/requests', {
    request: { subject: 'x', category: { name: 'Network' }, urgency: { name: 'High' } },
  })
  expect(messageOf(some).fields).toEqual(['subcategory'])
  const wrongRoot = await carol.post('/requests', { ticket: { subject: 'x' } })
  expect(messageOf(wrongRoot)).toMatchObject({ message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'ticket' })
})

test('an edit changes what was sent, null clears, the rest stays', async () => {
  const { id } = await create(carol, { priority: { name: 'Low' }, impact_details: 'one desk' })
  const edited = await carol.put(`/requests/${id}`, { request: { subject: 'Renamed', priority: null } })
  expect(edited.body.request).toMatchObject({ subject: 'Renamed', priority: null, impact_details: 'one desk' })
  const cleared = await carol.put(`/requests/${id}`, { request: { subject: null } })
  expect(messageOf(cleared)).toMatchObject({ status_code: 4012, fields: ['subject'] })
})

test('a new category clears the subcategory that no longer fits', async () => {
  const { id } = await create(carol, { category: { name: 'Network' }, subcategory: { name: 'VPN' } })
  const edited = await carol.put(`/requests/${id}`, { request: { category: { name: 'Security' } } })
  expect(edited.body.request).toMatchObject({ category: { name: 'Security' }, subcategory: null })
})

test('closing without a resolution answers 3000 in an HTTP 200 and leaves the ticket open', async () => {
  const { id } = await create(carol)
  for (const answer of [
    await carol.put(`/requests/${id}/_close`, { request: { closure_info: { closure_comments: 'done' } } }),
    await carol.put(`/requests/${id}/close`),
    await carol.put(`/requests/${id}`, { request: { status: { name: 'Closed' } } }),
  ]) {
    expect(answer.status).toBe(200)
    expect(answer.body.response_status).toMatchObject({
      status_code: 3000,
      messages: [{ type: 'warning', fields: ['resolution'] }],
    })
  }
  const { body } = await carol.get(`/requests/${id}`)
  expect(body.request).toMatchObject({ status: { name: 'Open' }, closure_info: null })
})

test('resolution first, then close: the ticket is closed with its times', async () => {
  const { id } = await create(carol)
  const resolved = await carol.put(`/requests/${id}`, { request: { resolution: { content: '<p>Replaced</p>' } } })
  expect(resolved.body.request.resolution).toMatchObject({
    content: '<p>Replaced</p>',
    submitted_by: { name: 'Carol Jensen' },
  })
  const closed = await carol.put(`/requests/${id}/_close`, {
    request: {
      closure_info: { closure_comments: 'Done', closure_code: { name: 'completed' }, requester_ack_resolution: true },
    },
  })
  expect(closed.body.response_status.messages[0].message).toBe('Request(s) closed')
  const { request } = (await carol.get(`/requests/${id}`)).body
  expect(request).toMatchObject({
    status: { name: 'Closed' },
    closure_info: { closure_code: { name: 'Completed' }, closure_comments: 'Done' },
  })
  expect(request.completed_time).not.toBeNull()

  expect(failureOf(await carol.put(`/requests/${id}`, { request: { subject: 'late' } }))).toMatchObject({
    http: 403,
    status_code: 4002,
    field: 'subject',
    message: 'Cannot give value for subject',
  })
  const reopened = await carol.put(`/requests/${id}`, { request: { status: { name: 'Open' }, subject: 'again' } })
  expect(reopened.body.request).toMatchObject({
    status: { name: 'Open' },
    is_reopened: true,
    completed_time: null,
    subject: 'again',
  })
})

test('a closure code of changes does not close a request', async () => {
  const { id } = await create(carol, { resolution: { content: 'x' } })
  const answer = await carol.put(`/requests/${id}/_close`, {
    request: { closure_info: { closure_code: { name: 'Rolled Back' } } },
  })
  expect(messageOf(answer)).toMatchObject({ status_code: 4001, field: 'closure_info.closure_code' })
})

test('resolutions are set and read by their own path', async () => {
  const { id } = await create(alice)
  await alice.post(`/requests/${id}/resolutions`, {
    resolution: { content: 'Rebooted', add_to_linked_requests: false },
  })
  const { body } = await alice.get(`/requests/${id}/resolutions`)
  expect(body.resolution).toMatchObject({ content: 'Rebooted', submitted_by: { email_id: 'alice@northwind.example' } })
})

test('picking up and assigning set technician and group', async () => {
  const { id } = await create(carol)
  const picked = await carol.put(`/requests/${id}/_pickup`)
  expect(picked.body.request.technician.name).toBe('Carol Jensen')
  const assigned = await carol.put(`/requests/${id}/_assign`, {
    request: { technician: { email_id: 'bob@northwind.example' }, group: { name: 'Desktop Support' } },
  })
  expect(assigned.body.request).toMatchObject({
    technician: { name: 'Bob Okafor' },
    group: { name: 'Desktop Support' },
  })
  expect(await allIds(bob)).toContain(id)
})

test('a locked priority is 403 and names the field', async () => {
  const { id } = await create(carol)
  desk.sim.faults.set({ priorityLocked: true })
  const answer = await carol.put(`/requests/${id}`, { request: { priority: { name: 'High' } } })
  expect(failureOf(answer)).toMatchObject({
    http: 403,
    status_code: 4002,
    field: 'priority',
    message: 'Cannot give value for priority',
  })
})

test('with the priority matrix, impact and urgency decide', async () => {
  desk.sim.faults.set({ priorityMatrix: true })
  const created = await create(carol, { impact: { name: 'Affects Business' }, urgency: { name: 'Urgent' } })
  expect(created.priority.name).toBe('High')
})

test('an on-hold comment is kept while the ticket is on hold', async () => {
  const { id } = await create(carol)
  const held = await carol.put(`/requests/${id}`, {
    request: {
      status: { name: 'On Hold' },
      onhold_scheduler: { comments: 'waiting for parts', scheduled_time: { value: String(Date.now() + 1e7) } },
    },
  })
  expect(held.body.request.onhold_scheduler).toMatchObject({
    comments: 'waiting for parts',
    held_by: { name: 'Carol Jensen' },
  })
  const resumed = await carol.put(`/requests/${id}`, { request: { status: { name: 'Open' } } })
  expect(resumed.body.request.onhold_scheduler).toBeNull()
})

test('deleting trashes first and purges from the trash', async () => {
  const { id } = await create(carol)
  expect((await carol.delete(`/requests/${id}`)).body).toEqual({
    response_status: { status_code: 2000, status: 'success' },
  })
  expect(await allIds(carol)).not.toContain(id)
  expect((await carol.get(`/requests/${id}`)).body.request.is_trashed).toBe(true)
  await carol.delete(`/requests/${id}`)
  expect((await carol.get(`/requests/${id}`)).status).toBe(404)
})

test('a technician without the right to delete is refused', async () => {
  const dave = await desk.as('dave')
  const { id } = await create(dave)
  expect(failureOf(await dave.delete(`/requests/${id}`))).toMatchObject({ http: 403, status_code: 4002 })
})

test('notes are written under request_note and read as note and notes', async () => {
  const { id } = await create(alice)
  const added = await alice.post(`/requests/${id}/notes`, {
    request_note: { description: '<p>checked</p>', show_to_requester: false, mark_first_response: true },
  })
  expect(added.body.request_note).toMatchObject({
    description: '<p>checked</p>',
    show_to_requester: false,
    created_by: { email_id: 'alice@northwind.example' },
  })
  const noteId = added.body.request_note.id
  expect((await alice.get(`/requests/${id}/notes/${noteId}`)).body.note.id).toBe(noteId)
  expect((await alice.get(`/requests/${id}/notes`)).body.notes).toHaveLength(1)
  expect((await alice.get(`/requests/${id}`)).body.request).toMatchObject({
    has_notes: true,
    responded_time: { value: expect.any(String) },
  })

  const again = await alice.post(`/requests/${id}/notes`, {
    request_note: { description: 'x', mark_first_response: true },
  })
  expect(messageOf(again)).toMatchObject({ status_code: 4002, field: 'mark_first_response' })
  const wrongRoot = await alice.post(`/requests/${id}/notes`, { note: { description: 'x' } })
  expect(messageOf(wrongRoot)).toMatchObject({ message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'note' })
  const empty = await alice.post(`/requests/${id}/notes`, { request_note: { show_to_requester: true } })
  expect(messageOf(empty)).toMatchObject({ status_code: 4012, fields: ['description'] })

  const edited = await alice.put(`/requests/${id}/notes/${noteId}`, { request_note: { description: 'better' } })
  expect(edited.body.request_note).toMatchObject({
    description: 'better',
    last_updated_by: { email_id: 'alice@northwind.example' },
  })
  await alice.delete(`/requests/${id}/notes/${noteId}`)
  expect((await alice.get(`/requests/${id}/notes`)).body.notes).toEqual([])
})

test('a note of another ticket is not found under this one', async () => {
  const [first, second] = [await create(alice), await create(alice)]
  const added = await alice.post(`/requests/${first.id}/notes`, { request_note: { description: 'x' } })
  expect((await alice.get(`/requests/${second.id}/notes/${added.body.request_note.id}`)).status).toBe(404)
})

test('the requester sees only public notes', async () => {
  const heidi = await desk.as('heidi')
  const { id } = await create(heidi)
  await carol.post(`/requests/${id}/notes`, { request_note: { description: 'secret' } })
  await carol.post(`/requests/${id}/notes`, { request_note: { description: 'public', show_to_requester: 'true' } })
  const { body } = await heidi.get(`/requests/${id}/notes`)
  expect(body.notes.map((note: { description: string }) => note.description)).toEqual(['public'])
})

test('a wrong requester is created where the site does so', async () => {
  desk.sim.faults.set({ unknownRequester: 'create' })
  const created = await create(carol, { requester: { email_id: 'new.person@northwind.example' } })
  expect(created.requester).toMatchObject({ email_id: 'new.person@northwind.example', is_technician: false })
})
