import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Desk, startDesk } from '../testing/desk.ts'

let clock = 0
let desk: Desk
beforeEach(async () => {
  clock = Date.parse('2026-03-02T09:00:00Z')
  desk = await startDesk({ now: () => clock })
})
afterEach(() => desk[Symbol.asyncDispose]())

const minutes = (count: number) => count * 60_000

async function connect(user = 'alice') {
  const { code, clientId, clientSecret } = desk.sim.createGrantCode({ user })
  const client = { client_id: clientId, client_secret: clientSecret }
  const { body } = await desk.tokenCall({ grant_type: 'authorization_code', code, ...client })
  return { client, code, refreshToken: body.refresh_token as string, accessToken: body.access_token as string }
}

const refresh = (connected: Awaited<ReturnType<typeof connect>>) =>
  desk.tokenCall({ grant_type: 'refresh_token', refresh_token: connected.refreshToken, ...connected.client })

test('a grant code becomes an hour-long access token and a refresh token', async () => {
  const { code, clientId, clientSecret } = desk.sim.createGrantCode({
    user: 'alice',
    scopes: ['SDPOnDemand.requests.ALL'],
  })
  const answer = await desk.tokenCall({
    grant_type: 'authorization_code',
    code,
    client_id: clientId,
    client_secret: clientSecret,
  })
  expect(answer.status).toBe(200)
  expect(answer.body).toEqual({
    access_token: expect.stringMatching(/^1000\.[0-9a-f]{32}\.[0-9a-f]{32}$/),
    refresh_token: expect.stringMatching(/^1000\.[0-9a-f]{32}\.[0-9a-f]{32}$/),
    scope: 'SDPOnDemand.requests.ALL',
    api_domain: 'https://www.zohoapis.com',
    token_type: 'Bearer',
    expires_in: 3600,
  })
})

test('token parameters may come in the query string', async () => {
  const { code, clientId, clientSecret } = desk.sim.createGrantCode({ user: 'bob' })
  const query = new URLSearchParams({
    grant_type: 'authorization_code',
    code,
    client_id: clientId,
    client_secret: clientSecret,
  })
  const response = await fetch(`${desk.sim.url}/oauth/v2/token?${query}`, { method: 'POST' })
  expect(await response.json()).toHaveProperty('refresh_token')
})

test('a grant code works once, only for its client, only in its time', async () => {
  const { code, client } = await connect()
  const again = await desk.tokenCall({ grant_type: 'authorization_code', code, ...client })
  expect([again.status, again.body]).toEqual([200, { error: 'invalid_code' }])

  const forBob = desk.sim.createGrantCode({ user: 'bob' })
  const stolen = await desk.tokenCall({ grant_type: 'authorization_code', code: forBob.code, ...client })
  expect(stolen.body).toEqual({ error: 'invalid_code' })

  const late = desk.sim.createGrantCode({ user: 'alice', expiresInSeconds: 180 })
  clock += minutes(3)
  const expired = await desk.tokenCall({ grant_type: 'authorization_code', code: late.code, ...client })
  expect(expired.body).toEqual({ error: 'invalid_code' })
})

test('wrong clients and secrets are named in an HTTP 200', async () => {
  const { client, refreshToken } = await connect()
  const call = (parameters: Record<string, string>) =>
    desk.tokenCall({ grant_type: 'refresh_token', refresh_token: refreshToken, ...client, ...parameters })
  expect((await call({ client_id: '1000.NOBODY' })).body).toEqual({ error: 'invalid_client' })
  expect((await call({ client_secret: 'f00d' })).body).toEqual({ error: 'invalid_client_secret' })
  const wrong = await call({ refresh_token: 'grant-code-by-mistake' })
  expect([wrong.status, wrong.body]).toEqual([200, { error: 'invalid_code' }])
})

test('a refresh token belongs to its client', async () => {
  const { refreshToken } = await connect('alice')
  const bob = await connect('bob')
  const stolen = await desk.tokenCall({ grant_type: 'refresh_token', refresh_token: refreshToken, ...bob.client })
  expect(stolen.body).toEqual({ error: 'invalid_code' })
})

test('a client of another data center is unknown', async () => {
  const foreign = desk.sim.clients.find(client => client.dataCenter === 'eu')
  const answer = await desk.tokenCall({
    grant_type: 'client_credentials',
    scope: 'SDPOnDemand.requests.READ',
    client_id: foreign?.clientId ?? '',
    client_secret: foreign?.clientSecret ?? '',
  })
  expect(answer.body).toEqual({ error: 'invalid_client' })
})

test('a refresh keeps the refresh token and the scopes', async () => {
  const connected = await connect()
  const { body } = await refresh(connected)
  expect(body).not.toHaveProperty('refresh_token')
  expect(body.access_token).not.toBe(connected.accessToken)
  expect((await refresh(connected)).body.scope).toBe(body.scope)
})

test('the eleventh refresh within ten minutes is throttled, ten minutes later it works again', async () => {
  const connected = await connect()
  for (let i = 0; i < 10; i += 1) expect((await refresh(connected)).body).toHaveProperty('access_token')
  const throttled = await refresh(connected)
  expect(throttled.status).toBe(200)
  expect(throttled.body).toMatchObject({ error: 'Access Denied', status: 'failure' })
  expect(throttled.body.error_description).toContain('too many requests continuously')

  desk.sim.faults.set({ throttleStatus: 400 })
  expect((await refresh(connected)).status).toBe(400)
  clock += minutes(10)
  expect((await refresh(connected)).body).toHaveProperty('access_token')
})

test('an eleventh grant code within ten minutes is refused', async () => {
  for (let i = 0; i < 10; i += 1) desk.sim.createGrantCode({ user: 'alice' })
  expect(() => desk.sim.createGrantCode({ user: 'alice' })).toThrow(/too many requests/)
  expect(desk.sim.createGrantCode({ user: 'bob' }).code).toMatch(/^1000\./)
})

test('the sixteenth living access token pushes out the oldest', async () => {
  desk.sim.faults.set({ mintsPer10Minutes: 100 })
  const connected = await connect()
  const info = (token: string) =>
    fetch(`${desk.sim.url}/oauth/user/info`, { headers: { authorization: `Zoho-oauthtoken ${token}` } })
  const tokens = [connected.accessToken]
  for (let i = 0; i < 14; i += 1) tokens.push((await refresh(connected)).body.access_token)
  expect((await info(tokens[0] ?? '')).status).toBe(200)
  await refresh(connected)
  expect((await info(tokens[0] ?? '')).status).toBe(401)
  expect((await info(tokens[1] ?? '')).status).toBe(200)
})

test('the 21st refresh token of a user and client deletes the first', async () => {
  desk.sim.faults.set({ newRefreshTokensPer10Minutes: 100, grantCodesPer10Minutes: 100 })
  const first = await connect()
  for (let i = 0; i < 19; i += 1) await connect()
  expect((await refresh(first)).body).toHaveProperty('access_token')
  await connect()
  expect((await refresh(first)).body).toEqual({ error: 'invalid_code' })
})

test('revoking a refresh token kills it and its access tokens', async () => {
  const connected = await connect()
  const revoked = await fetch(`${desk.sim.url}/oauth/v2/token/revoke?token=${connected.refreshToken}`, {
    method: 'POST',
  })
  expect(await revoked.json()).toEqual({ status: 'success' })
  expect((await refresh(connected)).body).toEqual({ error: 'invalid_code' })
  const info = await fetch(`${desk.sim.url}/oauth/user/info`, {
    headers: { authorization: `Zoho-oauthtoken ${connected.accessToken}` },
  })
  expect(info.status).toBe(401)
})

test('client_credentials act as the owner and give no refresh token', async () => {
  const { clientId, clientSecret } = desk.sim.clients.find(client => client.owner === 'carol') ?? {}
  const wanted = { grant_type: 'client_credentials', client_id: clientId ?? '', client_secret: clientSecret ?? '' }
  const { body } = await desk.tokenCall({ ...wanted, scope: 'AaaServer.profile.READ' })
  expect(body).not.toHaveProperty('refresh_token')
  const info = await fetch(`${desk.sim.url}/oauth/user/info`, {
    headers: { authorization: `Bearer ${body.access_token}` },
  })
  expect(await info.json()).toMatchObject({ Email: 'carol@northwind.example', Display_Name: 'Carol Jensen' })
  expect((await desk.tokenCall({ ...wanted, scope: 'SDPOnDemand.tasks.ALL' })).body).toEqual({ error: 'invalid_scope' })
})

const redirectUri = 'http://127.0.0.1:3456/oauth/callback'

function consentParameters(more: Record<string, string> = {}) {
  const server = desk.sim.clients.find(client => client.kind === 'server')
  return {
    response_type: 'code',
    client_id: server?.clientId ?? '',
    scope: 'SDPOnDemand.requests.ALL,SDPOnDemand.setup.READ',
    redirect_uri: redirectUri,
    access_type: 'offline',
    prompt: 'consent',
    state: 'abc<1>',
    ...more,
  }
}

async function decide(more: Record<string, string>) {
  const response = await fetch(`${desk.sim.url}/oauth/v2/auth`, {
    method: 'POST',
    body: new URLSearchParams(consentParameters(more)),
    redirect: 'manual',
  })
  return { status: response.status, location: response.headers.get('location') ?? '' }
}

test('the consent page names the client and its scopes and escapes what it was given', async () => {
  const response = await fetch(`${desk.sim.url}/oauth/v2/auth?${new URLSearchParams(consentParameters())}`)
  const page = await response.text()
  expect(response.status).toBe(200)
  expect(page).toContain('Northwind SDP MCP')
  expect(page).toContain('SDPOnDemand.setup.READ')
  expect(page).not.toContain('abc<1>')
})

test('allowing leads back with a code that the server client can exchange for a refresh token', async () => {
  const { status, location } = await decide({ user: 'alice', decision: 'allow' })
  expect(status).toBe(302)
  const { searchParams } = new URL(location)
  expect(location.startsWith(`${redirectUri}?`)).toBe(true)
  expect(searchParams.get('state')).toBe('abc<1>')
  expect(searchParams.get('location')).toBe('us')
  expect(searchParams.get('accounts-server')).toBe(desk.sim.url)

  const server = desk.sim.clients.find(client => client.kind === 'server')
  const exchange = {
    grant_type: 'authorization_code',
    code: searchParams.get('code') ?? '',
    client_id: server?.clientId ?? '',
    client_secret: server?.clientSecret ?? '',
  }
  expect((await desk.tokenCall({ ...exchange, redirect_uri: 'http://elsewhere.example/' })).body).toEqual({
    error: 'invalid_redirect_uri',
  })
  expect((await desk.tokenCall({ ...exchange, redirect_uri: redirectUri })).body).toHaveProperty('refresh_token')
})

test('without offline access the exchange gives no refresh token', async () => {
  const { location } = await decide({ user: 'alice', decision: 'allow', access_type: 'online' })
  const server = desk.sim.clients.find(client => client.kind === 'server')
  const { body } = await desk.tokenCall({
    grant_type: 'authorization_code',
    code: new URL(location).searchParams.get('code') ?? '',
    client_id: server?.clientId ?? '',
    client_secret: server?.clientSecret ?? '',
    redirect_uri: redirectUri,
  })
  expect(body).toHaveProperty('access_token')
  expect(body).not.toHaveProperty('refresh_token')
})

test('denying leads back with access_denied, an unregistered redirect URI leads nowhere', async () => {
  const { location } = await decide({ user: 'alice', decision: 'deny' })
  expect(new URL(location).searchParams.get('error')).toBe('access_denied')
  const evil = await decide({ user: 'alice', decision: 'allow', redirect_uri: 'https://evil.example/' })
  expect([evil.status, evil.location]).toEqual([400, ''])
})
