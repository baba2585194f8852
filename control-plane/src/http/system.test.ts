import { afterEach, beforeEach, expect, inject, test } from 'vitest'
import { buildPublicApp } from '../app.ts'
import { createDb } from '../db.ts'
import { createMemoryEngine, createMemoryRuntime } from '../fleet/testing/memory-runtime.ts'
import { eventually } from '../fleet/testing/support.ts'
import { type Admin, openAdmin } from '../testing/admin.ts'
import { openTestDatabase } from '../testing/database.ts'
import { recordingLog } from '../testing/log.ts'
import { openRelay } from '../testing/relay.ts'

let admin: Admin
beforeEach(async () => {
  admin = await openAdmin(inject('postgres'))
})
afterEach(() => admin[Symbol.asyncDispose]())

const ready = (username: string) =>
  eventually('ready', async () => (await admin.call('GET', `/v1/users/${username}`)).json.instance.state === 'ready')

test('the system tells versions, health and counts', async () => {
  await admin.call('POST', '/v1/users', { username: 'alice' })
  await admin.call('POST', '/v1/users', { username: 'bob' })
  await Promise.all([ready('alice'), ready('bob')])
  await admin.call('PATCH', '/v1/users/bob', { suspended: true })
  await eventually('stopped', async () => (await admin.call('GET', '/v1/users/bob')).json.instance.state === 'stopped')
  expect((await admin.call('GET', '/v1/system')).json).toEqual({
    version: '1.2.3',
    node: process.version,
    workers: 1,
    uptimeSeconds: expect.any(Number),
    runtime: { status: 'ok', detail: null, kind: 'process', version: '1.0' },
    database: { status: 'ok', detail: null, version: expect.stringMatching(/^\d+/) },
    counts: { users: 2, suspended: 1, instances: { ready: 1, stopped: 1 } },
    masterKey: expect.objectContaining({ remaining: 0, running: false }),
  })
})

test('a runtime that is away is told with the reason, and the rest of the answer stands', async () => {
  admin.engine.down = true
  const { status, json } = await admin.call('GET', '/v1/system')
  expect(status).toBe(200)
  expect(json).toMatchObject({
    runtime: { status: 'failed', detail: expect.stringContaining('is down'), version: null },
    database: { status: 'ok' },
    counts: { users: 0 },
  })
})

test('the route table has each instance that is ready, by username', async () => {
  expect((await admin.call('GET', '/v1/routes')).json).toEqual({ routes: [] })
  for (const username of ['carol', 'alice']) await admin.call('POST', '/v1/users', { username })
  await Promise.all([ready('alice'), ready('carol')])
  const { json } = await admin.call('GET', '/v1/routes')
  expect(json.routes).toEqual(
    ['alice', 'carol'].map(username => ({
      username,
      address: expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+$/),
      generation: 1,
      openExchanges: 0,
    })),
  )
  await admin.call('DELETE', '/v1/users/carol')
  expect((await admin.call('GET', '/v1/routes')).json.routes).toHaveLength(1)
})

test('liveness needs nobody; readiness tells database and runtime apart', async () => {
  await using database = await openTestDatabase(inject('postgres'))
  await using relay = await openRelay(database.login)
  const db = createDb({ ...database.login, port: relay.port })
  const engine = createMemoryEngine()
  const { proxy } = admin
  const app = buildPublicApp({
    db,
    runtime: createMemoryRuntime(engine),
    proxy,
    consent: admin.consent,
    publicUrl: 'https://mcp.example.com',
    log: recordingLog().log,
    errorPages: { read: async () => undefined },
  })
  const look = async (url: string) => {
    const answer = await app.inject(url)
    return [answer.statusCode, answer.json()]
  }
  expect(await look('/healthz')).toEqual([200, { status: 'ok' }])
  expect(await look('/readyz')).toEqual([200, { status: 'ok', database: 'ok', runtime: 'ok' }])
  engine.down = true
  expect(await look('/readyz')).toEqual([503, { status: 'failed', database: 'ok', runtime: 'failed' }])
  await relay.shut()
  expect(await look('/readyz')).toEqual([503, { status: 'failed', database: 'failed', runtime: 'failed' }])
  expect((await app.inject('/readyz')).headers['retry-after']).toBe('5')
  expect(await look('/healthz')).toEqual([200, { status: 'ok' }])
  engine.down = false
  await relay.reopen()
  expect(await look('/readyz')).toEqual([200, { status: 'ok', database: 'ok', runtime: 'ok' }])
  await app.close()
  await db.close()
})

test('both listeners answer health checks without a token', async () => {
  for (const app of [admin.app, admin.publicApp])
    for (const url of ['/healthz', '/readyz', '/healthz/']) {
      const answer = await app.inject(url)
      expect(answer.statusCode).toBe(200)
      expect(answer.json()).toMatchObject({ status: 'ok' })
    }
})
