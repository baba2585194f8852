import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type ApiClient, type Desk, messageOf, startDesk } from '../testing/desk.ts'

let desk: Desk
let alice: ApiClient
let carol: ApiClient
let heidi: ApiClient
beforeAll(async () => {
  desk = await startDesk()
  alice = await desk.as('alice')
  carol = await desk.as('carol')
  heidi = await desk.as('heidi')
})
afterEach(() => desk.sim.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const named = async (path: string, key: string, field: string, value: string) =>
  (await carol.get(path, { list_info: { search_criteria: { field, condition: 'is', value } } })).body[key][0]

test.each([
  ['problems', 'title', ['description', 'root_cause']],
  ['changes', 'title', ['description', 'roll_out_plan']],
  ['releases', 'title', ['description']],
  ['projects', 'title', ['description']],
  ['solutions', 'title', ['description']],
  ['topics', 'name', []],
  ['assets', 'name', ['purchase_cost']],
  ['workstations', 'name', ['operating_system']],
  ['products', 'name', []],
  ['vendors', 'name', []],
  ['software', 'name', []],
  ['contracts', 'name', ['support']],
  ['purchase_orders', 'name', ['items']],
  ['announcements', 'title', ['description']],
  ['tasks', 'title', []],
])('/%s lists believable rows and shows more of one', async (path, name, onlyInDetails) => {
  const { body } = await carol.get(`/${path}`, { list_info: { row_count: 5, get_total_count: true } })
  expect(body.list_info.total_count).toBeGreaterThan(0)
  const [row] = body[path]
  expect(row[name]).toEqual(expect.any(String))
  const one = await carol.get(`/${path}/${row.id}`)
  const [details] = Object.values(one.body) as Record<string, unknown>[]
  for (const key of onlyInDetails) expect([key, row[key], key in (details ?? {})]).toEqual([key, undefined, true])
})

test.each([
  ['problems', 'problem'],
  ['changes', 'change'],
  ['releases', 'release'],
  ['projects', 'project'],
])('%s are created with a title only, edited and deleted', async (path, root) => {
  expect(messageOf(await carol.post(`/${path}`, { [root]: { description: 'x' } })).fields).toContain('title')
  const created = (await carol.post(`/${path}`, { [root]: { title: 'New one' } })).body[root]
  expect(created).toMatchObject({
    title: 'New one',
    display_id: expect.any(String),
    status: { name: expect.any(String) },
  })
  const edited = await carol.put(`/${path}/${created.id}`, { [root]: { title: 'Renamed' } })
  expect(edited.body[root].title).toBe('Renamed')
  expect((await carol.delete(`/${path}/${created.id}`)).status).toBe(200)
  const { body } = await carol.get(`/${path}`, { list_info: { row_count: 100 } })
  expect(body[path].map((row: { id: string }) => row.id)).not.toContain(created.id)
})

test('a requester sees no problems, changes or assets', async () => {
  for (const path of ['/problems', '/changes', '/assets', '/projects'])
    expect([path, (await heidi.get(path)).status]).toEqual([path, 403])
})

test('the texts of a problem are signed and survive other edits', async () => {
  const { id } = await named('/problems', 'problems', 'title', 'Docking stations lose the second monitor')
  await carol.put(`/problems/${id}`, {
    problem: {
      root_cause: { root_cause_description: '<p>Firmware</p>' },
      known_error_details: { is_known_error: 'true' },
    },
  })
  const edited = await carol.put(`/problems/${id}`, {
    problem: { known_error_details: { known_error_comments: 'next firmware' } },
  })
  expect(edited.body.problem).toMatchObject({
    root_cause: { root_cause_description: '<p>Firmware</p>', root_cause_updated_by: { name: 'Carol Jensen' } },
    known_error_details: { is_known_error: true, known_error_comments: 'next firmware' },
  })
})

test('closing a problem sets its details and time', async () => {
  const { id } = (await carol.post('/problems', { problem: { title: 'To close' } })).body.problem
  const closed = await carol.put(`/problems/${id}/_close`, {
    problem: { close_details: { closure_code: { name: 'Permanent Fix' }, close_details_comments: 'ok' } },
  })
  expect(closed.body.problem).toMatchObject({
    status: { name: 'Closed' },
    close_details: { closure_code: { name: 'Permanent Fix' } },
  })
  expect(closed.body.problem.closed_time).not.toBeNull()
})

test('notes of problems and changes use the root note and know no requester', async () => {
  for (const path of ['problems', 'changes', 'releases']) {
    const { id } = (await carol.get(`/${path}`)).body[path][0]
    const added = await carol.post(`/${path}/${id}/notes`, { note: { description: 'seen' } })
    expect(added.body.note).toMatchObject({ description: 'seen', performed_by: { name: 'Carol Jensen' } })
    const refused = await carol.post(`/${path}/${id}/notes`, { note: { description: 'x', show_to_requester: true } })
    expect(messageOf(refused)).toMatchObject({ message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'show_to_requester' })
  }
})

test('a change goes from stage to stage, its status needs a comment and belongs to the stage', async () => {
  const { id, stage } = (await carol.post('/changes', { change: { title: 'Staged' } })).body.change
  expect(stage).toMatchObject({ name: 'Submission', stage_index: 1 })
  const put = (change: Record<string, unknown>) => carol.put(`/changes/${id}`, { change })
  expect(messageOf(await put({ stage: { name: 'Planning' }, status: { name: 'Planned' } }))).toMatchObject({
    status_code: 4012,
    fields: ['comment'],
  })
  expect(messageOf(await put({ status: { name: 'Planned' }, comment: 'x' }))).toMatchObject({
    status_code: 4001,
    field: 'status',
  })
  expect(messageOf(await put({ stage: { name: 'Implementation' } }))).toMatchObject({
    status_code: 4001,
    field: 'stage',
  })
  const moved = await put({ stage: { name: 'Planning' }, status: { name: 'Planned' }, comment: 'ready' })
  expect(moved.body.change).toMatchObject({ stage: { name: 'Planning' }, status: { name: 'Planned' } })
  desk.sim.faults.set({ changeWorkflow: 'loose' })
  expect((await put({ stage: { name: 'Review' } })).body.change.status.name).toBe('Review In Progress')
})

test('a change is closed in both forms, with a comment', async () => {
  const create = async () => (await carol.post('/changes', { change: { title: 'To close' } })).body.change.id
  const one = await create()
  expect(messageOf(await carol.put(`/changes/${one}/_close`, { change: {} })).fields).toEqual(['comment'])
  const closed = await carol.put(`/changes/${one}/_close`, {
    change: { comment: 'done', closure_code: { name: 'Successful' } },
  })
  expect(closed.body.change).toMatchObject({
    stage: { name: 'Close' },
    status: { name: 'Completed' },
    closure_code: { name: 'Successful' },
  })
  const older = await carol.put(`/changes/${await create()}/close_change`, { status: 'canceled', comment: 'no need' })
  expect(older.body.change.status.name).toBe('Canceled')
})

test('changes within a calendar window are found by their schedule', async () => {
  const now = Date.now()
  const { body } = await carol.get('/changes', {
    list_info: {
      search_criteria: [
        { field: 'scheduled_start_time', condition: 'lesser than', value: String(now + 48 * 3600_000) },
        { field: 'scheduled_end_time', condition: 'greater than', value: String(now), logical_operator: 'AND' },
      ],
    },
  })
  const titles = body.changes.map((one: { title: string }) => one.title)
  expect(titles).toContain('Update VPN gateway 2 to 7.4')
  expect(titles).not.toContain('Patch Tuesday servers, wave A')
})

test('changes come oldest first unless sorted', async () => {
  await carol.post('/changes', { change: { title: 'The newest' } })
  const { body } = await carol.get('/changes', { list_info: { row_count: 100 } })
  expect(body.changes.at(-1).title).toBe('The newest')
})

test('approvals of a change are decided by whoever was asked', async () => {
  const { id } = await named('/changes', 'changes', 'title', 'Update VPN gateway 2 to 7.4')
  const [level] = (await carol.get(`/changes/${id}/approval_levels`)).body.approval_levels
  expect(level).toMatchObject({ associated_entity: 'change', change_stage: { name: 'CAB Evaluation' } })
  const path = `/changes/${id}/approval_levels/${level.id}/approvals`
  const [approval] = (await carol.get(path)).body.approvals
  expect((await alice.put(`${path}/${approval.id}/_approve`)).status).toBe(403)
  expect(
    (await carol.put(`${path}/${approval.id}/_approve`, { approval: { comments: 'go' } })).body.approval.status.name,
  ).toBe('Approved')
  expect((await carol.get(`/changes/${id}`)).body.change.approval_status.name).toBe('Approved')
})

test('tasks of a release name their stage', async () => {
  const { id } = await named('/releases', 'releases', 'title', 'CRM 4.2')
  expect(messageOf(await carol.post(`/releases/${id}/tasks`, { task: { title: 'Test' } })).fields).toEqual(['stage'])
  expect(
    (await carol.post(`/releases/${id}/tasks`, { task: { title: 'Test', stage: { name: 'Testing' } } })).status,
  ).toBe(200)
})

test("a milestone takes no project, and its tasks are the project's too", async () => {
  const { id } = await named('/projects', 'projects', 'project_code', 'WLAN-RTM')
  const refused = await carol.post(`/projects/${id}/milestones`, { milestone: { title: 'M', project: { id } } })
  expect(messageOf(refused)).toMatchObject({ status_code: 4014, field: 'project' })
  const milestone = (await carol.post(`/projects/${id}/milestones`, { milestone: { title: 'M' } })).body.milestone
  expect(milestone.project.id).toBe(id)
  const task = (await carol.post(`/projects/${id}/milestones/${milestone.id}/tasks`, { task: { title: 'In M' } })).body
    .task
  const { body } = await carol.get(`/projects/${id}/tasks`, { list_info: { row_count: 100 } })
  expect(body.tasks.map((one: { id: string }) => one.id)).toContain(task.id)
  expect((await carol.get(`/projects/${id}/tasks/${task.id}`)).status).toBe(200)
  const comment = await carol.post(`/projects/${id}/tasks/${task.id}/comments`, {
    task_comment: { comment: 'started' },
  })
  expect(comment.status).toBe(201)
})

test('project tasks refuse page, and project codes are unique', async () => {
  const { id } = await named('/projects', 'projects', 'project_code', 'WLAN-RTM')
  expect(messageOf(await carol.get(`/projects/${id}/tasks`, { list_info: { page: 1 } }))).toMatchObject({
    message: 'EXTRA_PARAM_FOUND',
    field: 'page',
  })
  expect(
    messageOf(await carol.post('/projects', { project: { title: 'Twin', project_code: 'wlan-rtm' } })),
  ).toMatchObject({ status_code: 4008, field: 'project_code' })
})

test('project members are people with a role, each once', async () => {
  const { id } = await named('/projects', 'projects', 'project_code', 'IMG-26')
  const member = { member: { user: { name: 'Frank Adeyemi' }, project_role: { name: 'Member' } } }
  expect((await carol.post(`/projects/${id}/members`, member)).body.member.user.name).toBe('Frank Adeyemi')
  expect(messageOf(await carol.post(`/projects/${id}/members`, member))).toMatchObject({ status_code: 4008 })
})

test('articles are found by keyword and move through approval', async () => {
  const found = await carol.get('/solutions', {
    list_info: { search_criteria: { field: 'keywords', condition: 'contains', value: 'phishing' } },
  })
  expect(found.body.solutions).toHaveLength(1)
  const made = (
    await carol.post('/solutions', { solution: { title: 'New', description: '<p>x</p>', topic: { name: 'Network' } } })
  ).body.solution
  expect(made).toMatchObject({ approval_status: { name: 'UnApproved' }, no_of_hits: 0 })
  expect((await carol.put(`/solutions/${made.id}/_publish`)).status).toBe(400)
  for (const [operation, status] of [
    ['_submit_for_approval', 'Approval Pending'],
    ['_approve', 'Approved'],
    ['_publish', 'Published'],
  ] as const)
    expect((await carol.put(`/solutions/${made.id}/${operation}`)).body.solution.approval_status.name).toBe(status)
  await carol.put(`/solutions/${made.id}/_like`)
  expect((await carol.get(`/solutions/${made.id}`)).body.solution.likes).toBe(1)
  const pending = await carol.get('/solutions', { list_info: { filter_by: { name: 'Approval_Pending' } } })
  expect(pending.body.solutions.map((one: { title: string }) => one.title)).toEqual(['CRM export time-out'])
})

test('requesters read public approved articles only', async () => {
  const { body } = await heidi.get('/solutions', { list_info: { row_count: 100 } })
  expect(body.solutions.length).toBeGreaterThan(2)
  expect(body.solutions.every((one: { is_public: boolean }) => one.is_public)).toBe(true)
})

test('a site may want a solution trashed before it is deleted', async () => {
  desk.sim.faults.set({ deleteSolution: 'trash-first' })
  const { id } = await named('/solutions', 'solutions', 'title', 'Fax gateway settings')
  const refused = await carol.delete(`/solutions/${id}`)
  expect([refused.status, messageOf(refused).message]).toEqual([400, 'Not in trash'])
  expect((await carol.delete(`/solutions/${id}/_move_to_trash`)).status).toBe(200)
  expect((await carol.delete(`/solutions/${id}`)).status).toBe(200)
})

test('a topic with solutions cannot be deleted', async () => {
  const { id } = await named('/topics', 'topics', 'name', 'Network')
  expect(messageOf(await carol.delete(`/topics/${id}`))).toMatchObject({ status_code: 4005 })
})

test('assets need name and product, have unique tags, and remember their states', async () => {
  expect(messageOf(await carol.post('/assets', { asset: {} })).fields).toEqual(['name', 'product'])
  const made = (
    await carol.post('/assets', {
      asset: { name: 'NW-LT-900', product: { name: 'Nordbook 14 G3' }, asset_tag: 'NW-900' },
    })
  ).body.asset
  expect(made).toMatchObject({ state: { name: 'In Store' }, product_type: { name: 'Workstation' } })
  expect(
    messageOf(
      await carol.post('/assets', { asset: { name: 'other', product: { name: 'Phone X4' }, asset_tag: 'nw-900' } }),
    ),
  ).toMatchObject({ status_code: 4008, field: 'asset_tag' })
  await carol.put(`/assets/${made.id}`, {
    asset: { state: { name: 'In Use' }, user: { name: 'Jonas Weber' }, state_history_comments: 'handed out' },
  })
  const { history } = (await carol.get(`/assets/${made.id}/history`)).body
  expect(history.find((one: { operation: string }) => one.operation === 'UPDATE')).toMatchObject({
    comments: 'handed out',
  })
  expect((await carol.get(`/workstations/${made.id}`)).body.workstation.name).toBe('NW-LT-900')
  const phone = await carol.post('/workstations', { workstation: { name: 'phone', product: { name: 'Phone X4' } } })
  expect(messageOf(phone)).toMatchObject({ status_code: 4001, field: 'product' })
})

test('assets of a person and tickets of an asset are found by criteria', async () => {
  const mine = await carol.get('/assets', {
    list_info: { search_criteria: { field: 'user.email_id', condition: 'is', value: 'jonas.weber@northwind.example' } },
  })
  expect(mine.body.assets.map((one: { name: string }) => one.name)).toContain('NW-DOCK-08')
  const dock = mine.body.assets.find((one: { name: string }) => one.name === 'NW-DOCK-08')
  const tickets = await carol.get('/requests', {
    list_info: { search_criteria: { field: 'assets.id', condition: 'is', value: dock.id } },
  })
  expect(tickets.body.requests.map((one: { subject: string }) => one.subject)).toEqual([
    'Docking station does not detect the second monitor',
  ])
  expect(messageOf(await carol.delete(`/assets/${dock.id}`))).toMatchObject({ status_code: 4005 })
})

test('configuration items live under their type and know their relations', async () => {
  const { body } = await carol.get('/cmdb/ci_application')
  const sap = body.ci_application.find((one: { name: string }) => one.name === 'SAP S/4')
  expect((await carol.get(`/cmdb/ci_server/${sap.id}`)).status).toBe(404)
  const relations = await carol.get(`/cmdb/ci_application/${sap.id}/ci_relationships`)
  expect(relations.body.ci_relationships.map((one: { ci: { name: string } }) => one.ci.name)).toEqual([
    'rtm-app-01',
    'rtm-db-01',
  ])
  const made = await carol.post('/cmdb/ci_server', {
    ci_server: { name: 'rtm-app-02', ci_attributes: { num_cores: '8', bool_virtual: true } },
  })
  expect(made.body.ci_server).toMatchObject({
    ci_type: { api_name: 'ci_server' },
    ci_attributes: { num_cores: 8, bool_virtual: true },
  })
  const related = await carol.post(`/cmdb/ci_application/${sap.id}/ci_relationships`, {
    ci_relationship: { relationship_type: { name: 'runs on' }, ci: { id: made.body.ci_server.id } },
  })
  expect(related.body.ci_relationship.relationship_type.name).toBe('Runs on')
  expect(
    (await carol.delete(`/cmdb/ci_application/${sap.id}/ci_relationships/${related.body.ci_relationship.id}`)).status,
  ).toBe(200)
  const edited = await carol.put(`/cmdb/ci_application/${sap.id}`, {
    ci_application: { ci_attributes: { txt_version: '2026' } },
  })
  expect(edited.body.ci_application.ci_attributes).toMatchObject({ txt_version: '2026', txt_vendor: 'SAP' })
  expect((await carol.get('/cmdb/ci_toaster')).status).toBe(404)
})

test('a definite contract needs its end', async () => {
  const contract = { name: 'New', vendor: { name: 'Delft Computers' }, active_from: { value: '1735689600000' } }
  expect(messageOf(await carol.post('/contracts', { contract })).fields).toEqual(['active_till'])
  expect(
    (await carol.post('/contracts', { contract: { ...contract, is_definite: false } })).body.contract.status.name,
  ).toBe('Active')
  const backwards = await carol.post('/contracts', { contract: { ...contract, active_till: { value: '1' } } })
  expect(messageOf(backwards)).toMatchObject({ status_code: 4016 })
})

test('a purchase order sums its lines', async () => {
  const order = { name: 'Docks', requested_by: { name: 'Carol Jensen' }, vendor: { name: 'Delft Computers' } }
  expect(messageOf(await carol.post('/purchase_orders', { purchase_order: order })).fields).toEqual(['items'])
  const items = [{ product: { name: 'WD19' }, ordered_quantity: 3, price: '100', tax_rate: 21 }]
  const made = await carol.post('/purchase_orders', { purchase_order: { ...order, items } })
  expect(made.body.purchase_order).toMatchObject({
    total_price: { value: '363.00' },
    items: [{ product: { name: 'WD19' }, ordered_quantity: 3 }],
  })
  const note = await carol.post(`/purchase_orders/${made.body.purchase_order.id}/notes`, {
    note: { description: 'ordered' },
  })
  expect(note.status).toBe(200)
})

test('an announcement needs its four fields; drafts are hidden from requesters', async () => {
  expect(messageOf(await carol.post('/announcements', { announcement: {} })).fields).toEqual([
    'title',
    'description',
    'from_date',
    'state',
  ])
  const { body } = await heidi.get('/announcements')
  expect(body.announcements.every((one: { state: string }) => one.state === 'Published')).toBe(true)
  const { id } = body.announcements[0]
  await heidi.put(`/announcements/${id}/_follow`)
  expect(
    (await carol.get(`/announcements/${id}`)).body.announcement.followers.map((one: { name: string }) => one.name),
  ).toEqual(['Heidi Brandt'])
})

test('a custom module answers under its API name', async () => {
  const made = await carol.post('/cm_visitors', { cm_visitor: { name: 'Ms. Verne', txt_company: 'Nautilus' } })
  expect(made.body.cm_visitor).toMatchObject({ name: 'Ms. Verne' })
})
