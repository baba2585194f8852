import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type ApiClient, type Desk, messageOf, startDesk } from '../testing/desk.ts'
import { switches } from './switches.ts'

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

const newTicket = async (more: Record<string, unknown> = {}) =>
  (await carol.post('/requests', { request: { subject: 'For a switch', ...more } })).body.request.id as string

test('every switch is turned by some test', () => {
  const source = join(import.meta.dirname, '..')
  const tests = globSync('**/*.test.ts', { cwd: source }).map(file => readFileSync(join(source, file), 'utf8'))
  const unturned = Object.keys(switches).filter(name => !tests.some(text => text.includes(`${name}:`)))
  expect(unturned).toEqual([])
})

test('accessTokenSeconds shortens the life of access tokens', async () => {
  desk.sim.faults.set({ accessTokenSeconds: 61 })
  const { clientId, clientSecret } = desk.sim.clients.find(client => client.owner === 'dave') ?? {}
  const { body } = await desk.tokenCall({
    grant_type: 'client_credentials',
    scope: 'SDPOnDemand.requests.READ',
    client_id: clientId ?? '',
    client_secret: clientSecret ?? '',
  })
  expect(body.expires_in).toBe(61)
})

test('activeAccessTokens limits how many live side by side', async () => {
  desk.sim.faults.set({ activeAccessTokens: 1 })
  const { clientId, clientSecret } = desk.sim.clients.find(client => client.owner === 'dave') ?? {}
  const wanted = {
    grant_type: 'client_credentials',
    scope: 'SDPOnDemand.requests.READ',
    client_id: clientId ?? '',
    client_secret: clientSecret ?? '',
  }
  const tokens = [(await desk.tokenCall(wanted)).body.access_token, (await desk.tokenCall(wanted)).body.access_token]
  const living = desk.sim.state.accessTokens.filter(one => one.user === 'dave').map(one => one.token)
  expect(living).toEqual([tokens[1]])
})

test('refreshTokensPerUserAndClient pushes out the oldest connection', async () => {
  desk.sim.faults.set({ refreshTokensPerUserAndClient: 1 })
  const first = await desk.as('erin')
  await desk.as('erin')
  expect((await first.get('/requests')).status).toBe(401)
})

test('loginPageInsteadOfJson turns every success into a page', async () => {
  desk.sim.faults.set({ loginPageInsteadOfJson: true })
  const answer = await alice.get('/requests')
  expect([answer.status, answer.body]).toEqual([200, undefined])
})

test('createdStatus makes creates answer 201', async () => {
  desk.sim.faults.set({ createdStatus: '201' })
  expect((await carol.post('/requests', { request: { subject: 'x' } })).status).toBe(201)
})

test('emptyDelete answers 204 without a body', async () => {
  const id = await newTicket()
  desk.sim.faults.set({ emptyDelete: true })
  const answer = await carol.delete(`/requests/${id}`)
  expect([answer.status, answer.text]).toEqual([204, ''])
})

test('statusInEnvelope puts the real code outside', async () => {
  desk.sim.faults.set({ statusInEnvelope: 'inner' })
  expect((await alice.get('/requests/1')).body.response_status.status_code).toBe(4007)
})

test('rateLimitStatus, rateLimitLockSeconds and rateLimitRetryAfter shape the 4015 answer', async () => {
  desk.sim.faults.set({
    rateLimitPerMinute: 1,
    rateLimitStatus: 429,
    rateLimitLockSeconds: 40,
    rateLimitRetryAfter: true,
  })
  await alice.get('/priorities')
  const limited = await alice.get('/priorities')
  expect([limited.status, limited.headers.get('retry-after')]).toEqual([429, '40'])
})

test('closeRequires asks for more before closing, partialStatus words the answer', async () => {
  desk.sim.faults.set({ closeRequires: ['technician', 'category'], partialStatus: 'warning' })
  const id = await newTicket({ technician: { name: 'Carol Jensen' } })
  const { response_status } = (await carol.put(`/requests/${id}/_close`)).body
  expect(response_status).toMatchObject({ status_code: 3000, status: 'warning', messages: [{ fields: ['category'] }] })
  desk.sim.faults.set({ closeRequires: [] })
  expect((await carol.put(`/requests/${id}/_close`)).body.response_status.status_code).toBe(2000)
})

test('closedTicketsRefuseEdits off lets closed tickets be edited', async () => {
  const id = await newTicket({ resolution: { content: 'x' } })
  await carol.put(`/requests/${id}/_close`)
  expect((await carol.put(`/requests/${id}`, { request: { subject: 'late' } })).status).toBe(403)
  desk.sim.faults.set({ closedTicketsRefuseEdits: false })
  expect((await carol.put(`/requests/${id}`, { request: { subject: 'late' } })).status).toBe(200)
})

test('assignNeedsCategory refuses a technician while category and subcategory are empty', async () => {
  desk.sim.faults.set({ assignNeedsCategory: true })
  const id = await newTicket()
  expect(messageOf(await carol.put(`/requests/${id}/_pickup`))).toMatchObject({
    status_code: 4002,
    field: 'technician',
  })
  const together = { technician: { name: 'Carol Jensen' }, category: { name: 'Network' }, subcategory: { name: 'VPN' } }
  expect((await carol.put(`/requests/${id}`, { request: together })).status).toBe(200)
})

test('myFiltersLeak gives closed tickets and those of the whole group', async () => {
  const view = async () =>
    (await alice.get('/requests', { list_info: { row_count: 100, filter_by: { name: 'My_Open_Requests' } } })).body
      .requests
  const isMineAndOpen = (row: { technician?: { name: string }; status: { in_progress: boolean } }) =>
    row.technician?.name === 'Alice Moreau' && row.status.in_progress
  expect((await view()).every(isMineAndOpen)).toBe(true)
  desk.sim.faults.set({ myFiltersLeak: true })
  expect((await view()).every(isMineAndOpen)).toBe(false)
})

test('deleteRequest purge leaves no trash', async () => {
  desk.sim.faults.set({ deleteRequest: 'purge' })
  const id = await newTicket()
  await carol.delete(`/requests/${id}`)
  expect((await carol.get(`/requests/${id}`)).status).toBe(404)
})

test('noteRoot decides under which root a note is taken', async () => {
  const id = await newTicket()
  const add = async (root: string) =>
    (await carol.post(`/requests/${id}/notes`, { [root]: { description: 'x' } })).status
  expect([await add('request_note'), await add('note')]).toEqual([200, 400])
  desk.sim.faults.set({ noteRoot: 'note' })
  expect([await add('request_note'), await add('note')]).toEqual([400, 200])
  desk.sim.faults.set({ noteRoot: 'both' })
  expect([await add('request_note'), await add('note')]).toEqual([200, 200])
})

test('leadingLogicalOperator refuse wants none on a first criterion', async () => {
  const search = () =>
    carol.get('/requests', {
      list_info: {
        search_criteria: [{ field: 'subject', condition: 'contains', value: 'vpn', logical_operator: 'AND' }],
      },
    })
  expect((await search()).status).toBe(200)
  desk.sim.faults.set({ leadingLogicalOperator: 'refuse' })
  expect(messageOf(await search())).toMatchObject({ status_code: 4001, field: 'logical_operator' })
})

test('nullDateText writes the text "null" where a row was never updated', async () => {
  await newTicket()
  const first = async () =>
    (await carol.get('/requests', { list_info: { row_count: 1, fields_required: ['last_updated_time'] } })).body
      .requests[0]
  expect(await first()).toEqual({ last_updated_time: null })
  desk.sim.faults.set({ nullDateText: true })
  expect(await first()).toEqual({ last_updated_time: 'null' })
})

test('resolutionFirst counts a resolution only when it was there before the edit that resolves', async () => {
  desk.sim.faults.set({ resolutionFirst: true })
  const id = await newTicket()
  const resolution = { content: '<p>Replaced</p>' }
  const resolved = { status: { name: 'Resolved' } }
  const together = await carol.put(`/requests/${id}`, { request: { ...resolved, resolution } })
  expect(together.body.response_status).toMatchObject({ status_code: 3000 })
  expect((await carol.get(`/requests/${id}`)).body.request.status.name).toBe('Open')
  await carol.put(`/requests/${id}`, { request: { resolution } })
  expect((await carol.put(`/requests/${id}`, { request: resolved })).body.request.status.name).toBe('Resolved')
})

test('editAnswer can be the id alone', async () => {
  const id = await newTicket()
  const edit = async () => (await carol.put(`/requests/${id}`, { request: { subject: 'Other' } })).body.request
  expect(await edit()).toMatchObject({ id, subject: 'Other', status: { name: 'Open' } })
  desk.sim.faults.set({ editAnswer: 'id' })
  expect(await edit()).toEqual({ id })
})
