import { once } from 'node:events'
import { createServer, type Server } from 'node:net'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// The doors as an attacker, a technician and an admin meet them: a real control plane, real containers, real clients.

/** The official client, with nothing but the headers of a `.mcp.json`. */
async function connectWith(stack: Stack, headers: Record<string, string>): Promise<Client & AsyncDisposable> {
  const client = new Client({ name: 'sdp-mcp-tests', version: '1.0.0' })
  const transport = new StreamableHTTPClientTransport(new URL(`${stack.publicUrl}/mcp`), { requestInit: { headers } })
  await client.connect(transport)
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.close() })
}
const sessionOf = (client: Client) => (client.transport as unknown as { sessionId: string }).sessionId

describe('keys and clients of one’s own', () => {
  let stack: Stack
  beforeAll(async () => {
    stack = await startStack({ environment: { SDP_DYNAMIC_CREDENTIALS: 'enroll', SDP_LOG_LEVEL: 'trace' } })
  })
  afterAll(() => stack?.[Symbol.asyncDispose]())

  /** The Zoho client of one person, as the Zoho API console shows it. */
  function ownClient(user: string) {
    const grant = stack.simulator.createGrantCode({ user })
    return { grant, headers: { 'x-sdp-client-id': grant.clientId, 'x-sdp-client-secret': grant.clientSecret } }
  }

  test('a pair that an admin gave a user reaches that user’s desk, and another’s session stays closed', async () => {
    const [mine, theirs] = [ownClient('alice'), ownClient('bob')]
    for (const [username, { grant }] of [
      ['alice', mine],
      ['bob', theirs],
    ] as const)
      await stack.addUser(username, {
        sdp: { clientId: grant.clientId, clientSecret: grant.clientSecret, grantCode: grant.code },
      })
    await using alice = await connectWith(stack, mine.headers)
    expect(JSON.stringify(await callTool(alice, 'get_my_context'))).toContain('alice')
    const asked = (headers: Record<string, string>) =>
      fetch(`${stack.publicUrl}/mcp`, {
        method: 'POST',
        headers: {
          ...headers,
          'content-type': 'application/json',
          accept: 'application/json, text/event-stream',
          'mcp-session-id': sessionOf(alice),
        },
        body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' }),
      })
    expect((await asked(mine.headers)).status).toBe(200)
    expect((await asked(theirs.headers)).status).toBe(404)
    expect((await asked({ ...mine.headers, 'x-sdp-client-secret': 'a-wrong-secret' })).status).toBe(401)
  })

  test('an unknown pair becomes a user with an instance, whose tools tell how to authorize; then they work', async () => {
    const { grant, headers } = ownClient('carol')
    await using client = await connectWith(stack, headers)
    const { tools } = await client.listTools()
    expect(tools.length).toBeGreaterThan(5)
    const refused = await client.callTool({ name: 'search_requests', arguments: { view: 'all' } })
    expect(refused.isError).toBe(true)
    expect(JSON.stringify(refused.content)).toContain('Generate Code')
    const { body } = await stack.admin('GET', '/v1/users?limit=200')
    const enrolled = body.users.find((user: { username: string }) => user.username.startsWith('client-'))
    expect(enrolled).toMatchObject({ sdp: { connection: 'needs-authorization', clientId: grant.clientId } })
    const authorized = await stack.admin('POST', `/v1/users/${enrolled.username}/authorization`, {
      grantCode: grant.code,
    })
    expect([authorized.status, authorized.body.connection]).toEqual([200, 'connected'])
    const found = await callTool(client, 'search_requests', { view: 'all', limit: 5 })
    expect(found.requests.length).toBeGreaterThan(0)
  })

  test('a key is rotated under a connected client: both work, the report names the old one’s user, then it is cut', async () => {
    const dave = await stack.addUser('dave')
    await using old = await connect('sse', dave.sse, dave.key)
    await callTool(old, 'get_my_context')
    const { id } = dave.body.apiKey
    const rotated = await stack.admin('POST', `/v1/users/dave/api-keys/${id}/rotate`, { overlapSeconds: 8 })
    expect(rotated.status).toBe(201)
    const { key } = rotated.body.apiKey
    await using fresh = await connect('sse', dave.sse, key)
    await callTool(fresh, 'get_my_context')
    await callTool(old, 'get_my_context')
    const listed = await eventually(async () => {
      const { body } = await stack.admin('GET', '/v1/users/dave/api-keys')
      return body.apiKeys[0].lastUsedAt && body.apiKeys
    })
    expect(listed[0]).toMatchObject({ id, replacedBy: rotated.body.apiKey.id, lastAddress: '127.0.0.1' })
    const cut = new Promise(done => {
      old.onclose = () => done('closed')
      old.onerror = () => done('cut')
    })
    expect(await cut).toMatch(/closed|cut/)
    const refused = await fetch(dave.sse, { headers: { authorization: `Bearer ${dave.key}` } })
    expect(refused.status).toBe(401)
    await callTool(fresh, 'get_my_context')
    await eventually(async () => {
      const rows = await stack.sql("select 1 from audit_events where action = 'api-key.expired' and username = 'dave'")
      return rows.length === 1
    })
    for (const secret of [dave.key, key]) expect(stack.controlPlane().output()).not.toContain(secret)
  })

  test('at the most talkative level no secret of a client stands in any log', async () => {
    const output = stack.controlPlane().output()
    expect(output.length).toBeGreaterThan(1_000)
    for (const { clientSecret } of stack.simulator.clients) expect(output).not.toContain(clientSecret)
  })

  test('another Host, a foreign web page, and guessing are refused by the program as it is started', async () => {
    const rebound = await fetch(`${stack.publicUrl.replace('127.0.0.1', 'localhost')}/mcp`, {
      headers: { origin: 'https://evil.example' },
    })
    expect([rebound.status, ((await rebound.json()) as { code: string }).code]).toEqual([403, 'origin-refused'])
    const page = await stack.admin('GET', '/v1/users', undefined, { origin: 'https://evil.example' })
    expect([page.status, page.body.code]).toEqual([403, 'origin-refused'])
    for (let guess = 0; guess < 5; guess++)
      expect((await stack.admin('GET', '/v1/users', undefined, { authorization: 'Bearer guess' })).status).toBe(401)
    const slowed = await stack.admin('GET', '/v1/users')
    expect([slowed.status, slowed.headers.get('retry-after')]).toEqual([429, '1'])
    await eventually(async () => (await stack.admin('GET', '/v1/users')).status === 200)
  })
})

describe('what goes out', () => {
  let stack: Stack
  let trap: Server
  let connections = 0
  beforeAll(async () => {
    const { hostAddress } = inject('engine')
    trap = createServer(socket => {
      connections++
      socket.destroy()
    })
    trap.listen(0, hostAddress)
    await once(trap, 'listening')
    stack = await startStack({
      environment: {
        SDP_ALLOW_INSECURE_UPSTREAM: 'false',
        SDP_BASE_URL: '',
        SDP_ACCOUNTS_URL: '',
        SDP_INSTANCE_EXTRA_HOSTS: `accounts.trap.test:${hostAddress}`,
      },
    })
  })
  afterAll(async () => {
    await stack?.[Symbol.asyncDispose]()
    trap?.close()
  })

  test('an admin cannot point a user at the inside of the network', async () => {
    for (const baseUrl of ['https://10.0.0.1', 'https://169.254.169.254', 'https://localhost', 'http://8.8.8.8']) {
      const { status, body } = await stack.admin('POST', '/v1/users', { username: 'mallory', sdp: { baseUrl } })
      expect([status, body.code], baseUrl).toEqual([422, 'sdp-settings-refused'])
    }
    expect(await stack.sql('select 1 from users')).toEqual([])
  })

  test('a name that leads inside by the time of the call gets no connection from the container, until the operator allows it', async () => {
    const { port } = trap.address() as { port: number }
    const added = await stack.admin(
      'POST',
      '/v1/users',
      { username: 'erin', sdp: { clientId: '1000.ERIN', clientSecret: 'secret-of-erin' } },
      { prefer: 'wait=60' },
    )
    expect(added.status).toBe(201)
    // as if the name had been public when it was set
    await stack.sql('update users set sdp_accounts_url = $1, generation = generation + 1', [
      `https://accounts.trap.test:${port}`,
    ])
    const authorize = () => stack.admin('POST', '/v1/users/erin/authorization', { refreshToken: '1000.refresh.token' })
    const refused = await authorize()
    expect([refused.status, refused.body.code]).toEqual([503, 'accounts-unavailable'])
    expect(refused.body.detail).toContain('SDP_ALLOWED_UPSTREAM_HOSTS')
    expect(connections).toBe(0)

    await stack.controlPlane().stop()
    await stack.startControlPlane({ SDP_ALLOWED_UPSTREAM_HOSTS: '*.trap.test' })
    expect((await stack.admin('POST', '/v1/users/erin/instance/restart')).status).toBe(202)
    await eventually(async () => (await authorize()).status === 503 && connections > 0, { withinMs: 60_000 })
  })
})
