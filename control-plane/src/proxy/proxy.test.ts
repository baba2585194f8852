import {
  Agent,
  type ClientRequest,
  request as httpRequest,
  type IncomingMessage,
  type OutgoingHttpHeaders,
} from 'node:http'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { type SessionReport, statementAudience } from '@sdp-mcp/instance/contract'
import { createLocalJWKSet, jwtVerify } from 'jose'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest'
import { type Activity, createActivity } from '../activity.ts'
import { buildPublicApp } from '../app.ts'
import { createConsent } from '../consent.ts'
import { type Directory, openDirectory } from '../directory.ts'
import { AppError } from '../errors.ts'
import { createMemoryEngine, createMemoryRuntime } from '../fleet/testing/memory-runtime.ts'
import { eventually } from '../fleet/testing/support.ts'
import { createStatementSigner, type StatementSigner } from '../identity.ts'
import { fixedKeyring } from '../keyring.ts'
import { createMetrics } from '../metrics.ts'
import { testConfig } from '../testing/config.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { recordingLog } from '../testing/log.ts'
import { type Seen, sendRaw, startUpstream, type Upstream } from '../testing/upstream.ts'
import { createUsers } from '../users.ts'
import { createVault } from '../vault.ts'
import { createProxy, type McpProxy } from './proxy.ts'
import { createRoutes, type Routes } from './routes.ts'

// Everything is real but the fleet, which is not the subject: a table of addresses in its place.

const config = testConfig()
const { log, text: logged } = recordingLog()
let database: TestDatabase
let users: ReturnType<typeof createUsers>
let signer: StatementSigner
let directory: Directory
let routes: Routes
let proxy: McpProxy
let app: ReturnType<typeof buildPublicApp>
let port: number
let time: () => number = Date.now
let activity: Activity
/** what the old instance of a move says of its sessions, and how often it was asked */
let sessionsAt: (target: { generation: number }) => SessionReport = () => ({ sessions: [] })

/** Where instances are; a promise is one that is still starting. */
const instances = new Map<
  string,
  { address: string; generation: number } | Promise<{ address: string; generation: number }>
>()
const asked = { wakes: [] as string[], looks: [] as string[], aborted: 0 }
const fleet = {
  async ensureReady(userId: string, { signal }: { signal?: AbortSignal }) {
    asked.wakes.push(userId)
    signal?.addEventListener('abort', () => asked.aborted++)
    const instance = instances.get(userId)
    if (!instance)
      throw new AppError('instance-failed', 'The instance is not running. Its image is broken.', {
        retryAfterSeconds: 7,
      })
    const to = { ...(await instance), draining: null }
    routes.set(userId, to)
    return to
  },
  async reconcile(userId: string) {
    asked.looks.push(userId)
  },
}

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  const { db } = database
  users = createUsers({ db, vault: createVault({ db, keyring: fixedKeyring(config.masterKey) }), config })
  signer = createStatementSigner({ db, keyring: fixedKeyring(config.masterKey), now: Date.now })
  directory = await openDirectory({
    db,
    log,
    now: () => time(),
    elapsed: () => time(),
    config,
    onRevoked: revocation => proxy.cut(revocation),
    onChanged: () => {},
  })
})
beforeEach(async () => {
  routes = createRoutes()
  activity = createActivity({ db: database.db, now: () => time(), log })
  proxy = createProxy({
    directory,
    routes,
    fleet,
    signer,
    activity,
    control: { sessions: async target => sessionsAt(target) },
    metrics: createMetrics({ activity, version: 'test' }).proxy,
    now: () => time(),
    log,
  })
  app = buildPublicApp({
    db: database.db,
    runtime: createMemoryRuntime(createMemoryEngine()),
    proxy,
    consent: createConsent({ db: database.db, users, connections: undefined as never, config }),
    publicUrl: 'https://mcp.example.com',
    log,
    errorPages: { read: async () => undefined },
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  port = (app.server.address() as { port: number }).port
})
const upstreams: Upstream[] = []
afterEach(async () => {
  time = Date.now
  await proxy.close(0)
  app.server.closeAllConnections()
  await app.close()
  expect(proxy.open().size).toBe(0)
  await routes.close()
  for (const upstream of upstreams.splice(0)) await upstream[Symbol.asyncDispose]()
  const rows = await database.db.query<{ username: string }>('select username from users')
  for (const { username } of rows) await users.erase(await users.remove(username, 'admin'))
  instances.clear()
  Object.assign(asked, { wakes: [], looks: [], aborted: 0 })
})
const secrets: string[] = []
afterAll(async () => {
  await directory?.close()
  await database?.[Symbol.asyncDispose]()
  // what was logged in all of these tests
  expect(logged().length).toBeGreaterThan(1_000)
  for (const secret of secrets) expect(logged()).not.toContain(secret.slice(11))
  expect(logged()).not.toMatch(/eyJ[\w-]+\.eyJ/)
})

type Person = { userId: string; key: string; keyId: string; instance: Upstream; username: string }

/** A user whose instance answers. */
async function add(username: string, answer?: Upstream['answer']): Promise<Person> {
  const { userId, apiKey } = await users.create({ username }, 'admin')
  await directory.refresh(userId)
  const instance = await startUpstream(answer)
  upstreams.push(instance)
  const at = { address: instance.address, generation: 1 }
  instances.set(userId, at)
  routes.set(userId, at)
  secrets.push(apiKey.key)
  return { userId, key: apiKey.key, keyId: apiKey.id, instance, username }
}

type Options = {
  method?: string
  path?: string
  key?: string | undefined
  headers?: OutgoingHttpHeaders
  body?: string | Buffer
  agent?: Agent
}

function open({ method = 'GET', path = '/mcp', key, headers = {}, body, agent }: Options) {
  const request = httpRequest({
    port,
    host: '127.0.0.1',
    method,
    path,
    headers: { ...(key ? { authorization: `Bearer ${key}` } : {}), ...headers },
    agent: agent ?? false,
  })
  const response = new Promise<IncomingMessage>((done, failed) => {
    request.once('response', done)
    request.once('error', failed)
  })
  response.catch(() => {})
  request.end(body)
  return { request, response } as { request: ClientRequest; response: Promise<IncomingMessage> }
}

async function ask(options: Options) {
  const response = await open(options).response
  const chunks: Buffer[] = []
  for await (const chunk of response) chunks.push(chunk)
  const text = Buffer.concat(chunks).toString()
  let json: Record<string, unknown> = {}
  try {
    json = JSON.parse(text)
  } catch {}
  return { status: response.statusCode!, headers: response.headers, text, json }
}

const events = ({ response }: Seen) => {
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  response.write('data: hello\n\n')
}

/** An open event stream, and when it ended. */
async function stream(person: Person, path = '/mcp') {
  const { response, request } = open({ key: person.key, path })
  const incoming = await response
  expect(incoming.statusCode).toBe(200)
  const state = { endedAt: undefined as number | undefined, request }
  incoming.on('data', () => {})
  incoming.on('error', () => {})
  incoming.on('close', () => {
    state.endedAt = performance.now()
  })
  return state
}

describe('who gets where', () => {
  test('each of the addresses leads to one’s own instance, and the instance knows by which', async () => {
    const alice = await add('alice')
    const bob = await add('bob')
    for (const [method, path, at, prefix] of [
      ['GET', '/sse', '/sse', ''],
      ['GET', '/u/alice/sse', '/sse', '/u/alice'],
      ['GET', '/u/alice/sse/', '/sse', '/u/alice'],
      ['POST', '/messages?sessionId=1', '/messages?sessionId=1', ''],
      ['POST', '/u/alice/messages?sessionId=%20a&x=/../..', '/messages?sessionId=%20a&x=/../..', '/u/alice'],
      ['POST', '/mcp', '/mcp', ''],
      ['POST', '/mcp/', '/mcp', ''],
      ['GET', '/mcp?', '/mcp?', ''],
      ['DELETE', '/u/alice/mcp', '/mcp', '/u/alice'],
    ] as const) {
      const answer = await ask({ method, path, key: alice.key })
      expect(answer.status, path).toBe(200)
      const seen = alice.instance.seen.at(-1)!
      expect([seen.method, seen.url, seen.headers['x-forwarded-prefix']]).toEqual([method, at, prefix])
    }
    expect(bob.instance.seen).toEqual([])
  })

  test('the instance is told by a statement for it alone, and never sees the key', async () => {
    const alice = await add('alice')
    for (const headers of [
      { authorization: `Bearer ${alice.key}` },
      { authorization: `bearer ${alice.key}` },
      { 'x-api-key': alice.key },
    ])
      expect((await ask({ method: 'POST', path: '/mcp', body: '{}', headers })).status).toBe(200)
    const keys = createLocalJWKSet({ keys: await signer.publicKeys() })
    for (const { headers, rawHeaders } of alice.instance.seen) {
      const { payload } = await jwtVerify(headers.authorization!.slice(7), keys, {
        audience: statementAudience(alice.userId, 1),
        issuer: 'sdp-mcp',
      })
      expect(payload).toMatchObject({ purpose: 'mcp', sub: 'alice' })
      expect(rawHeaders.join()).not.toContain(alice.key)
    }
  })

  test('a key of somebody else and an unknown name get the same bytes', async () => {
    const alice = await add('alice')
    const bob = await add('bob')
    const request = (path: string) =>
      sendRaw(
        port,
        `GET ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nConnection: close\r\n\r\n`,
      )
    const withoutDate = (answer: string) => answer.replace(/^date: .*\r\n/im, '')
    for (const endpoint of ['mcp', 'sse', 'messages']) {
      const foreign = withoutDate(await request(`/u/bob/${endpoint}`))
      expect(foreign).toBe(withoutDate(await request(`/u/nobody/${endpoint}`)))
      expect(foreign).toMatch(/^HTTP\/1.1 404 /)
      expect(foreign).not.toContain('bob')
    }
    expect(bob.instance.seen).toEqual([])
    expect(alice.instance.seen).toEqual([])
  })

  test('without a key, an unknown name and an existing one get the same bytes', async () => {
    await add('alice')
    const request = (path: string) => sendRaw(port, `POST ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
    const [one, two] = await Promise.all([request('/u/alice/mcp'), request('/u/nobody/mcp')])
    expect(one.replace(/^date: .*\r\n/im, '')).toBe(two.replace(/^date: .*\r\n/im, ''))
    expect(one).toMatch(/^HTTP\/1.1 401 /)
  })

  // biome-ignore format: a table
  const spellings = [
    '/u/bob/../alice/mcp', '/u/alice/../bob/mcp', '/u/./bob/mcp', '/./mcp', '/../mcp', '/u/alice/mcp/..', '/u/alice/mcp/.',
    '/u/alice/mcp/../sse', '/u/%61lice/mcp', '/u/%62ob/mcp', '/u/alice/%6dcp', '/u/alice%2Fmcp', '/u%2Falice%2Fmcp',
    '/u/alice/mcp%2F', '/u/alice/mcp%00', '/u/alice/mcp%0a', '/u/alice/mcp%20', '/u/alice%252Fmcp', '/u/%2e%2e/mcp',
    '/u/..%2fbob/mcp', '/u/alice%2f..%2fbob/mcp', '/u/alice/%2e%2e/bob/mcp', '/u/alice/..;/bob/mcp', '/u//alice/mcp',
    '//u/alice/mcp', '//mcp', '/u/alice//mcp', '/u/alice/mcp//', '/U/alice/mcp', '/u/Alice/mcp', '/u/ALICE/mcp',
    '/u/alice/MCP', '/MCP', '/u/alice/mcp;x=1', '/u/alice;x/mcp', '/mcp;u=bob', '/u/alice/mcp%3Fx', '/u/alice\\mcp',
    '/u/alice/mcp#fragment', '/u/alice/mcp/extra', '/u/alice', '/u/alice/', '/u/', '/u', '/u/a/mcp',
    '/u/-alice/mcp', '/u/alice-/mcp', `/u/${'a'.repeat(33)}/mcp`, '/u/%C3%A4lice/mcp', '/u/%c0%ae/mcp',
    '/u/alice/%', '/%', '/mcp%', '/%zz/mcp', 'http://evil.example/u/bob/mcp', '/u/alice/healthz',
    '/u/alice/control/connection/revoke', '/control/connection/exchange', '/u/alice/.well-known/x', '/u/alice/mcp.json',
  ]

  test.each(spellings)('%j is nothing, and reaches nobody', async path => {
    const alice = await add('alice')
    const bob = await add('bob')
    for (const method of ['GET', 'POST']) {
      const answer = await sendRaw(
        port,
        Buffer.from(
          `${method} ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`,
        ),
      )
      expect(answer.split('\r\n')[0]).toBe('HTTP/1.1 404 Not Found')
      expect(answer).toMatch(/content-type: application\/problem\+json/i)
    }
    expect([...alice.instance.seen, ...bob.instance.seen]).toEqual([])
  })

  test.each(['/u/alice /mcp', '/u/älice/mcp', '/u/alice/ｍcp', '\\u\\alice\\mcp', '/u/alice\t/mcp', 'u/alice/mcp', ''])(
    '%j is no request at all',
    async path => {
      const alice = await add('alice')
      const answer = await sendRaw(
        port,
        `GET ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nConnection: close\r\n\r\n`,
      )
      expect(answer).toMatch(/^HTTP\/1.1 40[04] /)
      expect(alice.instance.seen).toEqual([])
    },
  )

  test('an instance that does not accept the statement is not this user’s: its answer stays hidden', async () => {
    const alice = await add('alice')
    // the address was bob's a moment ago, and an instance checks who is meant
    const keys = createLocalJWKSet({ keys: await signer.publicKeys() })
    alice.instance.answer = async ({ headers, response }) => {
      const accepted = await jwtVerify(headers.authorization!.slice(7), keys, { audience: 'instance:bob:1' }).then(
        () => true,
        () => false,
      )
      response.writeHead(accepted ? 200 : 401).end('marker of bob')
    }
    const answer = await ask({ method: 'POST', key: alice.key, body: '{}' })
    expect(answer.status).toBe(503)
    expect(answer.json).toMatchObject({ code: 'instance-unreachable' })
    expect(answer.headers['retry-after']).toBe('2')
    expect(answer.text).not.toContain('marker')
    expect(asked.wakes).toEqual([alice.userId, alice.userId])
  })

  test('an address that changed hands is found again without the client noticing', async () => {
    const alice = await add('alice')
    const stranger = await startUpstream(({ response }) => response.writeHead(401).end('marker of bob'))
    upstreams.push(stranger)
    routes.set(alice.userId, { address: stranger.address, generation: 1 })
    const answer = await ask({ method: 'POST', key: alice.key, body: '{"id":1}' })
    expect(answer.status).toBe(200)
    expect(alice.instance.seen[0]!.body.toString()).toBe('{"id":1}')
  })
})

describe('who is let in', () => {
  test.each(['GET', 'POST', 'DELETE'])('a %s without a key is told to bring one', async method => {
    for (const path of ['/mcp', '/u/alice/mcp', '/u/alice/sse', '/messages']) {
      const answer = await ask({ method, path })
      expect(answer.status).toBe(401)
      expect(answer.headers['www-authenticate']).toBe('Bearer realm="sdp-mcp"')
      expect(answer.headers['content-type']).toBe('application/problem+json')
      expect(answer.headers['cache-control']).toBe('no-store')
      expect(answer.json).toEqual({
        type: '/errors/api-key-required',
        title: 'A valid API key is required',
        status: 401,
        detail: expect.stringContaining('Authorization: Bearer <key>'),
        code: 'api-key-required',
      })
    }
  })

  test('nothing but a valid key in a header lets anybody in', async () => {
    const alice = await add('alice')
    const { key } = alice
    const wrong: Options[] = [
      { headers: { authorization: `Bearer ${key.slice(0, -1)}${key.endsWith('A') ? 'B' : 'A'}` } },
      { headers: { authorization: `Bearer ${key}x` } },
      { headers: { authorization: `Bearer  ${key}` } },
      { headers: { authorization: `Bearer ${key} ${key}` } },
      { headers: { authorization: `Basic ${Buffer.from(`alice:${key}`).toString('base64')}` } },
      { headers: { authorization: key } },
      { headers: { authorization: `Token ${key}` } },
      { headers: { authorization: 'Bearer' } },
      { headers: { authorization: '' } },
      { headers: { authorization: `Bearer ${config.admin.token.reveal()}` } },
      { headers: { authorization: 'Bearer wrong', 'x-api-key': key } },
      { headers: { 'x-api-key': [key, key] } },
      { headers: { 'x-api-key': `Bearer ${key}` } },
      { headers: { cookie: `key=${key}` } },
      { headers: { 'proxy-authorization': `Bearer ${key}` } },
      { path: `/mcp?api_key=${key}` },
      { path: `/mcp?key=${key}` },
      { path: `/mcp?access_token=${key}` },
      { path: `/u/alice/mcp?token=${key}&apiKey=${key}` },
    ]
    for (const options of wrong) {
      const answer = await ask({ method: 'POST', body: '{}', ...options })
      expect(answer.status, JSON.stringify(options)).toBe(401)
      expect(answer.headers['www-authenticate']).toBe('Bearer realm="sdp-mcp"')
      expect(answer.text).not.toContain(key.slice(11))
    }
    expect(alice.instance.seen).toEqual([])
  })

  test('an expired key is refused at that very moment', async () => {
    const alice = await add('alice')
    const expiresAt = Date.now() + 120_000
    const { key } = await users.issueKey('alice', { expiresAt: new Date(expiresAt).toISOString() }, 'admin', Date.now())
    await directory.refresh(alice.userId)
    time = () => expiresAt - 1
    expect((await ask({ key })).status).toBe(200)
    time = () => expiresAt
    expect((await ask({ key })).json).toMatchObject({ status: 401, code: 'api-key-required' })
  })

  test('when keys could not be checked for minutes nobody is let in, and nothing is said of the key', async () => {
    const alice = await add('alice')
    time = () => Date.now() + 6 * 60_000
    const answer = await ask({ key: alice.key })
    expect(answer).toMatchObject({ status: 503, json: { code: 'database-unavailable' } })
    expect(answer.headers['retry-after']).toBe('10')
  })

  test('a suspended user is told so and reaches nothing', async () => {
    const alice = await add('alice')
    await users.change('alice', { suspended: true }, 'admin')
    await directory.refresh(alice.userId)
    for (const method of ['GET', 'POST', 'DELETE'])
      expect(await ask({ method, key: alice.key })).toMatchObject({ status: 403, json: { code: 'user-suspended' } })
    expect(alice.instance.seen).toEqual([])
    await users.change('alice', { suspended: false }, 'admin')
    await directory.refresh(alice.userId)
    expect((await ask({ key: alice.key })).status).toBe(200)
  })

  test.each([
    ['PUT', '/mcp', 'POST, GET, DELETE'],
    ['PATCH', '/mcp', 'POST, GET, DELETE'],
    ['OPTIONS', '/mcp', 'POST, GET, DELETE'],
    ['HEAD', '/mcp', 'POST, GET, DELETE'],
    ['POST', '/sse', 'GET'],
    ['DELETE', '/u/alice/sse', 'GET'],
    ['GET', '/messages', 'POST'],
  ])('%s %s is answered with what is allowed there', async (method, path, allowed) => {
    const alice = await add('alice')
    const answer = await ask({ method, path, key: alice.key })
    expect(answer.status).toBe(405)
    expect(answer.headers.allow).toBe(allowed)
    if (method !== 'HEAD') expect(answer.json).toMatchObject({ code: 'method-not-allowed' })
    expect(alice.instance.seen).toEqual([])
  })

  test.each([
    '/.well-known/oauth-protected-resource',
    '/.well-known/oauth-protected-resource/u/alice/mcp',
    '/.well-known/oauth-authorization-server',
    '/.well-known/openid-configuration',
    '/register',
    '/authorize',
    '/token',
    '/nothing',
  ])('a client looking for OAuth at %s is told cleanly that there is none', async path => {
    for (const method of ['GET', 'POST']) {
      const answer = await ask({
        method,
        path,
        body: method === 'POST' ? '{"client_name":"x"}' : undefined,
        headers: { 'content-type': 'application/json' },
      })
      expect(answer).toMatchObject({ status: 404, json: { code: 'not-found', status: 404 } })
      expect(answer.headers['content-type']).toContain('application/problem+json')
    }
  })
})

describe('revocation', () => {
  test('ends the open streams of a revoked key within a second, and leaves those of other keys', async () => {
    const alice = await add('alice', events)
    const second = await users.issueKey('alice', {}, 'admin', Date.now())
    await directory.refresh(alice.userId)
    const bob = await add('bob', events)
    const doomed = await Promise.all([stream(alice), stream(alice, '/u/alice/sse'), stream(alice)])
    const spared = await Promise.all([stream({ ...alice, key: second.key }), stream(bob)])
    expect(proxy.open().get(alice.userId)).toBe(4)
    const before = performance.now()
    await users.revokeKey('alice', alice.keyId, 'admin')
    for (const one of doomed) {
      await eventually('ended', () => one.endedAt, 2_000)
      expect(one.endedAt! - before).toBeLessThan(1_000)
    }
    await eventually('gone at the instance', () => alice.instance.seen.filter(seen => seen.goneAt).length === 3)
    expect(spared.map(one => one.endedAt)).toEqual([undefined, undefined])
    expect(proxy.open().get(alice.userId)).toBe(1)
    expect((await ask({ key: alice.key })).status).toBe(401)
  })

  test.each([
    ['suspended', () => users.change('alice', { suspended: true }, 'admin')],
    ['removed', () => users.remove('alice', 'admin')],
  ])('ends every stream and call of a user that is %s, within a second', async (_what, act) => {
    const alice = await add('alice', seen => (seen.method === 'GET' ? events(seen) : undefined))
    const second = await users.issueKey('alice', {}, 'admin', Date.now())
    await directory.refresh(alice.userId)
    const bob = await add('bob', events)
    const streams = await Promise.all([stream(alice), stream({ ...alice, key: second.key })])
    const spared = await stream(bob)
    const call = open({ method: 'POST', key: alice.key, body: '{}' })
    await eventually('arrived', () => alice.instance.seen.some(seen => seen.method === 'POST'))
    const before = performance.now()
    await act()
    await expect(call.response).rejects.toThrow()
    for (const one of streams) await eventually('ended', () => one.endedAt, 2_000)
    expect(performance.now() - before).toBeLessThan(1_000)
    expect(spared.endedAt).toBeUndefined()
  })

  test('while a request waits for its instance keeps it out', async () => {
    const alice = await add('alice', events)
    routes.set(alice.userId, null)
    let ready = (_instance: { address: string; generation: number }) => {}
    instances.set(
      alice.userId,
      new Promise(done => {
        ready = done
      }),
    )
    const waiting = ask({ key: alice.key })
    await eventually('waits', () => asked.wakes.length === 1)
    await users.revokeKey('alice', alice.keyId, 'admin')
    await directory.refresh(alice.userId)
    ready({ address: alice.instance.address, generation: 1 })
    expect(await waiting).toMatchObject({ status: 401 })
    expect(alice.instance.seen).toEqual([])
  })
})

describe('an instance that is not there', () => {
  test('is woken, and the request goes through as if it had been there', async () => {
    const alice = await add('alice')
    routes.set(alice.userId, null)
    const answer = await ask({ method: 'POST', key: alice.key, body: '{"id":1}' })
    expect(answer.status).toBe(200)
    expect(alice.instance.seen[0]!.body.toString()).toBe('{"id":1}')
    expect(asked.wakes).toEqual([alice.userId])
  })

  test.each([0, 2, 70_000, 4 * 1024 * 1024])(
    'a POST of %i bytes to an address nobody answers at is repeated with the very same bytes',
    async size => {
      const alice = await add('alice')
      const gone = await startUpstream()
      await gone.die()
      routes.set(alice.userId, { address: gone.address, generation: 1 })
      const body = Buffer.alloc(size, 'abcdefg')
      const answer = await ask({
        method: 'POST',
        key: alice.key,
        body,
        headers: { 'content-type': 'application/json' },
      })
      expect(answer.status).toBe(200)
      expect(alice.instance.seen).toHaveLength(1)
      expect(alice.instance.seen[0]!.body.equals(body)).toBe(true)
      expect(asked.wakes).toEqual([alice.userId])
    },
  )

  test('that cannot be started is told with the reason and when to try again', async () => {
    const alice = await add('alice')
    routes.set(alice.userId, null)
    instances.delete(alice.userId)
    const answer = await ask({ key: alice.key })
    expect(answer).toMatchObject({
      status: 503,
      json: { code: 'instance-failed', detail: expect.stringContaining('Its image is broken.') },
    })
    expect(answer.headers['retry-after']).toBe('7')
    expect(answer.headers['content-type']).toBe('application/problem+json')
  })

  test('a client that goes away while its instance starts ends its waiting', async () => {
    const alice = await add('alice')
    routes.set(alice.userId, null)
    let ready = (_instance: { address: string; generation: number }) => {}
    instances.set(
      alice.userId,
      new Promise(done => {
        ready = done
      }),
    )
    const { request } = open({ method: 'POST', key: alice.key, body: '{}' })
    request.on('error', () => {})
    await eventually('waits', () => asked.wakes.length === 1)
    request.destroy()
    await eventually('aborted', () => asked.aborted === 1)
    ready({ address: alice.instance.address, generation: 1 })
    await delay(50)
    expect(alice.instance.seen).toEqual([])
  })

  test('that dies in the middle of a call is told as such, once, and looked after', async () => {
    const alice = await add('alice', () => {})
    const answer = ask({ method: 'POST', key: alice.key, body: '{"id":1}' })
    await eventually('arrived', () => alice.instance.seen.length === 1)
    await alice.instance.die()
    const told = await answer
    expect(told).toMatchObject({ status: 502, json: { code: 'instance-ended' } })
    // what repeats by itself would do it twice
    expect(told.headers['retry-after']).toBeUndefined()
    // it may have done what it was asked: only the client may repeat that
    expect(alice.instance.seen).toHaveLength(1)
    expect(asked.looks).toEqual([alice.userId])
    expect(asked.wakes).toEqual([])
  })

  test('that dies under open streams ends each of them within 100 ms', { retry: 2 }, async () => {
    const alice = await add('alice', events)
    const streams = await Promise.all([...Array(20)].map(() => stream(alice)))
    const before = performance.now()
    await alice.instance.die()
    for (const one of streams) await eventually('ended', () => one.endedAt, 1_000)
    for (const one of streams) expect(one.endedAt! - before).toBeLessThan(100)
    await eventually('nothing open', () => proxy.open().size === 0)
  })

  test('five hundred rapid requests to a dead port are all answered, and nothing is left behind', async () => {
    const alice = await add('alice')
    const bob = await add('bob')
    await alice.instance.die()
    const agent = new Agent({ keepAlive: true, maxSockets: 50 })
    const answers = await Promise.all(
      [...Array(500)].map((_, index) =>
        ask({
          method: index % 2 ? 'POST' : 'GET',
          key: alice.key,
          agent,
          ...(index % 2 ? { body: JSON.stringify({ id: index, pad: 'x'.repeat(index * 10) }) } : {}),
        }),
      ),
    )
    for (const answer of answers) expect(answer).toMatchObject({ status: 503, json: { code: 'instance-unreachable' } })
    agent.destroy()
    expect(proxy.open().size).toBe(0)
    expect((await ask({ key: bob.key })).status).toBe(200)
  })

  test('a thousand exchanges that break at any point leave no socket behind', async () => {
    const sockets = () => process.getActiveResourcesInfo().filter(kind => /^TCP(Socket|Connect)/.test(kind)).length
    const alice = await add('alice')
    const before = sockets()
    let count = 0
    alice.instance.answer = ({ response }) => {
      switch (count++ % 5) {
        case 0:
          return void response.socket?.destroy()
        case 1:
          response.writeHead(200, { 'content-length': 10 })
          response.write('x')
          return void setImmediate(() => response.socket?.destroy())
        case 2:
          response.writeHead(200, { 'content-type': 'text/event-stream' })
          response.write('data: x\n\n')
          return void setTimeout(() => response.socket?.resetAndDestroy(), 2)
        case 3:
          return void response.end('fine')
        // the client loses patience
        default:
      }
    }
    const agent = new Agent({ keepAlive: true, maxSockets: 40 })
    await Promise.all(
      [...Array(1_000)].map((_, index) => {
        const { request, response } = open({
          method: index % 2 ? 'POST' : 'GET',
          key: alice.key,
          agent,
          ...(index % 2 ? { body: '{}' } : {}),
        })
        const impatient = setTimeout(() => request.destroy(), 300)
        return response
          .then(async incoming => {
            for await (const _ of incoming);
          })
          .catch(() => {})
          .finally(() => clearTimeout(impatient))
      }),
    )
    agent.destroy()
    await eventually('nothing open', () => proxy.open().size === 0)
    await eventually('no socket left', () => {
      // a request whose client has just gone may have woken the instance once more
      routes.set(alice.userId, null)
      return sockets() <= before
    })
  }, 120_000)

  test('a route that is replaced leaves the calls on the old instance alone', async () => {
    const alice = await add('alice')
    let finish = () => {}
    alice.instance.answer = ({ response }) => {
      finish = () => response.end('from the old one')
    }
    const call = ask({ method: 'POST', key: alice.key, body: '{}' })
    await eventually('arrived', () => alice.instance.seen.length === 1)
    const next = await startUpstream(({ response }) => response.end('from the new one'))
    upstreams.push(next)
    routes.set(alice.userId, { address: next.address, generation: 2 })
    expect((await ask({ method: 'POST', key: alice.key, body: '{}' })).text).toBe('from the new one')
    finish()
    expect((await call).text).toBe('from the old one')
  })

  test('replacing a route under fire loses nothing', async () => {
    const alice = await add('alice')
    const next = await startUpstream()
    upstreams.push(next)
    let over = false
    const flipping = (async () => {
      for (let generation = 2; !over; generation++) {
        const { address } = generation % 2 ? alice.instance : next
        instances.set(alice.userId, { address, generation })
        routes.set(alice.userId, { address, generation })
        await delay(10)
      }
    })()
    const agent = new Agent({ keepAlive: true, maxSockets: 10 })
    const answers = await Promise.all(
      [...Array(300)].map(() => ask({ method: 'POST', key: alice.key, body: '{}', agent })),
    )
    over = true
    await flipping
    agent.destroy()
    expect(answers.filter(answer => answer.status !== 200).map(answer => answer.text)).toEqual([])
  })
})

describe('bad requests', () => {
  const limit = 4 * 1024 * 1024

  test('a body that is announced as too large is refused before it is sent', async () => {
    const alice = await add('alice')
    const before = performance.now()
    const answer = await sendRaw(
      port,
      `POST /mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nContent-Length: ${limit + 1}\r\n\r\n`,
      text => text.includes('body-too-large'),
    )
    expect(performance.now() - before).toBeLessThan(1_000)
    expect(answer).toMatch(/^HTTP\/1.1 413 /)
    expect(alice.instance.seen).toEqual([])
  })

  test('a body of unknown length is refused as soon as it is too large', async () => {
    const alice = await add('alice')
    const request = httpRequest({
      port,
      method: 'POST',
      path: '/mcp',
      agent: false,
      headers: { authorization: `Bearer ${alice.key}` },
    })
    const answered = new Promise<IncomingMessage>((done, failed) =>
      request.once('response', done).once('error', failed),
    )
    let sent = 0
    const sending = setInterval(() => {
      if (sent < 40) request.write(Buffer.alloc(256 * 1024))
      sent++
    }, 2)
    const answer = await answered
    clearInterval(sending)
    expect(answer.statusCode).toBe(413)
    request.destroy()
    expect(alice.instance.seen).toEqual([])
  })

  test('a client that goes on sending after its refusal is cut off', async () => {
    const alice = await add('alice')
    const socket = connect(port, '127.0.0.1')
    let answer = ''
    socket.on('data', chunk => {
      answer += chunk
    })
    socket.on('error', () => {})
    socket.write(
      `POST /mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nContent-Length: ${1024 ** 3}\r\n\r\n`,
    )
    const before = performance.now()
    const sending = setInterval(() => socket.write(Buffer.alloc(64 * 1024)), 20)
    await new Promise(done => socket.once('close', done))
    clearInterval(sending)
    expect(answer).toMatch(/^HTTP\/1.1 413 /)
    expect(performance.now() - before).toBeLessThan(8_000)
  }, 15_000)

  test('a connection stays of use after a refusal whose body was not read', async () => {
    const alice = await add('alice')
    const body = 'x'.repeat(200_000)
    const answers = await sendRaw(
      port,
      `POST /u/bob/mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nContent-Length: ${body.length}\r\n\r\n${body}` +
        `POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}` +
        `POST /mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}`,
    )
    expect(answers.match(/HTTP\/1.1 \d+/g)).toEqual(['HTTP/1.1 404', 'HTTP/1.1 401', 'HTTP/1.1 200'])
    expect(alice.instance.seen.map(seen => seen.body.toString())).toEqual(['{}'])
  })

  test('"Connection: close" is honoured after the whole answer', async () => {
    const alice = await add('alice')
    const answer = await sendRaw(
      port,
      `POST /mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}`,
    )
    expect(answer).toMatch(/^HTTP\/1.1 200 OK\r\n/)
    expect(answer).toMatch(/connection: close/i)
    expect(answer).toContain(Buffer.from('{}').toString('base64'))
  })

  test.each([
    ['two lengths', 'Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}'],
    [
      'a length and chunks',
      'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /u/bob/mcp HTTP/1.1\r\n\r\n',
    ],
    ['chunks of no number', 'Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n'],
    ['a transfer encoding nobody knows', 'Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n'],
    ['a length of no number', 'Content-Length: 2x\r\n\r\n{}'],
    ['a negative length', 'Content-Length: -2\r\n\r\n{}'],
    ['a folded header', 'Content-Length: 2\r\nX-One: a\r\n b\r\n\r\n{}'],
    ['a header with a NUL', 'Content-Length: 2\r\nX-One: a\0b\r\n\r\n{}'],
    ['headers without end', `X-One: ${'a'.repeat(40_000)}\r\n\r\n`],
    ['two thousand headers', `${[...Array(3_000)].map((_, index) => `X-${index}: 1`).join('\r\n')}\r\n\r\n`],
  ])('a request with %s is refused and reaches nobody, and the next one is served', async (_what, rest) => {
    const alice = await add('alice')
    const bob = await add('bob')
    const answer = await sendRaw(
      port,
      `POST /mcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${alice.key}\r\n${rest}`,
      text => text.includes('\r\n\r\n'),
    ).catch(() => 'HTTP/1.1 400 connection cut')
    expect(answer).toMatch(/^HTTP\/1.1 4\d\d /)
    // what was read of a chunked body by then is thrown away
    expect(bob.instance.seen).toEqual([])
    expect(alice.instance.seen).toEqual([])
    expect((await ask({ key: alice.key })).status).toBe(200)
  })

  test('a slow sender does not reach the instance before it is done', async () => {
    const alice = await add('alice')
    const request = httpRequest({
      port,
      method: 'POST',
      path: '/mcp',
      agent: false,
      headers: { authorization: `Bearer ${alice.key}`, 'content-length': 10 },
    })
    const answered = new Promise<IncomingMessage>(done => request.once('response', done))
    for (let index = 0; index < 10; index++) {
      expect(alice.instance.seen).toEqual([])
      request.write('x')
      await delay(10)
    }
    request.end()
    expect((await answered).statusCode).toBe(200)
    expect(alice.instance.seen[0]!.body.toString()).toBe('xxxxxxxxxx')
  })
})

describe('ending', () => {
  test('streams end at once, calls may finish, what comes later is told to come back', async () => {
    const alice = await add('alice')
    let finish = () => {}
    alice.instance.answer = seen => {
      if (seen.method === 'GET') events(seen)
      else finish = () => seen.response.end('finished')
    }
    const [one, call] = [await stream(alice), ask({ method: 'POST', key: alice.key, body: '{}' })]
    await eventually('arrived', () => alice.instance.seen.length === 2)
    const agent = new Agent({ keepAlive: true })
    await ask({ path: '/healthz', agent })
    const closed = proxy.close(5_000)
    await eventually('ended', () => one.endedAt, 1_000)
    const late = await ask({ key: alice.key, agent })
    expect(late).toMatchObject({ status: 503, json: { code: 'control-plane-stopping' } })
    expect(late.headers).toMatchObject({ connection: 'close', 'retry-after': '5' })
    finish()
    expect((await call).text).toBe('finished')
    await closed
    agent.destroy()
  })

  test('a stream that waits for its instance does not begin any more, and holds up nothing', async () => {
    const alice = await add('alice', events)
    routes.set(alice.userId, null)
    const { address } = alice.instance
    const { promise, resolve } = Promise.withResolvers<{ address: string; generation: number }>()
    instances.set(alice.userId, promise)
    const answer = ask({ key: alice.key })
    await eventually('waits', () => asked.wakes.length === 1)
    const { aborted } = asked
    await proxy.close(5_000)
    expect(asked.aborted).toBe(aborted + 1)
    resolve({ address, generation: 1 })
    expect(await answer).toMatchObject({ status: 503, json: { code: 'control-plane-stopping' } })
    expect(alice.instance.seen).toEqual([])
  })

  test('a call that does not finish in time is cut', async () => {
    const alice = await add('alice', () => {})
    const call = ask({ method: 'POST', key: alice.key, body: '{}' })
    const cut = expect(call).rejects.toThrow()
    await eventually('arrived', () => alice.instance.seen.length === 1)
    const before = performance.now()
    await proxy.close(200)
    await cut
    expect(performance.now() - before).toBeLessThan(1_000)
  })
})

describe('while a user is moved to another instance', () => {
  const session = (id: string): SessionReport['sessions'][number] => ({
    id,
    transport: 'streamable',
    client: null,
    startedAt: new Date().toISOString(),
    lastActivityAt: new Date().toISOString(),
    calls: 1,
    inFlight: 0,
    openStreams: 0,
    bytesIn: 0,
    bytesOut: 0,
  })

  test('sessions of the old one stay with it, new ones go to the new one, and each is asked about once', async () => {
    const alice = await add('alice')
    const next = await startUpstream()
    upstreams.push(next)
    const old = { address: alice.instance.address, generation: 1 }
    const questions: number[] = []
    let atOld = ['s1', 's2']
    sessionsAt = ({ generation }) => {
      questions.push(generation)
      return { sessions: atOld.map(session) }
    }
    // a call under way on the old one is not disturbed
    const held: Seen[] = []
    alice.instance.answer = seen => void held.push(seen)
    const underWay = ask({
      method: 'POST',
      path: '/mcp',
      key: alice.key,
      headers: { 'mcp-session-id': 's1' },
      body: '{}',
    })
    await eventually('it arrived', () => held.length === 1)
    routes.set(alice.userId, { address: next.address, generation: 2, draining: old })
    alice.instance.answer = ({ response }) => void response.end('old')
    next.answer = ({ response }) => void response.end('new')
    const where = async (path: string, id?: string) =>
      (await ask({ method: 'POST', path, key: alice.key, body: '{}', headers: id ? { 'mcp-session-id': id } : {} }))
        .text
    expect(await where('/mcp')).toBe('new')
    expect(questions).toEqual([])
    expect(await where('/mcp', 's1')).toBe('old')
    expect(await where('/messages?sessionId=s2')).toBe('old')
    expect(await where('/u/alice/messages?x=1&sessionId=s2')).toBe('old')
    expect(questions).toEqual([1])
    expect(await where('/mcp', 'born-on-the-new-one')).toBe('new')
    expect(await where('/mcp', 'born-on-the-new-one')).toBe('new')
    expect(questions).toEqual([1, 1])
    // began on the old one in the very moment of the move
    atOld = [...atOld, 's3']
    expect(await where('/mcp', 's3')).toBe('old')
    held[0]!.response.end('whole')
    expect((await underWay).text).toBe('whole')
    // over: everybody goes to the new one, over the connections that are there
    routes.set(alice.userId, { address: next.address, generation: 2 })
    expect(await where('/mcp', 's1')).toBe('new')
    expect(questions).toHaveLength(3)
  })

  test('an old instance that does not answer once takes no session from its place', async () => {
    const alice = await add('alice')
    const next = await startUpstream()
    upstreams.push(next)
    const deaf = new Set([1, 2])
    sessionsAt = ({ generation }) => {
      if (deaf.has(generation)) throw new AppError('instance-unreachable', 'It did not answer in time. Try again.')
      return { sessions: [session(generation === 1 ? 'born-old' : 'born-new')] }
    }
    routes.set(alice.userId, {
      address: next.address,
      generation: 2,
      draining: { address: alice.instance.address, generation: 1 },
    })
    alice.instance.answer = ({ response }) => void response.end('old')
    next.answer = ({ response }) => void response.end('new')
    const send = (id: string) =>
      ask({ method: 'POST', path: '/mcp', key: alice.key, body: '{}', headers: { 'mcp-session-id': id } })
    // nobody says where it is: the client is told to come again
    const refused = await send('born-old')
    expect([refused.status, refused.headers['retry-after'], JSON.parse(refused.text).code]).toEqual([
      503,
      '2',
      'instance-unreachable',
    ])
    // the new one says what it has; all else is the old one's
    deaf.delete(2)
    expect((await send('born-old')).text).toBe('old')
    expect((await send('born-new')).text).toBe('new')
    // and nothing wrong was remembered
    deaf.delete(1)
    expect((await send('born-old')).text).toBe('old')
    expect((await send('born-new')).text).toBe('new')
  })

  test('each side is told by a statement of its own', async () => {
    const alice = await add('alice')
    const next = await startUpstream()
    upstreams.push(next)
    sessionsAt = () => ({ sessions: [session('s1')] })
    routes.set(alice.userId, {
      address: next.address,
      generation: 2,
      draining: { address: alice.instance.address, generation: 1 },
    })
    await ask({ method: 'POST', path: '/mcp', key: alice.key, headers: { 'mcp-session-id': 's1' }, body: '{}' })
    await ask({ method: 'POST', path: '/mcp', key: alice.key, body: '{}' })
    const keys = createLocalJWKSet({ keys: await signer.publicKeys() })
    for (const [side, generation] of [
      [alice.instance, 1],
      [next, 2],
    ] as const)
      await jwtVerify(side.seen.at(-1)!.headers.authorization!.slice(7), keys, {
        audience: statementAudience(alice.userId, generation),
      })
  })
})

test('what fails for want of a working instance counts, and a limit the instance keeps does not', async () => {
  const alice = await add('alice')
  const meter = activity.meter(alice.userId)
  const call = () => ask({ method: 'POST', path: '/mcp', key: alice.key, body: '{}' })
  alice.instance.answer = ({ response }) => void response.writeHead(503, { 'retry-after': '60' }).end('all in use')
  expect((await call()).status).toBe(503)
  expect(meter).toMatchObject({ requests: 1, failures: 0 })
  // it cannot be reached, however often that is tried
  await alice.instance[Symbol.asyncDispose]()
  expect((await call()).status).toBe(503)
  expect(meter).toMatchObject({ requests: 2, failures: 1 })
  // it cannot be started
  routes.set(alice.userId, null)
  instances.delete(alice.userId)
  expect((await call()).status).toBe(503)
  expect(meter).toMatchObject({ requests: 3, failures: 2 })
})

test('activity counts calls, streams and bytes apart, and takes a keep-alive for none', async () => {
  const alice = await add('alice')
  let clock = 1_000_000_000_000
  time = () => clock
  const meter = activity.meter(alice.userId)
  const held: Seen[] = []
  alice.instance.answer = seen => {
    if (seen.method === 'GET') {
      seen.response.writeHead(200, { 'content-type': 'text/event-stream' })
      seen.response.write('data: hello\n\n')
    }
    held.push(seen)
  }
  const open = await stream(alice)
  expect(meter).toMatchObject({ streams: 1, calls: 0, requests: 1, activeAt: clock })
  const began = meter.bytesOut
  expect(began).toBe(13)
  clock += 60_000
  held[0]!.response.write(': keep-alive\n\n')
  await eventually('it came', () => meter.bytesOut > began)
  expect(meter.activeAt).toBe(clock - 60_000)
  held[0]!.response.write('data: something\n\n')
  await eventually('that counts', () => meter.activeAt === clock)

  const call = ask({ method: 'POST', path: '/mcp', key: alice.key, body: '{"id":1}' })
  await eventually('it arrived', () => held.length === 2)
  expect(meter).toMatchObject({ streams: 1, calls: 1, bytesIn: 8, requests: 2 })
  clock += 60_000
  held[1]!.response.writeHead(500).end('broken')
  await call
  expect(meter).toMatchObject({ streams: 1, calls: 0, failures: 1, activeAt: clock })
  clock += 60_000
  open.request.destroy()
  await eventually('the stream is over', () => meter.streams === 0)
  expect(meter).toMatchObject({ failures: 1, activeAt: clock })
})
