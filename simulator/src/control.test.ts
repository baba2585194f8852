import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { startDesk } from './testing/desk.ts'

test('the control API gives grant codes, users and clients', async () => {
  await using desk = await startDesk()
  const { body: users } = await desk.control('GET', '/users')
  expect(users.users.map((one: { username: string }) => one.username)).toEqual(
    expect.arrayContaining(['alice', 'bob', 'carol', 'dave', 'erin', 'frank', 'grace', 'heidi']),
  )
  const alice = users.users[0]
  expect(alice).toMatchObject({
    clientId: expect.stringMatching(/^1000\.[0-9A-F]{30}$/),
    clientSecret: expect.stringMatching(/^[0-9a-f]{42}$/),
  })

  const { body } = await desk.control('POST', '/grant-codes', {
    user: 'alice',
    scopes: 'SDPOnDemand.requests.READ',
    expiresInSeconds: 60,
  })
  expect(body).toMatchObject({
    clientId: alice.clientId,
    clientSecret: alice.clientSecret,
    expiresAt: expect.any(Number),
  })
  const unknown = await desk.control('POST', '/grant-codes', { user: 'nobody' })
  expect([unknown.status, unknown.body.error]).toEqual([400, 'There is no user "nobody".'])
})

test('a user added through the control API works like a seeded one', async () => {
  await using desk = await startDesk()
  const { status } = await desk.control('POST', '/users', { username: 'tech-7', groups: ['Network'] })
  expect(status).toBe(201)
  const client = await desk.as('tech-7')
  expect((await client.get('/requests')).body.requests.length).toBeGreaterThan(0)
  expect((await desk.control('POST', '/users', { username: 'tech-7' })).status).toBe(400)
})

test('redirect URIs can be set', async () => {
  await using desk = await startDesk()
  const server = desk.sim.clients.find(client => client.kind === 'server')
  const uri = 'https://mcp.example.com/oauth/callback'
  const { body } = await desk.control('PUT', `/clients/${server?.clientId}`, { redirectUris: [uri] })
  expect(body.redirectUris).toEqual([uri])
})

test('the log tells who called what and never a secret', async () => {
  await using desk = await startDesk()
  const alice = await desk.as('alice')
  await alice.get('/requests', { list_info: { row_count: 1 } })
  const { body } = await desk.control('GET', '/log')
  expect(body.entries).toEqual([
    expect.objectContaining({
      number: 1,
      method: 'POST',
      path: '/oauth/v2/token',
      status: 200,
      user: 'alice',
      grantType: 'authorization_code',
    }),
    expect.objectContaining({
      number: 2,
      method: 'GET',
      path: '/app/itdesk/api/v3/requests',
      status: 200,
      user: 'alice',
      input: { list_info: { row_count: 1 } },
    }),
  ])
  expect(JSON.stringify(body)).not.toContain(alice.token)
  expect((await desk.control('GET', '/log?since=1')).body.entries).toHaveLength(1)
  await desk.control('DELETE', '/log')
  expect((await desk.control('GET', '/log')).body.entries).toEqual([])
})

test('the state shows what the desk really holds', async () => {
  await using desk = await startDesk()
  const alice = await desk.as('alice')
  await alice.post('/requests', { request: { subject: 'Look into the state' } })
  const { text, body } = await desk.control('GET', '/state')
  expect(text).toContain('Look into the state')
  expect(body.accessTokens).toEqual([expect.objectContaining({ user: 'alice', token: alice.token })])
})

test('a reset brings back the seeded desk', async () => {
  await using desk = await startDesk()
  const carol = await desk.as('carol')
  await carol.post('/requests', { request: { subject: 'temporary' } })
  const { body: before } = await desk.control('GET', '/summary')
  expect((await desk.control('POST', '/reset')).status).toBe(204)
  const { body: after } = await desk.control('GET', '/summary')
  expect(after.portals[0].records.requests).toBe(before.portals[0].records.requests - 1)
  expect((await carol.get('/requests')).status).toBe(401)
})

test('the same instant seeds the same desk', async () => {
  const now = () => Date.parse('2026-03-02T09:00:00Z')
  await using one = await startDesk({ now })
  await using two = await startDesk({ now })
  expect(one.sim.state).toEqual(two.sim.state)
})

test('without a seed there are people and lookups but no ticket', async () => {
  await using desk = await startDesk({ seed: false })
  const carol = await desk.as('carol')
  expect((await carol.get('/requests')).body.requests).toEqual([])
  expect((await carol.get('/priorities')).body.priorities).toHaveLength(4)
})

test('a restart with a state file keeps tokens and tickets', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'sdp-simulator-'))
  try {
    const stateFile = join(folder, 'deep', 'state.json')
    let token = ''
    {
      await using desk = await startDesk({ stateFile })
      const carol = await desk.as('carol')
      token = carol.token
      await carol.post('/requests', { request: { subject: 'survives' } })
    }
    await using desk = await startDesk({ stateFile })
    const response = await fetch(`${desk.sim.url}/app/itdesk/api/v3/requests`, {
      headers: { authorization: `Zoho-oauthtoken ${token}`, accept: 'application/v3+json' },
    })
    expect(await response.json()).toMatchObject({
      requests: expect.arrayContaining([expect.objectContaining({ subject: 'survives' })]),
    })
    expect(await readdir(join(folder, 'deep'))).toEqual(['state.json'])
  } finally {
    await rm(folder, { recursive: true })
  }
})

test('the health check needs no token', async () => {
  await using desk = await startDesk()
  expect((await fetch(`${desk.sim.url}/healthz`)).status).toBe(200)
})
