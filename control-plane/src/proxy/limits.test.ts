import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import type { AppError } from '../errors.ts'
import { eventually } from '../fleet/testing/support.ts'
import { startControlPlane } from '../testing/control-plane.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { createLimiter, type Limiter } from './limits.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
})
afterAll(() => database?.[Symbol.asyncDispose]())

function refusalOf(work: () => void): AppError | undefined {
  try {
    work()
  } catch (error) {
    return error as AppError
  }
}

test('a burst is taken, then as many a second as allowed, for each user on its own', () => {
  let at = 0
  const limiter = createLimiter({ nowMs: () => at })
  const limits = { requestsPerSecond: 10, burst: 5, concurrentRequests: 0 }
  const taken = (user: string) => {
    let count = 0
    while (!refusalOf(() => limiter.enter(user, limits))) count++
    return count
  }
  expect(taken('alice')).toBe(5)
  expect(taken('bob')).toBe(5)
  at = 300
  expect(taken('alice')).toBe(3)
  at = 60_000
  expect(taken('alice')).toBe(5)
  expect(refusalOf(() => limiter.enter('alice', limits))).toMatchObject({
    code: 'rate-limit-exceeded',
    status: 429,
    retryAfterSeconds: 1,
  })
  const slow = { requestsPerSecond: 1, burst: 1, concurrentRequests: 0 }
  expect(refusalOf(() => limiter.enter('carol', slow))).toBeUndefined()
  expect(refusalOf(() => limiter.enter('carol', slow))?.retryAfterSeconds).toBe(1)
})

test('requests under way are counted in and out, a refused one costs nothing, and 0 means no limit', () => {
  const limiter = createLimiter({ nowMs: () => 0 })
  const limits = { requestsPerSecond: 0, burst: 1, concurrentRequests: 2 }
  for (let round = 0; round < 3; round++) {
    limiter.enter('alice', limits)
    limiter.enter('alice', limits)
    for (let more = 0; more < 3; more++)
      expect(refusalOf(() => limiter.enter('alice', limits))).toMatchObject({
        code: 'concurrency-limit-exceeded',
        status: 429,
      })
    limiter.leave('alice')
    limiter.leave('alice')
  }
  for (let count = 0; count < 1_000; count++) limiter.enter('bob', { ...limits, concurrentRequests: 0 })
})

/** Limiters of workers that tell each other. */
function workers(count: number) {
  let at = 0
  const limiters = Array.from({ length: count }, () => createLimiter({ isShared: true, nowMs: () => at }))
  return {
    limiters,
    wait(ms: number) {
      at += ms
    },
    tellEachOther() {
      const told = limiters.map(limiter => limiter.share())
      for (const [by, uses] of told.entries())
        for (const [index, limiter] of limiters.entries()) if (index !== by) limiter.heard(by, uses)
    },
  }
}

test('workers share the rate of a user: who goes to each of them gets no more than who goes to one', () => {
  const { limiters, wait, tellEachOther } = workers(3)
  const limits = { requestsPerSecond: 100, burst: 20, concurrentRequests: 0 }
  let taken = 0
  // ten seconds of asking everywhere as fast as it goes
  for (let round = 0; round < 100; round++) {
    for (const limiter of limiters) while (!refusalOf(() => limiter.enter('alice', limits))) taken++
    tellEachOther()
    wait(100)
  }
  // 20 at once and 100 a second; and what each of the others lets in before it hears, once
  expect(taken).toBeGreaterThanOrEqual(900)
  expect(taken).toBeLessThanOrEqual(20 + 1_000 + 2 * 20)
  // one that has let nothing in knows as well
  const { limiters: two, tellEachOther: tell } = workers(2)
  for (let count = 0; count < 20; count++) two[0]!.enter('alice', limits)
  tell()
  expect(refusalOf(() => two[1]!.enter('alice', limits))?.code).toBe('rate-limit-exceeded')
  expect(refusalOf(() => two[1]!.enter('bob', limits))).toBeUndefined()
})

test('what others let in counts in full, though the user was last seen here long ago', () => {
  const { limiters, wait, tellEachOther } = workers(4)
  const limits = { requestsPerSecond: 10, burst: 50, concurrentRequests: 0 }
  for (const limiter of limiters) limiter.enter('alice', limits)
  tellEachOther()
  wait(60_000)
  let taken = 0
  // each of them is asked for all it gives, one after the other, within half a second
  for (const limiter of limiters) {
    while (!refusalOf(() => limiter.enter('alice', limits))) taken++
    tellEachOther()
    wait(100)
  }
  expect(taken).toBeGreaterThanOrEqual(50)
  expect(taken).toBeLessThanOrEqual(60)
})

test('a worker that was started again is told what is open within five seconds', () => {
  const { limiters } = workers(1)
  const [one] = limiters as [Limiter]
  const limits = { requestsPerSecond: 0, burst: 1, concurrentRequests: 4 }
  for (let count = 0; count < 4; count++) one.enter('alice', limits)
  one.share()
  const fresh = createLimiter({ isShared: true })
  for (let tick = 0; tick < 50; tick++) fresh.heard(0, one.share())
  expect(refusalOf(() => fresh.enter('alice', limits))?.code).toBe('concurrency-limit-exceeded')
})

test('workers share the number of open requests, and one that ends takes its own along', () => {
  const { limiters, tellEachOther } = workers(3)
  const limits = { requestsPerSecond: 0, burst: 1, concurrentRequests: 4 }
  const [one, two, three] = limiters as [Limiter, Limiter, Limiter]
  for (const limiter of [one, one, two]) limiter.enter('alice', limits)
  tellEachOther()
  three.enter('alice', limits)
  expect(refusalOf(() => three.enter('alice', limits))).toMatchObject({
    code: 'concurrency-limit-exceeded',
    message: expect.stringContaining('You have 4 calls'),
  })
  one.leave('alice')
  tellEachOther()
  three.enter('alice', limits)
  three.leave('alice')
  tellEachOther()
  two.enter('alice', limits)
  tellEachOther()
  expect(refusalOf(() => three.enter('alice', limits))?.code).toBe('concurrency-limit-exceeded')
  // worker two is gone with both of its requests
  three.left(1)
  for (let count = 0; count < 2; count++) three.enter('alice', limits)
  expect(refusalOf(() => three.enter('alice', limits))?.code).toBe('concurrency-limit-exceeded')
  // nothing has changed: nobody has to be told
  for (const limiter of limiters) limiter.share()
  expect(limiters.flatMap(limiter => limiter.share())).toEqual([])
})

const events = ({ response }: { response: import('node:http').ServerResponse }) => {
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  response.write('data: hello\n\n')
}

test('over the wire: defaults hold, an admin changes them for one user at once, and others are not touched', async () => {
  await using controlPlane = await startControlPlane(database, {
    environment: { SDP_USER_REQUESTS_PER_SECOND: '1', SDP_USER_BURST: '3' },
  })
  const keys = new Map<string, string>()
  for (const username of ['alice', 'bob']) {
    const { status, json } = await controlPlane.admin('POST', '/v1/users', { username })
    expect(status).toBe(201)
    keys.set(username, json.apiKey.key)
  }
  const call = (username: string, method = 'POST') =>
    controlPlane.ask({
      method,
      path: '/mcp',
      headers: { authorization: `Bearer ${keys.get(username)}` },
      ...(method === 'POST' ? { body: {} } : {}),
    })
  const statuses = async (username: string, count: number) => {
    const found: number[] = []
    for (let index = 0; index < count; index++) found.push((await call(username)).status)
    return found
  }
  /** calls until one is refused */
  const refusal = async (username: string) => {
    for (let index = 0; index < 100; index++) {
      const answer = await call(username)
      if (answer.status !== 200) return answer
    }
    throw new Error('a hundred calls were taken')
  }
  expect(await statuses('alice', 3)).toEqual([200, 200, 200])
  const refused = await refusal('alice')
  expect(refused.status).toBe(429)
  expect(refused.json).toMatchObject({ code: 'rate-limit-exceeded' })
  expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0)
  expect((await statuses('bob', 3)).every(status => status === 200)).toBe(true)

  const changed = await controlPlane.admin('PATCH', '/v1/users/alice', { limits: { requestsPerSecond: 0 } })
  expect(changed.json.limits).toEqual({ requestsPerSecond: 0, burst: 3, concurrentRequests: 200, sessions: 100 })
  expect((await statuses('alice', 20)).every(status => status === 200)).toBe(true)
  // null is the default again
  await controlPlane.admin('PATCH', '/v1/users/alice', { limits: { requestsPerSecond: null } })
  expect((await refusal('alice')).status).toBe(429)
  for (const limits of [
    { requestsPerSecond: -1 },
    { burst: 0 },
    { streams: 5 },
    { sessions: 1.5 },
    { sessions: 5_000 },
  ])
    expect((await controlPlane.admin('PATCH', '/v1/users/alice', { limits })).status).toBe(400)
})

test('over the wire: open streams count, a closed one makes room, and ending a session is always possible', async () => {
  await using controlPlane = await startControlPlane(database)
  const { json } = await controlPlane.admin('POST', '/v1/users', { username: 'carol' })
  await controlPlane.admin('PATCH', '/v1/users/carol', { limits: { concurrentRequests: 2 } })
  controlPlane.answerWith(events)
  const headers = { authorization: `Bearer ${json.apiKey.key}` }
  const open = () => controlPlane.open({ path: '/mcp', headers })
  const streams = [open(), open()]
  for (const { response } of streams) expect((await response).statusCode).toBe(200)
  const refused = await controlPlane.ask({ path: '/sse', headers })
  expect([refused.status, refused.json.code]).toEqual([429, 'concurrency-limit-exceeded'])
  const ending = controlPlane.open({ method: 'DELETE', path: '/mcp', headers })
  expect((await ending.response).statusCode).toBe(200)
  ending.request.destroy()
  streams[0]!.request.destroy()
  await eventually('room for another', async () => {
    const next = open()
    const { statusCode } = await next.response
    if (statusCode !== 200) next.request.destroy()
    return statusCode === 200 && streams.push(next)
  })
  for (const { request } of streams) request.destroy()
})

test('a change of the number of sessions makes a new generation, one of the other limits does not', async () => {
  await using controlPlane = await startControlPlane(database)
  await controlPlane.admin('POST', '/v1/users', { username: 'dave' })
  const generation = async () => {
    const [row] = await database.db.query<{ generation: string }>(
      "select generation from users where username = 'dave'",
    )
    return Number(row!.generation)
  }
  await controlPlane.admin('PATCH', '/v1/users/dave', {
    limits: { requestsPerSecond: 5, burst: 5, concurrentRequests: 5 },
  })
  expect(await generation()).toBe(1)
  await controlPlane.admin('PATCH', '/v1/users/dave', { limits: { sessions: 100 } })
  expect(await generation()).toBe(1)
  await controlPlane.admin('PATCH', '/v1/users/dave', { limits: { sessions: 7 } })
  expect(await generation()).toBe(2)
  expect((await controlPlane.users.settings(await controlPlane.users.idOf('dave'))).limits.sessions).toBe(7)
})
