import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bearer, listTools, post } from '../../support/attacker.ts'
import { connect } from '../../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../../support/stack.ts'

// Whoever has one key tries to be somebody else.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let bob: Awaited<ReturnType<Stack['addUser']>>

beforeAll(async () => {
  stack = await startStack()
  ;[alice, bob] = await Promise.all([stack.addUser('alice'), stack.addUser('bob')])
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const sessionOf = (client: { transport?: unknown }) => (client.transport as { sessionId: string }).sessionId

async function told(response: Response) {
  const headers = Object.fromEntries([...response.headers].filter(([name]) => name !== 'date'))
  return { status: response.status, headers, body: await response.text() }
}

/** The id of a session of the legacy transport, whose stream stays open until `close`. */
async function legacySession(user: typeof alice) {
  const gone = new AbortController()
  const response = await fetch(user.sse, { headers: bearer(user.key), signal: gone.signal })
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  while (!/sessionId=[\w-]+\s/.test(text)) text += (await reader.read()).value
  return { id: /sessionId=([\w-]+)/.exec(text)![1]!, reader, close: () => gone.abort() }
}

test("attack: alice's key on every endpoint and method of bob is answered like a user who does not exist", async () => {
  for (const [method, path] of [
    ['GET', 'sse'],
    ['POST', 'messages?sessionId=x'],
    ['POST', 'mcp'],
    ['GET', 'mcp'],
    ['DELETE', 'mcp'],
    ['PUT', 'mcp'],
    ['OPTIONS', 'mcp'],
  ] as const) {
    const ask = async (username: string) =>
      told(await fetch(`${stack.publicUrl}/u/${username}/${path}`, { method, headers: bearer(alice.key) }))
    const foreign = await ask('bob')
    expect([method, path, foreign.status]).toEqual([method, path, 404])
    expect(foreign).toEqual(await ask('nobody-here'))
  }
})

test("attack: bob's Streamable HTTP session id with alice's key is unknown on her own and on the shared URL", async () => {
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  const session = { 'mcp-session-id': sessionOf(asBob) }
  for (const url of [alice.mcp, `${stack.publicUrl}/mcp`]) {
    const answer = await told(await post(url, { ...bearer(alice.key), ...session }))
    const unknown = await told(await post(url, { ...bearer(alice.key), 'mcp-session-id': crypto.randomUUID() }))
    expect(answer.status).toBe(404)
    expect(answer).toEqual(unknown)
    // the id is right, only the person is not
    expect((await post(url.replace('/u/alice', '/u/bob'), { ...bearer(bob.key), ...session })).status).toBe(200)
  }
})

test("attack: a message into bob's open legacy stream with alice's key is refused and nothing arrives in the stream", async () => {
  const stream = await legacySession(bob)
  for (const url of [`${stack.publicUrl}/u/alice/messages`, `${stack.publicUrl}/messages`])
    expect((await post(`${url}?sessionId=${stream.id}`, bearer(alice.key))).status).toBe(404)
  expect((await post(`${stack.publicUrl}/u/bob/messages?sessionId=${stream.id}`, bearer(alice.key))).status).toBe(404)
  // the first thing in the stream is the answer to bob's own message
  const own = { ...listTools, id: 'of-bob', method: 'ping' }
  expect((await post(`${stack.publicUrl}/messages?sessionId=${stream.id}`, bearer(bob.key), own)).status).toBe(202)
  expect((await stream.reader.read()).value).toContain('"id":"of-bob"')
  stream.close()
})

test("attack: a DELETE of bob's session by alice ends nothing", async () => {
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  for (const url of [alice.mcp, `${stack.publicUrl}/mcp`, bob.mcp])
    expect(
      (
        await fetch(url, {
          method: 'DELETE',
          headers: { ...bearer(alice.key), 'mcp-session-id': sessionOf(asBob) },
        })
      ).status,
    ).toBe(404)
  expect((await asBob.listTools()).tools.length).toBeGreaterThan(0)
})

test("attack: resuming with bob's Last-Event-ID yields none of his events", async () => {
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  await using asAlice = await connect('mcp', alice.mcp, alice.key)
  const call = await post(bob.mcp, { ...bearer(bob.key), 'mcp-session-id': sessionOf(asBob) })
  const eventId = /^id: ?(.+)$/m.exec(await call.text())![1]!
  const resume = (session: string) =>
    fetch(alice.mcp, {
      headers: {
        ...bearer(alice.key),
        accept: 'text/event-stream',
        'mcp-session-id': session,
        'last-event-id': eventId,
      },
    })
  const [theirs, own] = await Promise.all([resume(sessionOf(asBob)), resume(sessionOf(asAlice))])
  expect([theirs.status, own.status]).toEqual([404, 400])
  expect((await theirs.text()) + (await own.text())).not.toContain('search_requests')
})

test('attack: a session id of one transport opens nothing on the other', async () => {
  const stream = await legacySession(bob)
  expect((await post(bob.mcp, { ...bearer(bob.key), 'mcp-session-id': stream.id })).status).toBe(404)
  await using client = await connect('mcp', bob.mcp, bob.key)
  expect((await post(`${stack.publicUrl}/messages?sessionId=${sessionOf(client)}`, bearer(bob.key))).status).toBe(404)
  stream.close()
})

test('attack: session ids cannot be guessed from one another: each has 122 random bits', async () => {
  const ids = new Set<string>()
  for (let count = 0; count < 5; count++) {
    await using client = await connect('mcp', bob.mcp, bob.key)
    ids.add(sessionOf(client))
  }
  expect(ids.size).toBe(5)
  for (const id of ids) expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  const starts = [...ids].map(id => id.slice(0, 8))
  expect(new Set(starts).size).toBe(5)
})

test('attack: hundreds of guessed keys all meet the same refusal, and the rightful user is not locked out', async () => {
  const answers = new Set<string>()
  for (let round = 0; round < 15; round++)
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        const { status, body } = await told(
          await fetch(alice.mcp, { headers: bearer(`sdpmcp_${randomBytes(32).toString('base64url')}`) }),
        )
        // with a limit on failed attempts, the refusal may turn into "too many"
        answers.add(status === 429 ? '429' : `${status} ${body}`)
      }),
    )
  expect([...answers].filter(answer => answer !== '429').length).toBe(1)
  expect([...answers].every(answer => /^(401 |429$)/.test(answer))).toBe(true)
  await eventually(async () => (await connect('mcp', alice.mcp, alice.key)).close().then(() => true), {
    withinMs: 90_000,
    what: 'the rightful connect',
  })
})

test('attack: keys cut short, prolonged, in other letters, with spaces, SQL or the visible prefix are no keys', async () => {
  const { key } = alice
  const { body } = await stack.admin('GET', '/v1/users/alice/api-keys')
  for (const wrong of [
    key.slice(0, -1),
    `${key}A`,
    key.toUpperCase(),
    key.toLowerCase(),
    key.replace('sdpmcp_', ''),
    key.replace('sdpmcp_', 'sdpmcp-'),
    `${key.slice(0, 20)} ${key.slice(20)}`,
    `${key},${key}`,
    `"${key}"`,
    encodeURIComponent(`${key}\0`),
    body.apiKeys[0].prefix,
    body.apiKeys[0].id,
    "' or '1'='1",
    "sdpmcp_' or 1=1--",
    '[object Object]',
    'null',
    '*',
    '%',
  ]) {
    const answer = await fetch(alice.mcp, { headers: bearer(wrong) })
    expect([wrong, answer.status]).toEqual([wrong, 401])
    expect(await answer.text()).not.toContain(key.slice(12))
  }
})

test('attack: a key read from the database is only a hash, and the hash opens nothing', async () => {
  const [row] = await stack.sql<{ hash: Buffer }>('select hash from api_keys limit 1')
  for (const form of ['hex', 'base64', 'base64url'] as const)
    for (const guess of [row!.hash.toString(form), `sdpmcp_${row!.hash.toString(form)}`])
      expect((await fetch(alice.mcp, { headers: bearer(guess) })).status).toBe(401)
})

test('attack: a key in the query, a cookie, Basic or Proxy-Authorization is not taken, so none lands in logs or referrers', async () => {
  const { key } = alice
  for (const parameter of ['key', 'api_key', 'apiKey', 'access_token', 'token', 'authorization', 'x-api-key'])
    expect((await fetch(`${alice.sse}?${parameter}=${key}`)).status).toBe(401)
  for (const headers of [
    { cookie: `authorization=Bearer ${key}; api_key=${key}` },
    { authorization: `Basic ${Buffer.from(`alice:${key}`).toString('base64')}` },
    { authorization: key },
    { authorization: `Token ${key}` },
    { 'proxy-authorization': `Bearer ${key}` },
    { 'x-authorization': `Bearer ${key}` },
    { 'x-forwarded-authorization': `Bearer ${key}` },
    { 'x-forwarded-user': 'alice' },
    { 'x-remote-user': 'alice' },
  ] as Record<string, string>[])
    expect((await fetch(alice.sse, { headers })).status).toBe(401)
  expect(stack.controlPlane().output()).not.toContain(key)
})

test('attack: an API key on the admin API and the admin token on the MCP doors are both worthless', async () => {
  expect((await stack.admin('GET', '/v1/users', undefined, bearer(alice.key))).status).toBe(401)
  expect((await fetch(alice.mcp, { headers: bearer(stack.adminToken) })).status).toBe(401)
  expect((await fetch(alice.mcp, { headers: { 'x-api-key': stack.adminToken } })).status).toBe(401)
})

test('attack: a revoked key and an expired key open nothing, on any endpoint', async () => {
  const make = async (body: object) => (await stack.admin('POST', '/v1/users/alice/api-keys', body)).body.apiKey
  const revoked = await make({ name: 'revoked' })
  const expiring = await make({ expiresAt: new Date(Date.now() + 1_500).toISOString() })
  expect((await post(alice.mcp, bearer(revoked.key))).status).toBe(400)
  await stack.admin('DELETE', `/v1/users/alice/api-keys/${revoked.id}`)
  await eventually(async () => (await post(alice.mcp, bearer(expiring.key))).status === 401, { what: 'the expiry' })
  for (const { key } of [revoked, expiring])
    for (const url of [alice.sse, alice.mcp, `${stack.publicUrl}/mcp`, `${stack.publicUrl}/sse`])
      expect((await fetch(url, { headers: bearer(key) })).status).toBe(401)
})

test("attack: alice revoking or listing bob's keys by mixing names and ids finds nothing", async () => {
  const { body } = await stack.admin('GET', '/v1/users/bob/api-keys')
  const answer = await stack.admin('DELETE', `/v1/users/alice/api-keys/${body.apiKeys[0].id}`)
  expect(answer.status).toBe(404)
  expect((await post(bob.mcp, bearer(bob.key))).status).toBe(400)
})

test('attack: the key of a removed user does not come back to life with a new user of the same name', async () => {
  const first = await stack.admin('POST', '/v1/users', { username: 'carol' })
  expect((await stack.admin('DELETE', '/v1/users/carol')).status).toBe(204)
  const second = await stack.admin('POST', '/v1/users', { username: 'carol' })
  expect(second.status).toBe(201)
  expect((await post(`${stack.publicUrl}/u/carol/mcp`, bearer(first.body.apiKey.key))).status).toBe(401)
  expect((await post(`${stack.publicUrl}/u/carol/mcp`, bearer(second.body.apiKey.key))).status).toBe(400)
  expect((await stack.admin('DELETE', '/v1/users/carol')).status).toBe(204)
})

test('attack: a session id of an instance that was replaced opens nothing on the new one', async () => {
  const client = await connect('mcp', alice.mcp, alice.key)
  const session = sessionOf(client)
  await stack.admin('POST', '/v1/users/alice/instance/restart')
  await eventually(
    async () => (await post(alice.mcp, { ...bearer(alice.key), 'mcp-session-id': session })).status === 404,
    { withinMs: 60_000, what: 'the end of the session' },
  )
  await client.close()
})
