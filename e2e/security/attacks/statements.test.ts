import { createHmac, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bearer, ed25519, jwt, post, secretsOf, signingKeyOf, speak } from '../../support/attacker.ts'
import { callTool, connect } from '../../support/mcp-client.ts'
import { type Stack, startStack } from '../../support/stack.ts'

// Whoever reaches the port of an instance, past the proxy. An instance serves only who carries a statement of the control
// plane. Each forgery below is right in everything but one thing; the real signing key is used where something else is wrong.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let bob: Awaited<ReturnType<Stack['addUser']>>
let key: Awaited<ReturnType<typeof signingKeyOf>>
let [aliceId, bobId] = ['', '']

beforeAll(async () => {
  stack = await startStack()
  ;[alice, bob] = await Promise.all([stack.addUser('alice'), stack.addUser('bob')])
  key = await signingKeyOf(stack)
  ;[aliceId, bobId] = [(await secretsOf(stack, 'alice')).userId, (await secretsOf(stack, 'bob')).userId]
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const doorOf = (user: typeof alice) => `http://127.0.0.1:${user.body.user.instance.port}`
const now = () => Math.floor(Date.now() / 1000)
const claimsFor = (userId: string, username: string, more: Record<string, unknown> = {}) => ({
  iss: 'sdp-mcp',
  aud: `instance:${userId}:1`,
  sub: username,
  iat: now(),
  exp: now() + 300,
  purpose: 'mcp',
  ...more,
})
const aliceClaims = (more: Record<string, unknown> = {}) => claimsFor(aliceId, 'alice', more)
const header = (more: Record<string, unknown> = {}) => ({ alg: 'EdDSA', kid: key.kid, typ: 'JWT', ...more })
const signed = (claims: unknown, more: Record<string, unknown> = {}, by: KeyObject = key.privateKey) =>
  jwt(header(more), claims, ed25519(by))
const other = generateKeyPairSync('ed25519')

/** 400: let in, and told that the session is missing. 401: not let in. */
async function knock(statement: string | undefined, user = alice): Promise<number> {
  const response = await post(`${doorOf(user)}/mcp`, statement === undefined ? {} : bearer(statement))
  await response.text()
  return response.status
}

async function expectRefused(...statements: string[]): Promise<void> {
  // the positive control: the true one is let in
  expect(await knock(signed(aliceClaims()))).toBe(400)
  for (const statement of statements) expect([statement, await knock(statement)]).toEqual([statement, 401])
}

test('attack: without a statement an instance answers nothing but its health, which tells no secret', async () => {
  for (const path of ['/mcp', '/sse', '/messages?sessionId=x', '/control/usage', '/control/connection/revoke', '/'])
    for (const method of ['GET', 'POST', 'DELETE'])
      expect((await fetch(`${doorOf(alice)}${path}`, { method })).status).toBe(401)
  const health = (await (await fetch(`${doorOf(alice)}/healthz`)).json()) as object
  expect(Object.keys(health).sort()).toEqual([
    'audience',
    'inFlight',
    'inUse',
    'sessions',
    'status',
    'uptimeSeconds',
    'version',
  ])
})

test("attack: the user's own API key, the admin token and the master key open no instance directly", async () => {
  await expectRefused(alice.key, stack.adminToken, stack.masterKey, 'null', 'undefined', '..', 'a.b.c')
  expect((await fetch(`${doorOf(alice)}/mcp`, { headers: { 'x-api-key': alice.key } })).status).toBe(401)
})

test('attack: a statement with algorithm "none", in any spelling, is refused', async () => {
  const empty = () => Buffer.alloc(0)
  await expectRefused(
    ...['none', 'None', 'NONE', 'nOnE', '', 'EdDSA'].map(alg => jwt(header({ alg }), aliceClaims(), empty)),
    signed(aliceClaims()).replace(/\.[^.]*$/, ''),
  )
})

test('attack: a statement signed with HMAC under the public key as the secret is refused', async () => {
  const spellings = [
    JSON.stringify(key.publicJwk),
    key.publicJwk.x!,
    Buffer.from(key.publicJwk.x!, 'base64url'),
    Buffer.alloc(0),
  ]
  await expectRefused(
    ...spellings.map(secret =>
      jwt(header({ alg: 'HS256' }), aliceClaims(), input => createHmac('sha256', secret).update(input).digest()),
    ),
  )
})

test("attack: a statement signed with the attacker's key under the true key id is refused", async () => {
  await expectRefused(signed(aliceClaims(), {}, other.privateKey))
})

test('attack: a key id of its own, none, a path or SQL brings no other key into play', async () => {
  const kids = ['other', '', undefined, null, '../../dev/null', "' union select 'x", '__proto__', key.kid.toUpperCase()]
  await expectRefused(...kids.map(kid => signed(aliceClaims(), { kid }, other.privateKey)))
})

test('attack: a key that comes along in the header (jwk, jku, x5u, x5c) is not used, and nothing is fetched', async () => {
  const before = stack.simulator.log.list().length
  const url = `${stack.simulator.url}/keys.json`
  const jwk = { ...other.publicKey.export({ format: 'jwk' }), kid: 'mine', alg: 'EdDSA', use: 'sig' }
  await expectRefused(
    signed(aliceClaims(), { jwk, kid: 'mine' }, other.privateKey),
    signed(aliceClaims(), { jwk }, other.privateKey),
    signed(aliceClaims(), { jku: url, kid: 'mine' }, other.privateKey),
    signed(aliceClaims(), { x5u: url }, other.privateKey),
    signed(aliceClaims(), { x5c: ['AAAA'] }, other.privateKey),
  )
  expect(stack.simulator.log.list().length).toBe(before)
})

test('attack: an expired statement of the true key is refused', async () => {
  await expectRefused(
    signed(aliceClaims({ iat: now() - 400, exp: now() - 100 })),
    signed(aliceClaims({ iat: now() - 60, exp: now() - 30 })),
    signed(aliceClaims({ exp: 0 })),
    signed(aliceClaims({ exp: -1 })),
  )
})

test('attack: a statement that would hold for years, has no times or comes from the future is refused', async () => {
  const years = now() + 10 * 365 * 86_400
  await expectRefused(
    signed(aliceClaims({ iat: now() - 3_600, exp: years })),
    signed(aliceClaims({ exp: undefined })),
    signed(aliceClaims({ iat: undefined })),
    signed(aliceClaims({ iat: now() + 3_600, exp: now() + 3_900 })),
    signed(aliceClaims({ nbf: now() + 3_600 })),
    signed(aliceClaims({ exp: '9999999999' })),
    signed(aliceClaims({ iat: 'now' })),
  )
})

test("attack: alice's statement replayed at bob's instance is refused", async () => {
  const hers = signed(aliceClaims())
  expect([await knock(hers, alice), await knock(hers, bob)]).toEqual([400, 401])
  const his = signed(claimsFor(bobId, 'bob'))
  expect([await knock(his, bob), await knock(his, alice)]).toEqual([400, 401])
})

test('attack: a statement for another generation, for everybody or for a list without this instance is refused', async () => {
  await expectRefused(
    ...[
      `instance:${aliceId}:2`,
      `instance:${aliceId}:0`,
      `instance:${aliceId}`,
      `instance:${aliceId}:1 `,
      'instance:*:1',
      '*',
      '',
      [],
      [`instance:${bobId}:1`],
      undefined,
      null,
      { $ne: '' },
    ].map(aud => signed(aliceClaims({ aud }))),
  )
})

test('attack: a statement for the right address in the name of another user or issuer is refused', async () => {
  await expectRefused(
    ...['bob', 'Alice', 'alice ', '', undefined, ['alice'], { $ne: '' }].map(sub => signed(aliceClaims({ sub }))),
    ...['zoho', 'sdp-mcp2', '', undefined, ['sdp-mcp', 'x'].join()].map(iss => signed(aliceClaims({ iss }))),
  )
})

test('attack: a statement for MCP traffic does not open the control endpoints, nor does one of an unknown purpose', async () => {
  const control = async (purpose: unknown, path: string, method = 'POST') =>
    (await fetch(`${doorOf(alice)}${path}`, { method, headers: bearer(signed(aliceClaims({ purpose }))) })).status
  expect(await control('control', '/control/usage', 'GET')).toBe(200)
  for (const path of ['/control/connection/revoke', '/control/connection/exchange', '/control/usage', '/control/x']) {
    expect([path, await control('mcp', path)]).toEqual([path, 403])
    for (const purpose of ['admin', '', 'CONTROL', ['control'], undefined, { $ne: 'mcp' }])
      expect(await control(purpose, path)).toBe(401)
  }
  // spellings that a URL parser might straighten only after the check
  for (const path of [
    '/./control/usage',
    '/mcp/../control/usage',
    '/control/usage/',
    '/control//usage',
    '/%63ontrol/usage',
    '//x/control/usage',
    '/control\\usage',
  ]) {
    const heard = await speak(
      doorOf(alice),
      `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ${signed(aliceClaims())}\r\n\r\n`,
    )
    expect([path, /^HTTP\/1\.1 (400|403|404) /.test(heard), heard.includes('"epoch"')]).toEqual([path, true, false])
  }
})

test('attack: a payload swapped under a true signature, a crit header and an unencoded payload are refused', async () => {
  const [head, , signature] = signed(aliceClaims()).split('.')
  const control = Buffer.from(JSON.stringify(aliceClaims({ purpose: 'control' }))).toString('base64url')
  await expectRefused(
    `${head}.${control}.${signature}`,
    signed(aliceClaims(), { crit: ['exp'] }),
    signed(aliceClaims(), { crit: ['x-unknown'], 'x-unknown': 1 }),
    signed(aliceClaims(), { b64: false, crit: ['b64'] }),
    `${head}.${control}.`,
    `${signed(aliceClaims())}.${signature}`,
    signed([]),
    signed('text'),
  )
})

test('attack: repeating a refused statement a thousand times does not get it remembered as good, nor push out good ones', async () => {
  const good = signed(aliceClaims())
  const bad = signed(claimsFor(bobId, 'bob'))
  expect(await knock(good)).toBe(400)
  for (let round = 0; round < 20; round++) {
    const statuses = await Promise.all(Array.from({ length: 20 }, () => knock(bad)))
    expect(new Set(statuses)).toEqual(new Set([401]))
  }
  expect(await knock(good)).toBe(400)
})

test("attack: a client's key reaches no control endpoint through the proxy, under any prefix", async () => {
  for (const path of ['control/usage', 'control/connection/revoke', 'control/connection/exchange', 'control'])
    for (const prefix of ['', '/u/alice', '/u/bob', '/mcp', '/sse', '/u/alice/mcp', '/messages'])
      for (const method of ['GET', 'POST']) {
        const response = await fetch(`${stack.publicUrl}${prefix}/${path}`, { method, headers: bearer(alice.key) })
        expect([401, 404]).toContain(response.status)
        expect(await response.text()).not.toContain('epoch')
      }
  expect(stack.simulator.log.some(entry => entry.path.includes('/revoke'))).toBe(false)
  expect((await stack.admin('GET', '/v1/users/alice')).body.sdp.connection).toBe('connected')
  await using client = await connect('mcp', alice.mcp, alice.key)
  expect((await callTool(client, 'search_requests', { limit: 1 })).requests.length).toBe(1)
})

test('attack: a true statement in place of an API key opens neither the public nor the admin door', async () => {
  for (const purpose of ['mcp', 'control']) {
    const statement = signed(aliceClaims({ purpose }))
    for (const headers of [bearer(statement), { 'x-api-key': statement }])
      expect((await post(alice.mcp, headers)).status).toBe(401)
    expect((await stack.admin('GET', '/v1/users', undefined, bearer(statement))).status).toBe(401)
  }
})

test('attack: even with a true statement a hostile prefix is not announced as the endpoint', async () => {
  for (const prefix of [
    '//evil.example',
    'https://evil.example',
    '/u/../..',
    '/a\tb',
    '/u/bob?x=',
    '/%2e%2e',
    '/u/<script>',
  ]) {
    const heard = await speak(
      doorOf(alice),
      `GET /sse HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Prefix: ${prefix}\r\nAuthorization: Bearer ${signed(aliceClaims())}\r\n\r\n`,
      { until: /sessionId=[\w-]+\s|\}$/ },
    )
    expect([prefix, /data: \/messages\?sessionId=/.test(heard)]).toEqual([prefix, true])
  }
})
