import Docker from 'dockerode'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { testInstallation } from '../support/setup.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// One admin, two technicians, real containers: the path every user of the product takes.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let bob: Awaited<ReturnType<Stack['addUser']>>

beforeAll(async () => {
  stack = await startStack()
  ;[alice, bob] = await Promise.all([stack.addUser('alice', { displayName: 'Alice' }), stack.addUser('bob')])
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const containersOf = (username: string) =>
  new Docker({ socketPath: inject('engine').socket }).listContainers({
    all: true,
    filters: { label: [`com.sdp-mcp.installation=${testInstallation}`, `com.sdp-mcp.username=${username}`] },
  })

test('a user added by REST is answered with all that the person needs, and has a running container', async () => {
  const { user, apiKey, endpoints, claudeCode } = alice.body
  expect(user).toMatchObject({
    username: 'alice',
    displayName: 'Alice',
    suspended: false,
    sdp: { dataCenter: 'US', portal: 'itdesk', connection: 'connected' },
    instance: { state: 'ready', reason: null },
  })
  expect(apiKey.key).toMatch(/^sdpmcp_[\w-]{43}$/)
  expect(apiKey.key.startsWith(apiKey.prefix)).toBe(true)
  expect(endpoints).toEqual({ sse: `${stack.publicUrl}/u/alice/sse`, mcp: `${stack.publicUrl}/u/alice/mcp` })
  expect(claudeCode.command).toBe(
    `claude mcp add --transport sse sdp ${endpoints.sse} --header "Authorization: Bearer ${apiKey.key}"`,
  )
  const containers = await containersOf('alice')
  expect(containers.map(container => [container.Id, container.State])).toEqual([[user.instance.containerId, 'running']])
  const { body } = await stack.admin('GET', '/v1/routes')
  expect(body.routes.map((route: { username: string }) => route.username)).toEqual(['alice', 'bob'])
})

for (const kind of ['sse', 'mcp'] as const)
  for (const url of ['own', 'shared'] as const)
    test(`the official client finds a ticket, creates one and notes on it over ${kind} on the ${url} URL`, async () => {
      await using client = await connect(kind, url === 'own' ? alice[kind] : `${stack.publicUrl}/${kind}`, alice.key)
      const { tools } = await client.listTools()
      expect(tools.map(tool => tool.name)).toEqual(
        expect.arrayContaining([
          'get_my_context',
          'search_requests',
          'get_request',
          'create_request',
          'update_request',
          'add_note',
          'list_field_options',
        ]),
      )
      const context = await callTool(client, 'get_my_context')
      expect(JSON.stringify(context)).toContain('itdesk')

      const found = await callTool(client, 'search_requests', { view: 'all', limit: 5 })
      expect(found.requests.length).toBeGreaterThan(0)

      const subject = `Monitor stays dark (${kind}, ${url})`
      const created = await callTool(client, 'create_request', {
        subject,
        description: 'No picture since this morning.',
        allow_duplicate: true,
      })
      const id = String(created.request?.id ?? created.id)
      await callTool(client, 'update_request', { request_id: id, priority: 'High' })
      await callTool(client, 'add_note', { request_id: id, text: 'Cable checked.' })
      const read = await callTool(client, 'get_request', { request_id: id })
      expect(JSON.stringify(read)).toContain(subject)
      expect(JSON.stringify(read)).toContain('High')

      // the desk itself holds it, not only our own words
      const held = await (await fetch(`${stack.simulator.url}/_sim/state`)).text()
      expect(held).toContain(subject)
      expect(held).toContain('Cable checked.')
    })

test('a session takes less than its user was given, by header or in the URL, and never more', async () => {
  const toolsOf = async (kind: 'sse' | 'mcp', query: string) => {
    await using client = await connect(kind, `${alice[kind]}?${query}`, alice.key)
    return (await client.listTools()).tools
  }
  for (const kind of ['sse', 'mcp'] as const) {
    const tools = await toolsOf(kind, 'readonly=true&toolsets=core,assets')
    expect(tools.map(({ name }) => name)).toContain('search_requests')
    expect(tools.map(({ name }) => name)).not.toContain('search_assets')
    expect(tools.filter(({ annotations }) => !annotations?.readOnlyHint).map(({ name }) => name)).toEqual([])
  }
})

test('each of two users sees only the tickets that the own grant allows', async () => {
  await using asAlice = await connect('sse', alice.sse, alice.key)
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  const idsOf = async (client: typeof asAlice) => {
    const { requests } = await callTool(client, 'search_requests', { view: 'all', limit: 50 })
    return requests.map((request: { id: string }) => request.id) as string[]
  }
  const [hers, his] = [await idsOf(asAlice), await idsOf(asBob)]
  expect(hers.length).toBeGreaterThan(0)
  expect(his.length).toBeGreaterThan(0)
  expect(hers.filter(id => his.includes(id))).toEqual([])
})

test("a key on another user's URL gets the same answer as an unknown user, byte for byte", async () => {
  const ask = async (username: string) => {
    const response = await fetch(`${stack.publicUrl}/u/${username}/sse`, {
      headers: { authorization: `Bearer ${alice.key}` },
    })
    const headers = Object.fromEntries([...response.headers].filter(([name]) => name !== 'date'))
    return { status: response.status, headers, body: await response.text() }
  }
  const foreign = await ask('bob')
  expect(foreign.status).toBe(404)
  expect(foreign).toEqual(await ask('nobody-here'))
})

test("another user's session id is unknown: 404 for both transports; no session id is 400", async () => {
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  const session = (asBob.transport as unknown as { sessionId: string }).sessionId
  const post = (url: string, key: string, headers: Record<string, string> = {}) =>
    fetch(url, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${key}`,
        'content-type': 'application/json',
        accept: 'application/json, text/event-stream',
        ...headers,
      },
      body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' }),
    })
  const answers = await Promise.all([
    post(bob.mcp, bob.key, { 'mcp-session-id': session }),
    post(alice.mcp, alice.key, { 'mcp-session-id': session }),
    post(alice.mcp, alice.key),
    post(`${stack.publicUrl}/u/alice/messages?sessionId=${session}`, alice.key),
    post(`${stack.publicUrl}/u/alice/messages`, alice.key),
  ])
  expect(answers.map(answer => answer.status)).toEqual([200, 404, 400, 404, 400])
  for (const answer of answers) await answer.body?.cancel()
})

test('a wrong or missing key is 401 with WWW-Authenticate, on every method', async () => {
  const wrong = `sdpmcp_${'a'.repeat(43)}`
  for (const method of ['GET', 'POST', 'DELETE'])
    for (const headers of [{}, { authorization: `Bearer ${wrong}` }, { 'x-api-key': wrong }] as Record<
      string,
      string
    >[]) {
      const response = await fetch(alice.mcp, { method, headers })
      expect([response.status, response.headers.get('www-authenticate')?.split(' ')[0]]).toEqual([401, 'Bearer'])
      await response.body?.cancel()
    }
})

test('a revoked key ends its open stream within a second; the other key goes on', async () => {
  const { body } = await stack.admin('POST', '/v1/users/bob/api-keys', { name: 'second' })
  const streams = await Promise.all(
    [bob.key, body.apiKey.key].map(key =>
      fetch(bob.sse, { headers: { authorization: `Bearer ${key}`, accept: 'text/event-stream' } }),
    ),
  )
  const [kept, cut] = streams.map(stream => stream.body!.getReader())
  await Promise.all([kept!.read(), cut!.read()])
  const ended = (async () => {
    for (;;) if ((await cut!.read().catch(() => ({ done: true }))).done) return performance.now()
  })()
  const revokedAt = performance.now()
  expect((await stack.admin('DELETE', `/v1/users/bob/api-keys/${body.apiKey.id}`)).status).toBe(204)
  expect((await ended) - revokedAt).toBeLessThan(1_000)
  expect((await fetch(bob.sse, { headers: { authorization: `Bearer ${body.apiKey.key}` } })).status).toBe(401)
  const { body: routes } = await stack.admin('GET', '/v1/routes')
  expect(routes.routes.find((route: { username: string }) => route.username === 'bob').openExchanges).toBe(1)
  await kept!.cancel()
})

test('a control plane that was killed adopts the running containers: same container, next call works', async () => {
  const before = (await containersOf('alice')).map(container => container.Id)
  await stack.controlPlane().stop('SIGKILL')
  await stack.startControlPlane()
  await using client = await connect('mcp', alice.mcp, alice.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  expect((await containersOf('alice')).map(container => container.Id)).toEqual(before)
})

test('an instance that was stopped by hand wakes with the next connect', async () => {
  const stopped = await stack.admin('POST', '/v1/users/alice/instance/stop')
  expect(stopped.status).toBe(202)
  await eventually(async () => (await stack.admin('GET', '/v1/users/alice')).body.instance.state === 'stopped', {
    what: 'the stop',
  })
  await using client = await connect('sse', alice.sse, alice.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('a suspended user is told so, streams end, and the key works again afterwards', async () => {
  const stream = (await fetch(bob.sse, { headers: { authorization: `Bearer ${bob.key}` } })).body!.getReader()
  await stream.read()
  expect((await stack.admin('PATCH', '/v1/users/bob', { suspended: true })).body.suspended).toBe(true)
  await eventually(async () => (await stream.read().catch(() => ({ done: true }))).done, {
    what: 'the end of the stream',
  })
  const refused = await fetch(bob.sse, { headers: { authorization: `Bearer ${bob.key}` } })
  expect([refused.status, ((await refused.json()) as { code: string }).code]).toEqual([403, 'user-suspended'])
  await stack.admin('PATCH', '/v1/users/bob', { suspended: false })
  await using client = await connect('mcp', bob.mcp, bob.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('removing a user ends streams and leaves no container, network, key, token or database role; the audit stays', async () => {
  const stream = (await fetch(bob.sse, { headers: { authorization: `Bearer ${bob.key}` } })).body!.getReader()
  await stream.read()
  const [{ id }] = (await stack.sql<{ id: string }>("select id from users where username = 'bob'")) as [{ id: string }]
  expect((await stack.admin('DELETE', '/v1/users/bob')).status).toBe(204)
  await eventually(async () => (await stream.read().catch(() => ({ done: true }))).done, {
    what: 'the end of the stream',
  })

  expect(await containersOf('bob')).toEqual([])
  const networks = await new Docker({ socketPath: inject('engine').socket }).listNetworks({
    filters: { label: [`com.sdp-mcp.installation=${testInstallation}`, 'com.sdp-mcp.username=bob'] },
  })
  expect(networks).toEqual([])
  for (const table of [
    'api_keys',
    'oauth_tokens',
    'oauth_access_tokens',
    'oauth_token_mints',
    'data_keys',
    'instances',
  ])
    expect(await stack.sql(`select 1 from ${table} where user_id = $1`, [id])).toEqual([])
  expect(await stack.sql('select 1 from pg_roles where rolname = $1', [`sdpmcp_u_${id.replaceAll('-', '')}`])).toEqual(
    [],
  )
  expect((await fetch(bob.sse, { headers: { authorization: `Bearer ${bob.key}` } })).status).toBe(401)
  expect((await stack.admin('GET', '/v1/users/bob')).status).toBe(404)
  const audit = await stack.sql<{ action: string }>(
    "select action from audit_events where username = 'bob' order by id",
  )
  expect(audit.map(event => event.action)).toEqual(
    expect.arrayContaining(['user.created', 'user.removed', 'connection.revoked', 'user.erased']),
  )
  // the grant itself is gone at Zoho, too
  expect(stack.simulator.log.some(entry => entry.path.startsWith('/oauth/v2/token/revoke'))).toBe(true)
})
