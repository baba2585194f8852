import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { accept, type Desk, messageOf, startDesk } from '../testing/desk.ts'

let desk: Desk
beforeAll(async () => {
  desk = await startDesk()
  desk.sim.faults.set({ grantCodesPer10Minutes: 1000, newRefreshTokensPer10Minutes: 1000 })
})
afterEach(() => {
  desk.sim.faults.clear()
  desk.sim.faults.set({ grantCodesPer10Minutes: 1000, newRefreshTokensPer10Minutes: 1000 })
})
afterAll(() => desk[Symbol.asyncDispose]())

const requests = '/app/itdesk/api/v3/requests'

test('only the two media types of SDP are served', async () => {
  const alice = await desk.as('alice')
  expect((await alice.raw(requests)).status).toBe(200)
  expect((await alice.raw(requests, { headers: { accept: 'application/v3+json' } })).status).toBe(200)
  const json = await alice.raw(requests, { headers: { accept: 'application/json' } })
  expect([json.status, json.body]).toEqual([415, undefined])
  desk.sim.faults.set({ wrongAccept: 'login-page' })
  const page = await alice.raw(requests, { headers: { accept: '*/*' } })
  expect([page.status, page.headers.get('content-type')]).toEqual([200, expect.stringContaining('text/html')])
})

test('both token schemes are accepted, no token and a made-up one are 401', async () => {
  const alice = await desk.as('alice')
  const call = (authorization?: string) =>
    fetch(desk.sim.url + requests, { headers: { accept, ...(authorization ? { authorization } : {}) } })
  expect((await call(`Bearer ${alice.token}`)).status).toBe(200)
  expect((await call('Zoho-oauthtoken 1000.a.b')).status).toBe(401)
  const none = await call()
  expect(none.status).toBe(401)
  expect(await none.json()).toMatchObject({ response_status: { messages: [{ message: 'UNAUTHORISED' }] } })
})

test('raw brackets in the URL are refused by the front server with a page', async () => {
  const alice = await desk.as('alice')
  const answer = await alice.raw(`${requests}?input_data={"list_info":{"search_criteria":[]}}`)
  expect([answer.status, answer.headers.get('content-type')]).toEqual([400, expect.stringContaining('text/html')])
  expect(answer.text).toContain('Tomcat')
})

test('a path that cannot be decoded is refused the same way', async () => {
  const alice = await desk.as('alice')
  const answer = await alice.raw('/app/itdesk/api/v3/requests/%zz')
  expect([answer.status, answer.text.includes('Tomcat')]).toEqual([400, true])
})

test('a missing portal is 404 unless the site has a default one, a wrong portal always is', async () => {
  const alice = await desk.as('alice')
  const without = await alice.raw('/api/v3/requests')
  expect([without.status, messageOf(without)]).toEqual([404, expect.objectContaining({ status_code: 4007 })])
  expect((await alice.raw('/app/nowhere/api/v3/requests')).status).toBe(404)
  desk.sim.faults.set({ defaultPortal: true })
  expect((await alice.raw('/api/v3/requests')).status).toBe(200)
})

test('the list of portals shows those the user belongs to', async () => {
  const names = async (user: string) =>
    (await (await desk.as(user)).raw('/api/v3/portals')).body.portals.map(
      (one: { app_context: string }) => one.app_context,
    )
  expect(await names('alice')).toEqual(['itdesk'])
  expect(await names('carol')).toEqual(['itdesk', 'hrdesk'])
})

test('a portal one does not belong to is 403', async () => {
  const alice = await desk.as('alice', { portal: 'hrdesk' })
  const answer = await alice.get('/requests')
  expect([answer.status, messageOf(answer).status_code]).toEqual([403, 4002])
})

test('a missing scope is 401, whatever the role may do', async () => {
  const carol = await desk.as('carol', { scopes: ['SDPOnDemand.requests.READ'] })
  expect((await carol.get('/requests')).status).toBe(200)
  expect((await carol.post('/requests', { request: { subject: 'x' } })).status).toBe(401)
  expect((await carol.get('/priorities')).status).toBe(401)
  expect((await carol.get('/requests/priority')).status).toBe(200)
})

test('unknown paths, operations and ids are 404 with 4007', async () => {
  const carol = await desk.as('carol')
  for (const path of ['/nonsense', '/requests/_nonsense', '/requests/990000000000999999', '/requests/1/notes']) {
    const answer = await carol.get(path)
    expect([path, answer.status, messageOf(answer).status_code]).toEqual([path, 404, 4007])
  }
  const word = await carol.get('/requests/fifty')
  expect(messageOf(word)).toMatchObject({ status_code: 4001, field: 'id' })
})

test('unknown parameters and keys are refused by name', async () => {
  const carol = await desk.as('carol')
  const parameter = await carol.raw(`${requests}?row_count=5`)
  expect(messageOf(parameter)).toMatchObject({ message: 'EXTRA_PARAM_FOUND', field: 'row_count' })
  const key = await carol.get('/requests', { list_info: {}, rows: 5 })
  expect(messageOf(key)).toMatchObject({ message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'rows' })
  const listInPost = await carol.post('/requests', { list_info: { row_count: 1 } })
  expect(messageOf(listInPost)).toMatchObject({ message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'list_info' })
})

test('input_data is taken from the query of a POST as well as from its body', async () => {
  const carol = await desk.as('carol')
  const input = encodeURIComponent(JSON.stringify({ request: { subject: 'By query' } }))
  const created = await carol.raw(`${requests}?input_data=${input}`, { method: 'POST' })
  expect(created.body.request.subject).toBe('By query')
})

test('a JSON body is not SDP input', async () => {
  const carol = await desk.as('carol')
  const answer = await carol.raw(requests, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ request: { subject: 'x' } }),
  })
  expect([answer.status, messageOf(answer).status_code]).toEqual([400, 4012])
})

test('plain operation names work until the site stops serving them', async () => {
  const carol = await desk.as('carol')
  const { id } = (await carol.get('/requests', { list_info: { filter_by: { name: 'Open_Requests' } } })).body
    .requests[0]
  expect((await carol.put(`/requests/${id}/pickup`)).status).toBe(200)
  expect((await carol.put(`/requests/${id}/_pickup`)).status).toBe(200)
  desk.sim.faults.set({ plainOperationNames: false })
  expect((await carol.put(`/requests/${id}/pickup`)).status).toBe(404)
  expect((await carol.put(`/requests/${id}/_pickup`)).status).toBe(200)
})

test('an expired access token is 401', async () => {
  const alice = await desk.as('alice')
  const { body } = await desk.control('POST', '/expire-access-tokens', { user: 'alice' })
  expect(body.expired).toBeGreaterThan(0)
  expect((await alice.get('/requests')).status).toBe(401)
})

test('a token of another data center is refused', async () => {
  const alice = await desk.as('alice')
  desk.sim.faults.set({ foreignDataCenter: true })
  expect((await alice.get('/requests')).status).toBe(401)
})
