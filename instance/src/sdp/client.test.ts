import { freePort } from '@sdp-mcp/migrations/testing'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { type Desk, startDesk, type TestContext } from '../testing/desk.ts'
import { createSdpClient, type Sdp } from './client.ts'
import { isSdpError, type SdpError } from './errors.ts'
import { criteria, is } from './list-info.ts'
import { path } from './path.ts'

let desk: Desk
let context: TestContext
let sdp: Sdp
let sent = 0

beforeAll(async () => {
  desk = await startDesk()
  context = await desk.context('carol')
  sdp = createSdpClient(context).bind({ signal: new AbortController().signal, onRequest: () => sent++ })
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const requests = path`/requests`
const anyRequest = async () => String((await sdp.list(requests, { row_count: 1 })).rows[0]?.id)
const caught = async (work: Promise<unknown>): Promise<SdpError> => {
  const error = await work.then(
    () => undefined,
    reason => reason,
  )
  expect(isSdpError(error), String(error)).toBe(true)
  return error
}
const calls = async (work: Promise<unknown>): Promise<number> => {
  const before = sent
  await work.catch(() => {})
  return sent - before
}

describe('what goes over the wire', () => {
  it('encodes input_data strictly and reads it back on the other side', async () => {
    desk.simulator.log.clear()
    const wanted = criteria(is('subject', 'a [b] {c} "d" ü & +'))
    await sdp.list(requests, { row_count: 5, search_criteria: wanted })
    const entry = desk.simulator.log.list().at(-1)
    expect(entry?.input).toEqual({ list_info: { row_count: 5, search_criteria: wanted } })
  })

  it('sends writes as a form and keeps ids as strings', async () => {
    const created = await sdp.post(requests, { request: { subject: 'Café & "quotes" [x] + ü 100%' } })
    const request = created.request as { id: string; subject: string }
    expect(request.subject).toBe('Café & "quotes" [x] + ü 100%')
    expect(request.id).toMatch(/^\d{15,}$/)
  })

  it('refuses a filter too long for one URL before sending it', async () => {
    const before = sent
    const error = await caught(sdp.list(requests, { search_criteria: criteria(is('subject', 'x'.repeat(9_000))) }))
    expect(error.kind).toBe('invalid-value')
    expect(sent).toBe(before)
  })
})

describe('a 401', () => {
  it('costs one refresh and one replay when the token had ended', async () => {
    desk.simulator.faults.add({ kind: 'status', status: 401, match: { path: '/requests' }, count: 1 })
    const before = context.tokens.invalidated
    await sdp.list(requests)
    expect(context.tokens.invalidated).toBe(before + 1)
  })

  it('that stays is told as a missing scope, and does not burn tokens when asked again', async () => {
    const poor = await desk.context('alice', { scopes: ['SDPOnDemand.requests.ALL'] })
    const client = createSdpClient(poor).bind({ signal: new AbortController().signal })
    for (let round = 0; round < 5; round++) {
      expect((await caught(client.list(path`/priorities`))).kind).toBe('missing-scope')
    }
    expect(poor.tokens.invalidated).toBe(1)
    expect((await client.list(requests)).rows.length).toBeGreaterThan(0)
  })

  it('of a probe is not answered with a refresh', async () => {
    desk.simulator.faults.set({ unauthorizedBody: 'html' })
    desk.simulator.faults.add({ kind: 'status', status: 401, body: 'html', match: { path: '/requests' } })
    const before = context.tokens.invalidated
    expect((await caught(sdp.list(requests, {}, { probe: true }))).kind).toBe('missing-scope')
    expect(context.tokens.invalidated).toBe(before)
  })
})

describe('troubles of the site', () => {
  it('are waited out for reads', async () => {
    desk.simulator.faults.add({ kind: 'status', status: 503, body: 'html', match: { path: '/requests' }, count: 2 })
    expect(await calls(sdp.list(requests))).toBe(3)
  })

  it('end in "down" after three tries', async () => {
    desk.simulator.faults.add({ kind: 'status', status: 500, match: { path: '/requests' } })
    expect((await caught(sdp.list(requests))).kind).toBe('down')
    expect(await calls(sdp.list(requests))).toBe(3)
  })

  it('are waited out for a PUT of fields, which may be sent twice', async () => {
    const id = await anyRequest()
    desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'PUT' }, count: 1 })
    await sdp.put(path`/requests/${id}`, { request: { subject: 'changed once' } })
  })

  it('make a POST indeterminate and are never answered by sending it again', async () => {
    desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'POST', path: '/requests' } })
    const error = await caught(sdp.post(requests, { request: { subject: 'arrived once' } }))
    expect(error.kind).toBe('indeterminate')
    expect(await calls(sdp.post(requests, { request: { subject: 'arrived twice' } }))).toBe(1)
    desk.simulator.faults.clear()
    const found = await sdp.list(requests, { search_criteria: criteria(is('subject', 'arrived once')) })
    expect(found.rows).toHaveLength(1)
  })

  it('leave a POST that was never sent as not done', async () => {
    const port = await freePort()
    const nowhere = createSdpClient({ ...context, sdp: { ...context.sdp, baseUrl: `http://127.0.0.1:${port}` } })
    const client = nowhere.bind({ signal: new AbortController().signal })
    expect((await caught(client.post(requests, { request: { subject: 'x' } }))).kind).toBe('down')
  })

  it('a time-out of a POST is indeterminate', async () => {
    desk.simulator.faults.add({ kind: 'hang', match: { method: 'POST' } })
    const error = await caught(sdp.request({ method: 'POST', path: requests, input: {}, timeoutMs: 200 }))
    expect(error.kind).toBe('indeterminate')
  })

  it('with a short Retry-After are waited out as long as the site says', async () => {
    const headers = { 'retry-after': '1' }
    desk.simulator.faults.add({ kind: 'status', status: 503, headers, match: { path: '/requests' }, count: 1 })
    const startedAt = performance.now()
    await sdp.list(requests)
    expect(performance.now() - startedAt).toBeGreaterThan(900)
  })

  it.each(['20', '9999999'])('with Retry-After %s are told at once, with the number of seconds', async seconds => {
    const headers = { 'retry-after': seconds }
    const id = await anyRequest()
    const edit = () => sdp.put(path`/requests/${id}`, { request: { subject: 'x' } })
    for (const [status, work, kind, step] of [
      [503, () => sdp.list(requests), 'down', /^The site asks to wait \d+ seconds/],
      [503, edit, 'down', /^The change was not made\. The site asks to wait/],
      [502, edit, 'indeterminate', /^The site asks to wait .* Do not repeat it blindly/],
    ] as const) {
      desk.simulator.faults.add({ kind: 'status', status, headers, match: { path: '/requests' } })
      const [before, startedAt] = [sent, performance.now()]
      const error = await caught(work())
      expect(performance.now() - startedAt).toBeLessThan(1_000)
      expect([error.kind, error.details.retryAfterSeconds, sent - before]).toEqual([kind, Number(seconds), 1])
      expect(error.details.nextStep).toMatch(step)
      expect(error.details.nextStep).toContain(seconds)
      desk.simulator.faults.clear()
    }
  })

  it('a change whose answer was lost stays in doubt, though its repetition was refused', async () => {
    const id = await anyRequest()
    desk.simulator.faults.add({ kind: 'drop-after', match: { path: '/requests', method: 'PUT' }, count: 1 })
    desk.simulator.faults.add({ kind: 'status', status: 503, match: { path: '/requests', method: 'PUT' } })
    const before = sent
    const error = await caught(sdp.put(path`/requests/${id}`, { request: { subject: 'in doubt' } }))
    expect([error.kind, sent - before]).toEqual(['indeterminate', 3])
    desk.simulator.faults.clear()
    const { request } = (await sdp.get(path`/requests/${id}`)) as { request: { subject: string } }
    expect(request.subject).toBe('in doubt')
  })

  it('an answer that is no JSON is a failure, not an empty list', async () => {
    desk.simulator.faults.add({ kind: 'not-json', match: { path: '/requests' } })
    expect((await caught(sdp.list(requests))).kind).toBe('drift')
    desk.simulator.faults.clear()
    desk.simulator.faults.set({ loginPageInsteadOfJson: true })
    expect((await caught(sdp.list(requests))).kind).toBe('drift')
  })

  it('a redirect is not followed', async () => {
    desk.simulator.faults.add({
      kind: 'status',
      status: 302,
      headers: { location: '/login' },
      match: { path: '/requests' },
    })
    desk.simulator.log.clear()
    expect((await caught(sdp.list(requests))).kind).toBe('drift')
    expect(desk.simulator.log.list()).toHaveLength(1)
  })
})

describe('a rate limit', () => {
  it('with a short Retry-After is waited for, even by a POST', async () => {
    desk.simulator.faults.set({ rateLimitStatus: 429, rateLimitLockSeconds: 0 })
    desk.simulator.faults.add({
      kind: 'rate-limit',
      status: 429,
      retryAfterSeconds: 1,
      match: { path: '/requests' },
      count: 1,
    })
    const startedAt = performance.now()
    await sdp.post(requests, { request: { subject: 'after the limit' } })
    expect(performance.now() - startedAt).toBeGreaterThan(900)
  })

  it('with a long Retry-After is told with the number of seconds, at once', async () => {
    desk.simulator.faults.add({ kind: 'rate-limit', status: 429, retryAfterSeconds: 300, match: { path: '/requests' } })
    const error = await caught(sdp.list(requests))
    expect(error.kind).toBe('limited')
    expect(error.details.retryAfterSeconds).toBe(300)
    expect(await calls(sdp.list(requests))).toBe(1)
  })

  it('is known by its code also with HTTP 400', async () => {
    desk.simulator.faults.add({ kind: 'rate-limit', status: 400, match: { path: '/requests' } })
    expect((await caught(sdp.list(requests))).details).toMatchObject({ httpStatus: 400, statusCode: 4015 })
  })
})

it('a caller who gives up aborts the call at once, also during a pause', async () => {
  desk.simulator.faults.add({ kind: 'rate-limit', status: 429, retryAfterSeconds: 10, match: { path: '/requests' } })
  const controller = new AbortController()
  const client = createSdpClient(context).bind({ signal: controller.signal })
  const startedAt = performance.now()
  setTimeout(() => controller.abort(), 150)
  expect((await caught(client.list(requests))).kind).toBe('cancelled')
  expect(performance.now() - startedAt).toBeLessThan(1_000)
})

it('an operation falls back to its older name where the site knows no other, and remembers it', async () => {
  const id = await anyRequest()
  desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: `/requests/${id}/_pickup` } })
  const before = sent
  await sdp.operate(path`/requests/${id}`, 'pickup')
  expect(sent - before).toBe(2)
  await sdp.operate(path`/requests/${id}`, 'pickup')
  expect(sent - before).toBe(3)
})

it.each([
  [{ kind: 'drop-after' }, 'indeterminate', ''],
  [{ kind: 'status', status: 403 }, 'denied', ''],
  [{ kind: 'status', status: 400 }, 'invalid-value', ''],
  // there is no such path either: the first answer names the documented form
  [{ kind: 'status', status: 404 }, 'not-found', '_'],
  [{ kind: 'status', status: 401 }, 'not-found', '_'],
  [{ kind: 'status', status: 405 }, 'not-found', '_'],
  [{ kind: 'status', status: 302 }, 'not-found', '_'],
] as const)('an operation tells what its older name ended in: %o', async (fault, kind, underscore) => {
  const id = await anyRequest()
  desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: `/requests/${id}/_assign` } })
  desk.simulator.faults.add({ ...fault, match: { path: `/requests/${id}/assign` } })
  const error = await caught(sdp.operate(path`/requests/${id}`, 'assign', {}, { repeatable: false }))
  expect([error.kind, error.details.call]).toEqual([kind, `PUT /requests/{}/${underscore}assign`])
})

it('never sends the token to another host', async () => {
  const before = sent
  expect((await caught(sdp.download('https://files.example/x', 1_000))).kind).toBe('drift')
  expect(sent).toBe(before)
})
