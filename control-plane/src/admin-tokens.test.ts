import { createServer, type Server } from 'node:http'
import { exportJWK, generateKeyPair, type JWTPayload, SignJWT, UnsecuredJWT } from 'jose'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest'
import { startControlPlane, type TestControlPlane } from './testing/control-plane.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'

// Admins by the static token and by an OpenID provider, which is a real HTTP server of this test.

let database: TestDatabase
let controlPlane: TestControlPlane
let provider: Provider
let time: number
const audience = 'sdp-mcp-admin'

type Provider = Awaited<ReturnType<typeof startProvider>>
type Pair = {
  kid: string
  privateKey: Awaited<ReturnType<typeof generateKeyPair>>['privateKey']
  jwk: Record<string, unknown>
}

async function makePair(kid: string, algorithm = 'RS256'): Promise<Pair> {
  const { publicKey, privateKey } = await generateKeyPair(algorithm, { extractable: true })
  return { kid, privateKey, jwk: { ...(await exportJWK(publicKey)), kid, alg: algorithm, use: 'sig' } }
}

async function startProvider() {
  const state = {
    keys: [await makePair('one')],
    /** what it was asked for */
    asked: [] as string[],
    down: false,
    issuerInDiscovery: undefined as string | undefined,
    redirectTo: undefined as string | undefined,
  }
  const server: Server = createServer((request, response) => {
    state.asked.push(request.url!)
    if (state.redirectTo) return void response.writeHead(302, { location: state.redirectTo }).end()
    if (state.down) return void response.writeHead(500).end()
    const body =
      request.url === '/.well-known/openid-configuration'
        ? { issuer: state.issuerInDiscovery ?? issuer, jwks_uri: `${issuer}/keys` }
        : { keys: state.keys.map(({ jwk }) => jwk) }
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body))
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  const issuer = `http://127.0.0.1:${(server.address() as { port: number }).port}`
  const token = (claims: JWTPayload = {}, pair = state.keys[0]!, header: Record<string, unknown> = {}) =>
    new SignJWT({
      roles: ['admin'],
      iss: issuer,
      aud: audience,
      sub: 'ada@example.com',
      exp: time / 1000 + 600,
      ...claims,
    })
      .setProtectedHeader({ alg: pair.jwk.alg as string, kid: pair.kid, ...header })
      .sign(pair.privateKey)
  return {
    state,
    issuer,
    token,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise(done => server.close(done))
    },
  }
}

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
})
beforeEach(async () => {
  time = Date.now()
  provider = await startProvider()
  controlPlane = await startControlPlane(database, {
    now: () => time,
    cooldownMs: 50,
    environment: { SDP_ADMIN_OIDC_ISSUER: provider.issuer, SDP_ADMIN_OIDC_AUDIENCE: audience },
  })
})
afterEach(async () => {
  const rows = await database.db.query<{ username: string }>('select username from users')
  for (const { username } of rows) await controlPlane.users.erase(await controlPlane.users.remove(username, 'admin'))
  await controlPlane[Symbol.asyncDispose]()
  await provider[Symbol.asyncDispose]()
})
afterAll(() => database?.[Symbol.asyncDispose]())

let addresses = 1
/** Each from an address of its own, so that failures of one test do not slow another. */
const call = (
  token: string,
  method = 'GET',
  path = '/v1/users',
  body?: unknown,
  from = `127.1.${addresses >> 8}.${addresses++ & 255}`,
) => controlPlane.admin(method, path, body, { headers: { authorization: `Bearer ${token}` }, from })
const outcome = async (token: string) => {
  const { status, json } = await call(token)
  return [status, json.code]
}

describe('tokens of the identity provider', () => {
  test('an admin may change things, and the audit names the subject', async () => {
    const answer = await call(await provider.token(), 'POST', '/v1/users', { username: 'alice' })
    expect(answer.status).toBe(201)
    const [event] = await database.db.query("select actor from audit_events where username = 'alice'")
    expect(event).toEqual({ actor: 'oidc:ada@example.com' })
    // the static token goes on working beside it
    expect((await controlPlane.admin('DELETE', '/v1/users/alice')).status).toBe(204)
    const [last] = await database.db.query(
      "select actor from audit_events where action = 'user.removed' and username = 'alice'",
    )
    expect(last).toEqual({ actor: 'admin' })
  })

  test('a viewer reads everything and changes nothing', async () => {
    await controlPlane.admin('POST', '/v1/users', { username: 'bob' })
    const viewer = await provider.token({ roles: ['viewer'] })
    const before = await database.db.query('select * from users')
    for (const path of ['/v1/users', '/v1/users/bob', '/v1/users/bob/api-keys', '/v1/routes', '/v1/system'])
      expect((await call(viewer, 'GET', path)).status, path).toBe(200)
    for (const [method, path, body] of [
      ['POST', '/v1/users', { username: 'carol' }],
      ['PATCH', '/v1/users/bob', { displayName: 'Bobby' }],
      ['DELETE', '/v1/users/bob', undefined],
      ['POST', '/v1/users/bob/api-keys', {}],
      ['POST', '/v1/users/bob/api-keys/00000000-0000-4000-8000-000000000000/rotate', {}],
      ['POST', '/v1/users/bob/instance/stop', undefined],
      ['POST', '/v1/users/bob/authorization', { grantCode: 'x' }],
    ] as const) {
      const answer = await call(viewer, method, path, body)
      expect([answer.status, answer.json.code], `${method} ${path}`).toEqual([403, 'admin-role-required'])
    }
    expect(await database.db.query('select * from users')).toEqual(before)
  })

  test('everything else is refused: another audience, issuer, signature, algorithm, time, no role', async () => {
    const [pair] = provider.state.keys
    const stranger = await makePair('one')
    const seconds = Math.floor(time / 1000)
    const required = [401, 'admin-token-required']
    expect(await outcome(await provider.token({ aud: 'another-program' }))).toEqual(required)
    expect(await outcome(await provider.token({ aud: undefined }))).toEqual(required)
    expect(await outcome(await provider.token({ iss: 'https://evil.example' }))).toEqual(required)
    expect(await outcome(await provider.token({}, stranger))).toEqual(required)
    expect(await outcome(await provider.token({ exp: seconds - 60 }))).toEqual(required)
    expect(await outcome(await provider.token({ exp: undefined }))).toEqual(required)
    expect(await outcome(await provider.token({ sub: undefined }))).toEqual(required)
    expect(await outcome(await provider.token({ nbf: seconds + 300 }))).toEqual(required)
    // alg none, and a symmetric signature made with the public key
    const claims = { roles: ['admin'], iss: provider.issuer, aud: audience, sub: 'eve', exp: seconds + 600 }
    expect(await outcome(`${new UnsecuredJWT(claims).encode()}x`)).toEqual(required)
    expect(await outcome(new UnsecuredJWT(claims).encode())).toEqual(required)
    const symmetric = new SignJWT(claims).setProtectedHeader({ alg: 'HS256', kid: 'one' })
    expect(await outcome(await symmetric.sign(new TextEncoder().encode(JSON.stringify(pair!.jwk))))).toEqual(required)
    // a key that comes with the token is not looked at
    expect(await outcome(await provider.token({}, stranger, { jwk: stranger.jwk, kid: 'unknown' }))).toEqual(required)
    const altered = (await provider.token({ roles: ['viewer'] })).split('.')
    altered[1] = Buffer.from(JSON.stringify(claims)).toString('base64url')
    expect(await outcome(altered.join('.'))).toEqual(required)
    for (const roles of [[], ['user'], 'administrator', undefined, { admin: true }, ['ADMIN']])
      expect(await outcome(await provider.token({ roles }))).toEqual([403, 'admin-role-required'])
    expect(await outcome(await provider.token({ roles: 'viewer other' }))).toEqual([200, undefined])
    expect(controlPlane.logged()).not.toMatch(/eyJ[\w-]+\.eyJ/)
  })

  test('keys are read once, and again when the provider has changed them', async () => {
    for (let round = 0; round < 5; round++) expect(await outcome(await provider.token())).toEqual([200, undefined])
    expect(provider.state.asked).toEqual(['/.well-known/openid-configuration', '/keys'])
    const next = await makePair('two', 'ES256')
    provider.state.keys = [next]
    await new Promise(done => setTimeout(done, 60))
    expect(await outcome(await provider.token({}, next))).toEqual([200, undefined])
    expect(provider.state.asked).toHaveLength(3)
    // strangers' key ids cannot make us ask the provider again and again
    const before = provider.state.asked.length
    const forged = await Promise.all(
      [...Array(20)].map(async (_, index) => provider.token({}, { ...next, kid: `forged-${index}` })),
    )
    await Promise.all(forged.map(token => call(token)))
    expect(provider.state.asked.length - before).toBeLessThan(6)
  })

  test('when the provider is away the static token works, and tokens get 503 with the cause, not 401', async () => {
    provider.state.down = true
    const answer = await call(await provider.token())
    expect([answer.status, answer.json.code]).toEqual([503, 'admin-issuer-unavailable'])
    expect(answer.headers['retry-after']).toBeDefined()
    expect((await controlPlane.admin('GET', '/v1/users')).status).toBe(200)
    provider.state.down = false
    // asked again after a pause, not with every request
    expect((await call(await provider.token())).status).toBe(503)
    time += 6_000
    expect(await outcome(await provider.token())).toEqual([200, undefined])
  })

  test('a discovery document of another issuer, or a redirect, is not believed', async () => {
    provider.state.issuerInDiscovery = 'https://evil.example'
    expect(await outcome(await provider.token())).toEqual([503, 'admin-issuer-unavailable'])
    provider.state.issuerInDiscovery = undefined
    await using other = await startProvider()
    provider.state.redirectTo = `${other.issuer}/.well-known/openid-configuration`
    time += 6_000
    expect(await outcome(await provider.token())).toEqual([503, 'admin-issuer-unavailable'])
    expect(other.state.asked).toEqual([])
  })

  test('the claim and the roles have the names the company gives them, also below another claim', async () => {
    await using custom = await startControlPlane(database, {
      environment: {
        SDP_ADMIN_OIDC_ISSUER: provider.issuer,
        SDP_ADMIN_OIDC_AUDIENCE: audience,
        SDP_ADMIN_OIDC_ROLE_CLAIM: 'realm_access.roles',
        SDP_ADMIN_OIDC_ADMIN_ROLE: 'desk-admin',
        SDP_ADMIN_OIDC_VIEWER_ROLE: 'desk-viewer',
      },
    })
    const status = async (claims: JWTPayload, method = 'GET') =>
      (
        await custom.admin(method, method === 'GET' ? '/v1/users' : '/v1/users/nobody', undefined, {
          headers: { authorization: `Bearer ${await provider.token(claims)}` },
        })
      ).status
    expect(await status({ realm_access: { roles: ['desk-viewer'] } })).toBe(200)
    expect(await status({ realm_access: { roles: ['desk-admin'] } }, 'DELETE')).toBe(404)
    expect(await status({ 'realm_access.roles': ['desk-admin'] }, 'DELETE')).toBe(404)
    expect(await status({ roles: ['admin'] })).toBe(403)
    expect(await status({ realm_access: null })).toBe(403)
  })
})

describe('guessing', () => {
  test('is slowed down for each address, with Retry-After, and the right token is not looked at meanwhile', async () => {
    const guess = (from: string, token = 'wrong-wrong-wrong-wrong-wrong-wrong-wrong') =>
      call(token, 'GET', '/v1/users', undefined, from)
    for (let failure = 0; failure < 5; failure++) expect((await guess('127.2.0.1')).status).toBe(401)
    const slowed = await guess('127.2.0.1', controlPlane.config.admin.token.reveal())
    expect([slowed.status, slowed.json.code]).toEqual([429, 'too-many-attempts'])
    expect(slowed.headers['retry-after']).toBe('1')
    expect((await guess('127.2.0.2', controlPlane.config.admin.token.reveal())).status).toBe(200)
    time += 1_100
    expect((await guess('127.2.0.1', controlPlane.config.admin.token.reveal())).status).toBe(200)
    // success forgets
    for (let failure = 0; failure < 4; failure++) expect((await guess('127.2.0.1')).status).toBe(401)
    expect((await guess('127.2.0.1', controlPlane.config.admin.token.reveal())).status).toBe(200)
    const log = controlPlane.logged()
    expect(log).toContain('"address":"127.2.0.1"')
    expect(log).not.toContain('wrong-wrong')
    expect(log).not.toContain(controlPlane.config.admin.token.reveal())
  })

  test('forged tokens count as guesses, a provider that is away does not', async () => {
    const stranger = await makePair('one')
    for (let failure = 0; failure < 5; failure++)
      expect((await call(await provider.token({}, stranger), 'GET', '/v1/users', undefined, '127.2.0.5')).status).toBe(
        401,
      )
    expect((await call(await provider.token(), 'GET', '/v1/users', undefined, '127.2.0.5')).status).toBe(429)
    provider.state.down = true
    time += 3_600_001
    for (let failure = 0; failure < 8; failure++)
      expect((await call(await provider.token(), 'GET', '/v1/users', undefined, '127.2.0.6')).status).toBe(503)
  })
})
