import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type ApiClient, type Desk, messageOf, startDesk } from '../testing/desk.ts'

let clock = Date.now()
let desk: Desk
let alice: ApiClient
let carol: ApiClient
beforeAll(async () => {
  desk = await startDesk({ now: () => clock })
  alice = await desk.as('alice')
  carol = await desk.as('carol')
})
afterEach(() => desk.sim.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const total = async () =>
  (await carol.get('/requests', { list_info: { get_total_count: true } })).body.list_info.total_count as number

test('a status fault hits as often as asked, only where it matches', async () => {
  desk.sim.faults.add({
    kind: 'status',
    status: 503,
    match: { path: '/requests', method: 'get', user: 'alice' },
    count: 2,
  })
  expect((await carol.get('/requests')).status).toBe(200)
  expect((await alice.get('/priorities')).status).toBe(200)
  expect([(await alice.get('/requests')).status, (await alice.get('/requests')).status]).toEqual([503, 503])
  expect((await alice.get('/requests')).status).toBe(200)
})

test('a path may have stars and calls may be let through first', async () => {
  const { id } = (await alice.get('/requests')).body.requests[0]
  desk.sim.faults.add({ kind: 'status', status: 500, body: 'html', match: { path: '/requests/*/notes' }, skip: 1 })
  expect((await alice.get(`/requests/${id}`)).status).toBe(200)
  expect((await alice.get(`/requests/${id}/notes`)).status).toBe(200)
  const failed = await alice.get(`/requests/${id}/notes`)
  expect([failed.status, failed.headers.get('content-type')]).toEqual([500, expect.stringContaining('text/html')])
})

test('status faults carry headers and may be empty', async () => {
  desk.sim.faults.add({ kind: 'status', status: 429, body: 'empty', headers: { 'retry-after': '7' } })
  const answer = await alice.get('/requests')
  expect([answer.status, answer.text, answer.headers.get('retry-after')]).toEqual([429, '', '7'])
})

test('a delay waits, then answers', async () => {
  desk.sim.faults.add({ kind: 'delay', delayMs: 60 })
  const startedAt = performance.now()
  expect((await alice.get('/requests')).status).toBe(200)
  expect(performance.now() - startedAt).toBeGreaterThanOrEqual(55)
})

test('a hanging call answers nothing until the client gives up', async () => {
  desk.sim.faults.add({ kind: 'hang', count: 1 })
  await expect(alice.raw('/app/itdesk/api/v3/requests', { signal: AbortSignal.timeout(100) })).rejects.toThrow(
    /timeout/i,
  )
  expect(desk.sim.log.list().at(-1)).toMatchObject({ status: 0, user: 'alice' })
  expect((await alice.get('/requests')).status).toBe(200)
})

test('a dropped write did nothing, a write dropped after was done', async () => {
  const before = await total()
  desk.sim.faults.add({ kind: 'drop', match: { method: 'POST' }, count: 1 })
  await expect(carol.post('/requests', { request: { subject: 'lost' } })).rejects.toThrow()
  expect(await total()).toBe(before)
  desk.sim.faults.add({ kind: 'drop-after', match: { method: 'POST' }, count: 1 })
  await expect(carol.post('/requests', { request: { subject: 'kept' } })).rejects.toThrow()
  expect(await total()).toBe(before + 1)
})

test('an answer may break off midway', async () => {
  desk.sim.faults.add({ kind: 'drop-midway', count: 1 })
  await expect(alice.get('/requests')).rejects.toThrow()
  expect((await alice.get('/requests')).status).toBe(200)
})

test('an HTML page may come with status 200', async () => {
  desk.sim.faults.add({ kind: 'not-json', count: 1 })
  const answer = await alice.get('/requests')
  expect([answer.status, answer.body]).toEqual([200, undefined])
})

test('the accounts server fails apart from the API', async () => {
  desk.sim.faults.add({ kind: 'status', status: 502, body: 'html', match: { server: 'accounts' } })
  expect((await alice.get('/requests')).status).toBe(200)
  expect((await desk.tokenCall({ grant_type: 'refresh_token' })).status).toBe(502)
})

test('a throttle and a limit can be called up at will', async () => {
  desk.sim.faults.add({ kind: 'throttle', match: { path: '/oauth/v2/token' }, count: 1 })
  expect((await desk.tokenCall({ grant_type: 'refresh_token' })).body).toMatchObject({ error: 'Access Denied' })
  desk.sim.faults.add({ kind: 'rate-limit', status: 429, retryAfterSeconds: 3, count: 1 })
  const limited = await alice.get('/requests')
  expect([limited.status, limited.headers.get('retry-after'), messageOf(limited).status_code]).toEqual([429, '3', 4015])
})

test('an empty bucket locks the user out for five minutes and nobody else', async () => {
  desk.sim.faults.set({ rateLimitPerMinute: 3 })
  for (let i = 0; i < 3; i += 1) expect((await alice.get('/priorities')).status).toBe(200)
  const limited = await alice.get('/priorities')
  expect([limited.status, messageOf(limited).status_code]).toEqual([400, 4015])
  expect((await carol.get('/priorities')).status).toBe(200)
  clock += 299_000
  expect((await alice.get('/priorities')).status).toBe(400)
  clock += 2_000
  expect((await alice.get('/priorities')).status).toBe(200)
})

test('401 and 400 may be pages', async () => {
  desk.sim.faults.set({ unauthorizedBody: 'html', badRequestBody: 'html' })
  const narrow = await desk.as('bob', { scopes: ['SDPOnDemand.setup.READ'] })
  const unauthorized = await narrow.get('/requests')
  expect([unauthorized.status, unauthorized.body]).toEqual([401, undefined])
  const bad = await carol.post('/requests', { request: {} })
  expect([bad.status, bad.body]).toEqual([400, undefined])
})

test('a switch that does not exist or a wrong value is refused and turns nothing', async () => {
  const { status, body } = await desk.control('POST', '/faults', {
    switches: { throttleStatus: 400, noSuchSwitch: true, noteRoot: 'footnote' },
  })
  expect(status).toBe(400)
  expect(body.error).toContain('noSuchSwitch')
  expect(body.error).toContain('noteRoot')
  expect(desk.sim.faults.switches.throttleStatus).toBe(200)
})
