import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type ApiClient, type Desk, messageOf, startDesk } from '../testing/desk.ts'

let desk: Desk
let alice: ApiClient
let carol: ApiClient
beforeAll(async () => {
  desk = await startDesk()
  alice = await desk.as('alice')
  carol = await desk.as('carol')
})
afterEach(() => desk.sim.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

test.each([
  ['categories', 'categories'],
  ['subcategories', 'subcategories'],
  ['items', 'items'],
  ['priorities', 'priorities'],
  ['urgencies', 'urgencies'],
  ['impacts', 'impacts'],
  ['levels', 'levels'],
  ['modes', 'modes'],
  ['request_types', 'request_types'],
  ['statuses', 'statuses'],
  ['support_groups', 'support_groups'],
  ['sites', 'sites'],
  ['departments', 'departments'],
  ['regions', 'regions'],
  ['user_groups', 'user_groups'],
  ['roles', 'roles'],
  ['closure_codes', 'closure_codes'],
  ['request_templates', 'request_templates'],
  ['change_templates', 'change_templates'],
  ['task_templates', 'task_templates'],
  ['service_categories', 'service_categories'],
  ['worklog_types', 'worklog_types'],
  ['task_types', 'task_types'],
  ['tags', 'tags'],
  ['udf_fields', 'udf_fields'],
  ['users', 'users'],
  ['requesters', 'requesters'],
  ['technicians', 'technicians'],
])('/%s lists rows with id and name', async (path, key) => {
  const { body } = await alice.get(`/${path}`, { list_info: { row_count: 100 } })
  expect(body[key].length).toBeGreaterThan(0)
  expect(body[key][0]).toMatchObject({ id: expect.stringMatching(/^\d{18}$/), name: expect.any(String) })
})

test('built-in records have the factory ids', async () => {
  const { body } = await alice.get('/statuses', { list_info: { row_count: 100 } })
  const open = body.statuses.find((row: { name: string }) => row.name === 'Open')
  expect(open).toMatchObject({ id: '990000000000006657', in_progress: true, stop_timer: false, color: '#0066ff' })
})

test('subcategories are listed below their category and items below their subcategory', async () => {
  const { body } = await alice.get('/categories', { list_info: { row_count: 100 } })
  const network = body.categories.find((row: { name: string }) => row.name === 'Network')
  const below = await alice.get(`/categories/${network.id}/subcategories`)
  expect(below.body.subcategories.map((row: { name: string }) => row.name)).toContain('VPN')
  const vpn = below.body.subcategories.find((row: { name: string }) => row.name === 'VPN')
  expect(vpn.category).toMatchObject({ name: 'Network' })
  const items = await alice.get(`/subcategories/${vpn.id}/items`)
  expect(items.body.items.map((row: { name: string }) => row.name)).toEqual(['Client', 'Certificate'])
})

test('administrators change lookups, technicians cannot', async () => {
  const refused = await alice.post('/closure_codes', {
    closure_code: { name: 'Workaround Given', module: { name: 'request' } },
  })
  expect([refused.status, messageOf(refused).status_code]).toEqual([403, 4002])
  const made = await carol.post('/closure_codes', {
    closure_code: { name: 'Workaround Given', module: { name: 'request' } },
  })
  expect(made.body.closure_code).toMatchObject({ name: 'Workaround Given' })
  const again = await carol.post('/closure_codes', {
    closure_code: { name: 'workaround given', module: { name: 'request' } },
  })
  expect(messageOf(again)).toMatchObject({ status_code: 4008, field: 'name' })
})

test('a new subcategory works by name at once even where lists lag', async () => {
  desk.sim.faults.set({ subcategoryLag: true })
  const { body } = await carol.get('/categories', {
    list_info: { search_criteria: { field: 'name', condition: 'is', value: 'Security' } },
  })
  const { id } = body.categories[0]
  await carol.post(`/categories/${id}/subcategories`, { subcategory: { name: 'Ransomware' } })
  const listed = await carol.get(`/categories/${id}/subcategories`, { list_info: { row_count: 100 } })
  expect(listed.body.subcategories.map((row: { name: string }) => row.name)).not.toContain('Ransomware')
  const created = await carol.post('/requests', {
    request: { subject: 'Encrypted files', category: { name: 'Security' }, subcategory: { name: 'Ransomware' } },
  })
  expect(created.body.request.subcategory.name).toBe('Ransomware')
})

test('the options of a ticket field need only the requests scope', async () => {
  const narrow = await desk.as('alice', { scopes: ['SDPOnDemand.requests.READ'] })
  const technicians = await narrow.get('/requests/technician', {
    list_info: { search_criteria: [{ field: 'name', condition: 'like', values: ['ali'] }] },
  })
  expect(technicians.body.technician.map((row: { email_id: string }) => row.email_id)).toEqual([
    'alice@northwind.example',
  ])
  const groups = await narrow.get('/requests/group')
  const desktop = groups.body.group.find((row: { name: string }) => row.name === 'Desktop Support')
  const inGroup = await narrow.get('/requests/technician', {
    list_info: { search_criteria: [{ field: 'groups.id', condition: 'is', value: desktop.id }] },
  })
  expect(inGroup.body.technician.map((row: { name: string }) => row.name)).toEqual(['Bob Okafor'])
})

test('the options of a ticket leave out what was deleted and what does not fit its category', async () => {
  const { body } = await alice.get('/requests', {
    list_info: { search_criteria: { field: 'category.name', condition: 'is', value: 'Network' } },
  })
  const { id } = body.requests[0]
  const subcategories = await alice.get(`/requests/${id}/subcategory`, { list_info: { row_count: 100 } })
  expect(subcategories.body.subcategory.map((row: { name: string }) => row.name).sort()).toEqual([
    'Internet',
    'VPN',
    'Wired LAN',
    'Wireless LAN',
  ])
  const sites = await alice.get(`/requests/${id}/site`)
  expect(sites.body.site.map((row: { name: string }) => row.name)).not.toContain('Old Warehouse')
})

test('allowed values, layout and metainfo describe the form', async () => {
  const { body } = await alice.get('/requests')
  const { id, template } = body.requests[0]
  const allowed = await alice.get(`/requests/${id}/_allowed_values_for_fields`, { list_info: { for: template.id } })
  expect(allowed.body.allowed_values.priority.map((row: { name: string }) => row.name)).toContain('High')
  expect(allowed.body.allowed_values.udf_fields.txt_major_incident).toEqual([
    { value: 'Yes', display_value: 'Yes' },
    { value: 'No', display_value: 'No' },
  ])

  desk.sim.faults.set({ mandatoryRequestFields: ['category'] })
  const layout = await alice.get(`/requests/${id}/template/${template.id}/_get_template_with_layout`)
  const technicianLayout = layout.body.request_template.layouts.find(
    (one: { name: string }) => one.name === 'technician_layout',
  )
  const fields = technicianLayout.sections.flatMap((one: { fields: unknown[] }) => one.fields)
  expect(fields).toContainEqual({ name: 'category', mandatory: true })
  expect(fields).toContainEqual({ name: 'udf_fields.txt_environment', mandatory: false })

  const meta = await alice.get('/requests/_metainfo')
  expect(meta.body.metainfo.fields.technician).toMatchObject({ type: 'lookup', lookup_entity: 'user' })
  expect(meta.body.metainfo.fields.udf_fields.fields.num_affected_users).toMatchObject({
    type: 'integer',
    display_name: 'Affected users',
  })
})

test('sites may refuse metadata, statuses and people', async () => {
  desk.sim.faults.set({
    metainfo: '403',
    statusesEndpoint: '404',
    prioritiesEndpoint: '401',
    usersEndpoint: '404',
    techniciansEndpoint: '401',
    groupsEndpoint: 'groups',
  })
  const answers = await Promise.all(
    ['/requests/_metainfo', '/statuses', '/priorities', '/users', '/technicians', '/support_groups', '/groups'].map(
      path => alice.get(path),
    ),
  )
  expect(answers.map(answer => answer.status)).toEqual([403, 404, 401, 404, 401, 404, 200])
  expect(answers[2]?.text).toContain('<html')
})

test('statuses may be empty or listed under another key', async () => {
  desk.sim.faults.set({ statusesListKey: 'status' })
  expect((await alice.get('/statuses')).body.status.length).toBeGreaterThan(3)
  desk.sim.faults.set({ statusesEndpoint: 'empty' })
  expect((await alice.get('/statuses')).body.status).toEqual([])
})

test('links tell what the caller may do on a ticket', async () => {
  const { body } = await alice.get('/requests')
  const { id } = body.requests[0]
  const links = async () => (await alice.get(`/requests/${id}/_links`)).body._links.links
  expect(await links()).toContainEqual({ name: 'edit', method: 'put', non_editable_fields: [] })
  desk.sim.faults.set({ priorityLocked: true })
  expect(await links()).toContainEqual({ name: 'edit', method: 'put', non_editable_fields: ['priority'] })
})
