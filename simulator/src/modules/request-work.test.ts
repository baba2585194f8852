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

type Named = { id: string; name?: string; title?: string; subject?: string }

async function ticket(client: ApiClient, start: string): Promise<Named & Record<string, unknown>> {
  const { body } = await client.get('/requests', {
    list_info: { search_criteria: { field: 'subject', condition: 'starts with', value: start } },
  })
  return body.requests[0]
}
const newTicket = async (client: ApiClient, subject = 'For work') =>
  (await client.post('/requests', { request: { subject } })).body.request.id as string

test('tasks need a title, close with 100 percent, and show up in the general list', async () => {
  const id = await newTicket(alice)
  expect(messageOf(await alice.post(`/requests/${id}/tasks`, { task: { description: 'x' } }))).toMatchObject({
    status_code: 4012,
    fields: ['title'],
  })
  const added = await alice.post(`/requests/${id}/tasks`, {
    task: {
      title: 'Look at it',
      percentage_completion: '20',
      estimated_effort_hours: '2',
      scheduled_end_time: { value: String(Date.now() - 1000) },
    },
  })
  expect(added.body.task).toMatchObject({
    title: 'Look at it',
    owner: { email_id: 'alice@northwind.example' },
    percentage_completion: 20,
    overdue: true,
    request: { id },
  })
  const taskId = added.body.task.id
  const closed = await alice.put(`/requests/${id}/tasks/${taskId}`, { task: { status: { name: 'Closed' } } })
  expect(closed.body.task).toMatchObject({
    percentage_completion: 100,
    overdue: false,
    actual_end_time: { value: expect.any(String) },
  })
  expect((await alice.get(`/tasks/${taskId}`)).body.task).toMatchObject({
    module: { name: 'request' },
    request: { id },
  })
  const general = await bob.get('/tasks', { list_info: { row_count: 100 } })
  expect(general.body.tasks.map((task: Named) => task.id)).not.toContain(taskId)
  expect((await bob.get(`/tasks/${taskId}`)).status).toBe(403)
  await alice.delete(`/requests/${id}/tasks/${taskId}`)
  expect((await alice.get(`/requests/${id}/tasks`)).body.tasks).toEqual([])
})

test('a task comment answers 201', async () => {
  const id = await newTicket(alice)
  const { body } = await alice.post(`/requests/${id}/tasks`, { task: { title: 'T' } })
  const comment = await alice.post(`/requests/${id}/tasks/${body.task.id}/comments`, {
    task_comment: { comment: 'half way' },
  })
  expect([comment.status, comment.body.task_comment.comment]).toEqual([201, 'half way'])
})

test('a worklog needs an owner and a duration, given or by its times', async () => {
  const id = await newTicket(alice)
  const path = `/requests/${id}/worklogs`
  expect(messageOf(await alice.post(path, { worklog: { time_spent: { minutes: 5 } } })).fields).toEqual(['owner'])
  expect(messageOf(await alice.post(path, { worklog: { owner: { name: 'Alice Moreau' } } })).fields).toEqual([
    'time_spent',
  ])
  expect(
    messageOf(await alice.post(path, { worklog: { owner: { name: 'Alice Moreau' }, is_billable: true } })),
  ).toMatchObject({ message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'is_billable' })
  const byTimes = await alice.post(path, {
    worklog: {
      owner: { email_id: 'alice@northwind.example' },
      start_time: { value: '1735689600000' },
      end_time: { value: '1735695000000' },
    },
  })
  expect(byTimes.body.worklog).toMatchObject({
    time_spent: { hours: '1', minutes: '30', value: '5400000' },
    tech_charge: { value: '67.50' },
  })
  const byDuration = await alice.post(path, {
    worklog: {
      owner: { name: 'alice moreau' },
      time_spent: { hours: '0', minutes: '15' },
      tech_charge: { value: '5' },
      other_charge: { value: '2.5' },
    },
  })
  expect(byDuration.body.worklog).toMatchObject({ time_spent: { value: '900000' }, total_charge: { value: '7.50' } })
  const reversed = await alice.post(path, {
    worklog: { owner: { name: 'Alice Moreau' }, start_time: { value: 2 }, end_time: { value: 1 } },
  })
  expect(messageOf(reversed)).toMatchObject({ status_code: 4016 })
  expect((await alice.get(path)).body.worklogs).toHaveLength(2)
})

test('a site may lose the owner of a worklog that comes in the query string', async () => {
  desk.sim.faults.set({ worklogQueryBreaksReferences: true })
  const id = await newTicket(alice)
  const worklog = { worklog: { owner: { name: 'Alice Moreau' }, time_spent: { minutes: 5 } } }
  const inQuery = await alice.raw(
    `/app/itdesk/api/v3/requests/${id}/worklogs?input_data=${encodeURIComponent(JSON.stringify(worklog))}`,
    { method: 'POST' },
  )
  expect(messageOf(inQuery)).toMatchObject({ status_code: 4001, field: 'owner' })
  expect((await alice.post(`/requests/${id}/worklogs`, worklog)).status).toBe(200)
})

test('checklists have items with names', async () => {
  const id = await newTicket(carol)
  const nameless = await carol.post(`/requests/${id}/checklists`, {
    checklist: { name: 'Leaver', items: [{ is_completed: true }] },
  })
  expect(messageOf(nameless)).toMatchObject({ status_code: 4012, fields: ['items.name'] })
  const added = await carol.post(`/requests/${id}/checklists`, {
    checklist: { name: 'Leaver', items: [{ name: 'Badge' }, { name: 'Laptop', is_completed: 'true' }] },
  })
  expect(added.body.checklist.items).toEqual([
    { name: 'Badge', is_completed: null },
    { name: 'Laptop', is_completed: true },
  ])
})

test('only the approver decides, once, and the ticket follows its levels', async () => {
  const id = await newTicket(carol)
  const level = (await carol.post(`/requests/${id}/approval_levels`, { approval_level: { level: 1 } })).body
    .approval_level
  const path = `/requests/${id}/approval_levels/${level.id}/approvals`
  const approval = (await carol.post(path, { approval: { approver: { email_id: 'bob@northwind.example' } } })).body
    .approval
  expect(approval).toMatchObject({ approver: { name: 'Bob Okafor' }, status: { name: 'Pending Approval' } })
  expect((await carol.get(`/requests/${id}`)).body.request.approval_status.name).toBe('Pending Approval')

  const foreign = await carol.put(`${path}/${approval.id}/_approve`, { approval: { comments: 'not mine' } })
  expect([foreign.status, messageOf(foreign).status_code]).toEqual([403, 4002])
  const approved = await bob.put(`${path}/${approval.id}/_approve`, { approval: { comments: 'fine' } })
  expect(approved.body.approval).toMatchObject({
    status: { name: 'Approved' },
    comments: 'fine',
    action_by: { name: 'Bob Okafor' },
  })
  expect((await bob.put(`${path}/${approval.id}/_reject`)).status).toBe(400)
  expect((await carol.get(`/requests/${id}`)).body.request.approval_status.name).toBe('Approved')
  expect((await carol.get(`/requests/${id}/approval_levels/${level.id}`)).body.approval_level).toMatchObject({
    status: { name: 'Approved' },
    is_current: false,
  })
  expect(
    (await carol.put(`/requests/${id}/approval_levels/${level.id}`, { approval_level: { level: 2 } })).status,
  ).toBe(404)
})

test('one rejection rejects the level where everyone must approve', async () => {
  const id = await newTicket(carol)
  const level = (
    await carol.post(`/requests/${id}/approval_levels`, {
      approval_level: { level: 1, rule: { name: 'Everyone Approves' } },
    })
  ).body.approval_level
  const path = `/requests/${id}/approval_levels/${level.id}/approvals`
  const [forBob] = [(await carol.post(path, { approval: { approver: { name: 'Bob Okafor' } } })).body.approval]
  await carol.post(path, { approval: { approver: { name: 'Carol Jensen' } } })
  await bob.put(`${path}/${forBob.id}/_reject`, { approval: { comments: 'too dear' } })
  expect((await carol.get(`/requests/${id}`)).body.request.approval_status.name).toBe('Rejected')
})

test('approval mails can be sent again for several approvers at once', async () => {
  const { id } = await ticket(carol, 'Laptop request for new test engineer')
  const levels = (await carol.get(`/requests/${id}/approval_levels`)).body.approval_levels
  const path = `/requests/${id}/approval_levels/${levels[0].id}/approvals`
  const ids = (await carol.get(path)).body.approvals.map((one: Named) => one.id)
  const sent = await carol.raw(`/app/itdesk/api/v3${path}/_send_notification?ids=${ids.join(',')},990000000000999999`, {
    method: 'PUT',
    body: new URLSearchParams({
      input_data: JSON.stringify({ notification: { subject: 'Please', description: 'x' } }),
    }),
  })
  expect(sent.status).toBe(200)
  expect(sent.body.response_status.map((one: { status_code: number }) => one.status_code)).toEqual([2000, 2000, 4000])
  expect((await carol.get(`${path}/_get_notification_content`)).body.notification.subject).toContain('Laptop request')
})

test('the long ticket has forty entries of several kinds, filtered by type and by who wrote', async () => {
  const { id } = await ticket(alice, 'VPN drops every few minutes')
  const path = `/requests/${id}/conversations`
  const all = (await alice.get(path, { list_info: { row_count: 100, sort_field: 'created_time', sort_order: 'asc' } }))
    .body
  expect(all.conversations).toHaveLength(40)
  const times = all.conversations.map((one: { created_time: { value: string } }) => Number(one.created_time.value))
  expect(times).toEqual([...times].sort((a, b) => a - b))
  const replies = await alice.get(path, {
    list_info: {
      row_count: 100,
      search_criteria: [
        { field: 'type', condition: 'is', value: 'REQREPLY' },
        { field: 'created_by.user_type', condition: 'is', value: 'User', logical_operator: 'AND' },
      ],
    },
  })
  expect(replies.body.conversations.length).toBeGreaterThan(5)
  expect(
    replies.body.conversations.every(
      (one: { created_by: { is_technician: boolean } }) => !one.created_by.is_technician,
    ),
  ).toBe(true)
  const bare = await alice.raw(`/app/itdesk/api/v3${path}?row_count=5`)
  expect(messageOf(bare)).toMatchObject({ message: 'EXTRA_PARAM_FOUND' })
})

const reply = (more: Record<string, unknown> = {}) => ({
  notification: {
    to: ['ana.ferreira@northwind.example'],
    cc: [],
    bcc: [],
    subject: 'Re: x',
    description: '<p>Fixed</p>',
    is_public: true,
    type: 'REQREPLY',
    ...more,
  },
})

test('a reply is kept as a mail, counts as the first response and ends the waiting', async () => {
  const id = await newTicket(carol)
  const sent = await carol.post(`/requests/${id}/notifications`, reply({ in_reply_to: { id } }))
  expect(sent.body.notification).toMatchObject({
    to: ['ana.ferreira@northwind.example'],
    type: 'REQREPLY',
    sent_by: { name: 'Carol Jensen' },
  })
  const read = await carol.get(`/requests/${id}/notifications/${sent.body.notification.id}`)
  expect(read.body.notification).toMatchObject({
    description: '<p>Fixed</p>',
    sender: { email_id: 'carol@northwind.example' },
  })
  expect((await carol.get(`/requests/${id}`)).body.request.responded_time).not.toBeNull()
  expect((await carol.get(`/requests/${id}/conversations`)).body.conversations[0]).toMatchObject({ type: 'REQREPLY' })
})

test('a reply needs plain addresses and a known type', async () => {
  const id = await newTicket(carol)
  const post = (more: Record<string, unknown>) => carol.post(`/requests/${id}/notifications`, reply(more))
  expect(messageOf(await post({ to: [{ email_id: 'a@b.example' }] }))).toMatchObject({ status_code: 4021, field: 'to' })
  expect(messageOf(await post({ to: ['not an address'] }))).toMatchObject({ status_code: 4001, field: 'to' })
  expect(messageOf(await post({ to: [] }))).toMatchObject({ status_code: 4012, fields: ['to'] })
  expect(messageOf(await post({ type: 'reply' }))).toMatchObject({ status_code: 4001, field: 'type' })
})

test('where replies are refused the links do not offer them', async () => {
  const id = await newTicket(carol)
  const links = async () =>
    (await carol.get(`/requests/${id}/notifications/_links`, { operations_required: ['add'] })).body._links.links
  expect(await links()).toEqual([{ name: 'add', method: 'post' }])
  desk.sim.faults.set({ repliesRefused: true })
  expect(await links()).toEqual([])
  expect((await carol.post(`/requests/${id}/notifications`, reply())).status).toBe(403)
})

const upload = (
  client: ApiClient,
  path: string,
  part: string,
  content: Buffer | string,
  more: Record<string, string> = {},
  method = 'POST',
) => {
  const form = new FormData()
  for (const [name, value] of Object.entries(more)) form.set(name, value)
  form.set(part, new Blob([content as never], { type: 'text/plain' }), 'error log.txt')
  return client.raw(`/app/itdesk/api/v3${path}`, { method, body: form })
}

test('an uploaded file is listed on the ticket and comes back byte for byte', async () => {
  const id = await newTicket(alice)
  const sent = await upload(alice, `/requests/${id}/_uploads`, 'filename', 'line 1\nline 2\n', {
    addtoattachment: 'true',
  })
  expect(sent.body.files[0]).toMatchObject({ name: 'error log.txt', content_type: 'text/plain', size: { value: '14' } })
  const { request } = (await alice.get(`/requests/${id}`)).body
  expect(request).toMatchObject({ has_attachments: true, attachments: [{ file_id: sent.body.files[0].file_id }] })
  const file = await alice.raw(request.attachments[0].content_url, { headers: { accept: '*/*' } })
  expect([file.status, file.text]).toEqual([200, 'line 1\nline 2\n'])
  expect(file.headers.get('content-disposition')).toContain("filename*=UTF-8''error%20log.txt")
  expect((await bob.raw(request.attachments[0].content_url)).status).toBe(403)

  await alice.delete(`/requests/${id}/attachments/${request.attachments[0].id}`)
  expect((await alice.get(`/requests/${id}`)).body.request.attachments).toEqual([])
})

test('without addtoattachment there is only a file_id, which a note may carry', async () => {
  const id = await newTicket(alice)
  const { body } = await upload(alice, `/requests/${id}/_uploads`, 'filename', 'x')
  expect((await alice.get(`/requests/${id}`)).body.request.attachments).toEqual([])
  const note = await alice.post(`/requests/${id}/notes`, {
    request_note: { description: 'see file', attachments: [{ file_id: body.files[0].file_id }] },
  })
  expect(note.body.request_note.attachments).toMatchObject([{ name: 'error log.txt' }])
  const unknown = await alice.post(`/requests/${id}/notes`, {
    request_note: { description: 'x', attachments: [{ file_id: '1' }] },
  })
  expect(messageOf(unknown)).toMatchObject({ status_code: 4001, field: 'file_id' })
})

test('the older upload form works, a wrong part and a too large file do not', async () => {
  const id = await newTicket(alice)
  expect((await upload(alice, `/requests/${id}/upload`, 'input_file', 'x', {}, 'PUT')).status).toBe(200)
  expect((await alice.get(`/requests/${id}`)).body.request.attachments).toHaveLength(1)
  expect(messageOf(await upload(alice, `/requests/${id}/_uploads`, 'file', 'x'))).toMatchObject({
    status_code: 4012,
    fields: ['filename'],
  })
  desk.sim.faults.set({ attachmentLimitBytes: 10 })
  expect((await upload(alice, `/requests/${id}/_uploads`, 'filename', 'x'.repeat(11))).status).toBe(400)
})

test('a task takes no more than ten files', async () => {
  const id = await newTicket(alice)
  const { body } = await alice.post(`/requests/${id}/tasks`, { task: { title: 'T' } })
  const path = `/requests/${id}/tasks/${body.task.id}/uploads`
  for (let i = 0; i < 10; i += 1)
    expect((await upload(alice, path, 'filename', 'x', { addtoattachment: 'true' })).status).toBe(200)
  expect((await upload(alice, path, 'filename', 'x', { addtoattachment: 'true' })).status).toBe(400)
})

test('the seeded screenshot is a real PNG', async () => {
  const { id } = await ticket(alice, 'VPN drops every few minutes')
  const { request } = (await alice.get(`/requests/${id}`)).body
  const image = request.attachments.find((one: { content_type: string }) => one.content_type === 'image/png')
  const response = await fetch(desk.sim.url + image.content_url, {
    headers: { authorization: `Bearer ${alice.token}` },
  })
  const bytes = Buffer.from(await response.arrayBuffer())
  expect(bytes.subarray(1, 4).toString()).toBe('PNG')
  expect(bytes.length).toBe(Number(image.size.value))
})

test('linking, listing and unlinking tickets', async () => {
  const [one, two] = [await newTicket(carol, 'one'), await newTicket(carol, 'two')]
  const link = { link_requests: [{ linked_request: { id: two }, comments: 'same cause' }] }
  const linked = await carol.post(`/requests/${one}/_link_requests`, link)
  expect(linked.body.response_status.messages[0].message).toContain('linked')
  const list = await carol.get(`/requests/${one}/_link_requests`)
  expect(list.body.link_requests).toEqual([
    { linked_request: { id: two, display_id: expect.any(String), subject: 'two' }, comments: 'same cause' },
  ])
  expect(messageOf(await carol.get(`/requests/${one}/_link_requests`, { list_info: {} }))).toMatchObject({
    message: 'EXTRA_KEY_FOUND_IN_JSON',
  })
  expect((await carol.get(`/requests/${one}`)).body.request.has_linked_requests).toBe(true)
  expect((await carol.get(`/requests/${two}`)).body.request.linked_to_request.id).toBe(one)
  expect(
    (await carol.post(`/requests/${one}/_link_requests`, { link_requests: [{ linked_request: { id: one } }] })).status,
  ).toBe(400)

  await carol.post(`/requests/${one}/notes`, { request_note: { description: 'to both', add_to_linked_requests: true } })
  expect((await carol.get(`/requests/${two}/notes`)).body.notes).toMatchObject([{ description: 'to both' }])

  expect((await carol.delete(`/requests/${one}/_link_requests`)).status).toBe(400)
  expect((await carol.delete(`/requests/${one}/_link_requests`, link)).status).toBe(200)
  expect((await carol.get(`/requests/${one}/_link_requests`)).body.link_requests).toEqual([])
})

test('nobody links to a ticket outside the own view', async () => {
  const mine = await newTicket(bob)
  const hers = await ticket(alice, 'VPN drops')
  const answer = await bob.post(`/requests/${mine}/_link_requests`, {
    link_requests: [{ linked_request: { id: hers.id } }],
  })
  expect(messageOf(answer)).toMatchObject({ status_code: 4001, field: 'linked_request' })
})

test('a merged ticket is gone and its notes live on in the survivor', async () => {
  const [survivor, other] = [await newTicket(carol, 'survivor'), await newTicket(carol, 'other')]
  await carol.post(`/requests/${other}/notes`, { request_note: { description: 'worth keeping' } })
  expect((await carol.put(`/requests/${survivor}/_merge_requests`, { merge_requests: [{ id: other }] })).status).toBe(
    200,
  )
  expect((await carol.get(`/requests/${other}`)).status).toBe(404)
  const notes = (await carol.get(`/requests/${survivor}/notes`)).body.notes.map(
    (note: { description: string }) => note.description,
  )
  expect(notes).toEqual(expect.arrayContaining(['worth keeping', expect.stringContaining('Merged: other')]))
})

test('the history tells who changed what', async () => {
  const id = await newTicket(carol)
  await carol.put(`/requests/${id}`, { request: { priority: { name: 'High' }, update_reason: 'CEO called' } })
  const { history } = (await carol.get(`/requests/${id}/history`)).body
  expect(history.map((one: { operation: string }) => one.operation).sort()).toEqual(['CREATE', 'UPDATE'])
  const update = history.find((one: { operation: string }) => one.operation === 'UPDATE')
  expect(update).toMatchObject({ by: { name: 'Carol Jensen' }, comments: 'CEO called' })
  expect(update.diff).toContainEqual({
    field: { name: 'priority' },
    previous_value: null,
    current_value: { id: expect.any(String), name: 'High' },
  })
})

test('the summary counts what is on the ticket', async () => {
  const { id } = await ticket(alice, 'VPN drops every few minutes')
  const { summary } = (await alice.get(`/requests/${id}/_summary`)).body
  expect(summary).toMatchObject({
    link_request_count: '2',
    worklog_count: '2',
    task_pending_count: '1',
    task_completed_count: '1',
    attachment_count: '2',
  })
  expect(Number(summary.technician_reply_count)).toBeGreaterThan(5)
})

test('moving to the trash and back; restoring refuses a body', async () => {
  const id = await newTicket(carol)
  expect((await carol.delete(`/requests/${id}/_move_to_trash`)).status).toBe(200)
  expect((await carol.put(`/requests/${id}/_restore_from_trash`, { request: {} })).status).toBe(400)
  expect((await carol.put(`/requests/${id}/_restore_from_trash`)).status).toBe(200)
  expect((await carol.get(`/requests/${id}`)).body.request.is_trashed).toBe(false)
})

test('a ticket is tied to a problem and a change, and untied with the same body', async () => {
  const id = await newTicket(carol)
  const problem = (await carol.get('/problems')).body.problems[0]
  const body = { request_problem_association: { problem: { id: problem.id } } }
  expect((await carol.post(`/requests/${id}/problem`, body)).body.request_problem_association.problem).toMatchObject({
    title: problem.title,
  })
  expect((await carol.get(`/requests/${id}`)).body.request.has_problem).toBe(true)
  expect((await carol.delete(`/requests/${id}/problem`)).status).toBe(400)
  expect((await carol.delete(`/requests/${id}/problem`, body)).status).toBe(200)
  expect((await carol.get(`/requests/${id}/problem`)).body.request_problem_association).toBeNull()
  const change = (await carol.get('/changes')).body.changes[0]
  const initiated = await carol.post(`/requests/${id}/request_initiated_change`, {
    request_initiated_change: { change: { id: change.id } },
  })
  expect(initiated.status).toBe(200)
})

test('several tickets are deleted at once, each with its own result', async () => {
  const ids = [await newTicket(carol), await newTicket(carol)]
  const answer = await carol.raw(`/app/itdesk/api/v3/requests?ids=${ids.join(',')},990000000000999999`, {
    method: 'DELETE',
  })
  expect(answer.status).toBe(200)
  expect(answer.body.response_status.map((one: { id: string; status: string }) => one.status)).toEqual([
    'success',
    'success',
    'failed',
  ])
})
