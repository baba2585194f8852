import Docker from 'dockerode'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// A fleet that looks after itself: sleeping and waking, who is connected, what was used, and metrics, on real containers.

const installation = 'e2e-fleet'
let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
beforeAll(async () => {
  stack = await startStack({
    installation,
    environment: { SDP_IDLE_STOP_AFTER: '6s', SDP_IDLE_STREAM_STOP_AFTER: '15s' },
  })
  alice = await stack.addUser('alice')
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const instanceOf = async (username: string) => (await stack.admin('GET', `/v1/users/${username}`)).body.instance
const containersOf = (username: string) =>
  new Docker({ socketPath: inject('engine').socket }).listContainers({
    all: true,
    filters: { label: [`com.sdp-mcp.installation=${installation}`, `com.sdp-mcp.username=${username}`] },
  })
const asleep = (username: string) =>
  eventually(async () => (await instanceOf(username)).reasonCode === 'idle', {
    what: `${username} asleep`,
    withinMs: 60_000,
  })
const stopped = (username: string) =>
  eventually(async () => (await containersOf(username)).every(container => container.State === 'exited'), {
    what: 'the container has stopped',
    withinMs: 20_000,
  })

test('an instance nobody uses stops; twenty clients who connect at once wake the same container once', async () => {
  const before = (await containersOf('alice'))[0]?.Id
  await asleep('alice')
  await stopped('alice')
  expect((await instanceOf('alice')).reason).toContain('next connection')
  const clients = await Promise.all(
    Array.from({ length: 20 }, (_, at) => connect(at % 2 ? 'mcp' : 'sse', at % 2 ? alice.mcp : alice.sse, alice.key)),
  )
  for (const client of clients) expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  const containers = await containersOf('alice')
  expect(containers.map(({ Id, State }) => [Id, State])).toEqual([[before, 'running']])
  const starts = stack.controlPlane().output().split('"fleet.instance.starting"').length - 1
  expect(starts).toBeLessThanOrEqual(2)
  await Promise.all(clients.map(client => client.close()))
})

test('a silent stream keeps the instance longer, but not for ever; one with traffic keeps it', async () => {
  const headers = { authorization: `Bearer ${alice.key}` }
  const stream = (await fetch(alice.sse, { headers })).body!.getReader()
  await stream.read()
  const openedAt = Date.now()
  const ended = (async () => {
    for (;;) if ((await stream.read().catch(() => ({ done: true }))).done) return Date.now()
  })()
  await asleep('alice')
  // keep-alive comments went over it all the time, and were no reason to stay
  expect((await ended) - openedAt).toBeGreaterThan(13_000)

  await using client = await connect('sse', alice.sse, alice.key)
  for (const until = Date.now() + 20_000; Date.now() < until; ) {
    await client.ping()
    await new Promise(done => setTimeout(done, 2_000))
    expect((await instanceOf('alice')).state).toBe('ready')
  }
})

test('sessions are listed with who, how and how much; nobody reads them without the admin token', async () => {
  await using bySse = await connect('sse', alice.sse, alice.key)
  await using byHttp = await connect('mcp', alice.mcp, alice.key)
  await callTool(bySse, 'get_my_context')
  await callTool(byHttp, 'search_requests', { view: 'all', limit: 1 })
  const { status, body } = await stack.admin('GET', '/v1/sessions?username=alice')
  expect(status).toBe(200)
  expect(body.unanswered).toEqual([])
  expect(body.sessions.map((one: { transport: string }) => one.transport).sort()).toEqual(['sse', 'streamable'])
  for (const one of body.sessions) {
    expect(one).toMatchObject({ username: 'alice', client: { name: 'sdp-mcp-tests', version: '1.0.0' }, calls: 2 })
    expect(one.bytesIn).toBeGreaterThan(100)
    expect(one.bytesOut).toBeGreaterThan(100)
    expect(Date.parse(one.lastActivityAt)).toBeGreaterThanOrEqual(Date.parse(one.since))
    // an id is as good as a key within the user
    expect(JSON.stringify(one)).not.toContain((byHttp.transport as unknown as { sessionId: string }).sessionId)
  }
  for (const path of ['/v1/sessions', '/v1/usage', '/metrics'])
    expect((await stack.admin('GET', path, undefined, { authorization: `Bearer ${alice.key}` })).status).toBe(401)
})

test('what was used outlives the container that counted it', async () => {
  {
    await using client = await connect('mcp', alice.mcp, alice.key)
    await callTool(client, 'list_field_options', { field: 'priority' })
    await client.callTool({ name: 'get_request', arguments: { request_id: '999999999999' } })
  }
  await asleep('alice')
  await stopped('alice')
  const { body } = await stack.admin('GET', '/v1/usage?username=alice')
  const row = (tool: string) => body.usage.find((one: { tool: string }) => one.tool === tool)
  expect(row('list_field_options')).toMatchObject({ username: 'alice', calls: 1, errors: 0 })
  expect(row('get_request')).toMatchObject({ calls: 1, errors: 1 })
  // of an earlier run of the container
  expect(row('get_my_context').calls).toBeGreaterThanOrEqual(1)
  expect(row('get_my_context').p95Ms).toBeLessThanOrEqual(row('get_my_context').maxMs)
  for (const day of ['yesterday', '0000-01-01', '2026-02-30'])
    expect((await stack.admin('GET', `/v1/usage?from=${day}`)).status, day).toBe(400)
  const strange = Buffer.from('2026-01-01 alice \0').toString('base64url')
  expect((await stack.admin('GET', `/v1/usage?cursor=${strange}`)).status).toBe(400)
})

test('metrics tell states, wakes, bytes, streams and the SDP API, and name nobody', async () => {
  await using client = await connect('sse', alice.sse, alice.key)
  await callTool(client, 'search_requests', { view: 'all', limit: 1 })
  const text: string = await eventually(async () => {
    const { body } = await stack.admin('GET', '/metrics')
    return /^sdp_mcp_instances\{state="ready"\} 1$/m.test(body) && body
  })
  const expected = [
    /^sdp_mcp_leader 1$/m,
    /^sdp_mcp_instance_start_seconds_count\{kind="wake"\} [1-9]/m,
    /^sdp_mcp_instance_start_seconds_count\{kind="start"\} 1$/m,
    /^sdp_mcp_streams_open [1-9]/m,
    /^sdp_mcp_proxied_bytes_total\{direction="in"\} [1-9]/m,
    /^sdp_mcp_proxied_bytes_total\{direction="out"\} [1-9]/m,
    /^sdp_mcp_proxy_call_seconds_count\{(?=.*route="call")(?=.*outcome="2xx").*\} [1-9]/m,
    /^sdp_mcp_stream_closes_total\{reason="client"\} [1-9]/m,
    // counted with the last stop
    /^sdp_mcp_upstream_request_seconds_count\{module="requests"\} [1-9]/m,
    /^sdp_mcp_token_mints_total [1-9]/m,
    /^nodejs_eventloop_lag_p99_seconds /m,
  ]
  const counted = text.split('\n').filter(line => /^sdp_mcp_\w+?(?<!_bucket)[{ ]/.test(line))
  const missing = expected.filter(pattern => !pattern.test(text))
  expect(missing, counted.join('\n')).toEqual([])
  expect(text).not.toMatch(/alice/)
})

test("a suspended user's streams end, the container stops, and the key is told 403", async () => {
  const headers = { authorization: `Bearer ${alice.key}` }
  const stream = (await fetch(alice.sse, { headers })).body!.getReader()
  await stream.read()
  await stack.admin('PATCH', '/v1/users/alice', { suspended: true })
  await eventually(async () => (await stream.read().catch(() => ({ done: true }))).done, { withinMs: 2_000 })
  await stopped('alice')
  const refused = await fetch(alice.mcp, { method: 'POST', headers })
  expect([refused.status, ((await refused.json()) as { code: string }).code]).toEqual([403, 'user-suspended'])
  expect(await instanceOf('alice')).toMatchObject({ state: 'stopped', reasonCode: 'suspended' })
  await stack.admin('PATCH', '/v1/users/alice', { suspended: false })
})

test('a host that is full says so, to the admin and to the person, and disturbs nobody', async () => {
  await stack.controlPlane().stop()
  await stack.startControlPlane({ SDP_MAX_INSTANCES: '1', SDP_IDLE_STOP_AFTER: 'never' })
  await using client = await connect('mcp', alice.mcp, alice.key)
  const refused = await stack.admin('POST', '/v1/users', { username: 'bob' })
  expect([refused.status, refused.body.code]).toEqual([503, 'capacity-exhausted'])
  expect(refused.headers.get('retry-after')).not.toBeNull()
  expect(refused.body.detail).toContain('SDP_MAX_INSTANCES')
  expect((await stack.admin('GET', '/v1/users/bob')).status).toBe(404)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)

  // somebody who sleeps while others fill the host
  await stack.controlPlane().stop()
  await stack.startControlPlane({ SDP_MAX_INSTANCES: '2', SDP_IDLE_STOP_AFTER: 'never' })
  const bob = await stack.addUser('bob')
  await stack.admin('POST', '/v1/users/bob/instance/stop')
  await stopped('bob')
  await stack.addUser('carol')
  await connect('mcp', alice.mcp, alice.key).then(other => other.close())
  const knock = () => fetch(bob.mcp, { method: 'POST', headers: { authorization: `Bearer ${bob.key}` } })
  const turnedAway = await knock()
  expect([turnedAway.status, ((await turnedAway.json()) as { code: string }).code]).toEqual([503, 'capacity-exhausted'])
  expect(await instanceOf('bob')).toMatchObject({ state: 'stopped' })
  await stack.admin('DELETE', '/v1/users/carol')
  await using back = await connect('mcp', bob.mcp, bob.key)
  expect((await back.listTools()).tools.length).toBeGreaterThan(0)
})
