import { afterAll, beforeAll, expect, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// A user's grant at Zoho: how it ends, how it is mended, and how rarely Zoho is asked.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>

beforeAll(async () => {
  stack = await startStack({
    installation: 'e2e-authorization',
    // two hundred calls at once are the point here, and more than a person is allowed
    environment: { SDP_USER_BURST: '1000', SDP_USER_CONCURRENT_REQUESTS: '1000' },
  })
  alice = await stack.addUser('alice')
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const simulator = async (method: string, path: string, body?: unknown) =>
  fetch(`${stack.simulator.url}/_sim${path}`, {
    method,
    ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  })
const tokenCalls = () =>
  stack.simulator.log.filter(entry => entry.path === '/oauth/v2/token' && entry.user === 'alice').length
const stored = async () =>
  (
    await stack.sql<{ tokens: boolean; access: boolean; state: string }>(
      `select t.refresh_token_sealed is not null as tokens, a.user_id is not null as access, t.state
         from users u join oauth_tokens t on t.user_id = u.id left join oauth_access_tokens a on a.user_id = u.id where u.username = 'alice'`,
    )
  )[0]
const newest = async (action: string) =>
  (await stack.admin('GET', `/v1/audit?user=alice&action=${action}&limit=1`)).body.events[0]
const grantCode = () => stack.simulator.createGrantCode({ user: 'alice' }).code
/** Until another container is ready than `before`. */
const restarted = (before: string) =>
  eventually(
    async () => {
      const { state, containerId } = (await stack.admin('GET', '/v1/users/alice')).body.instance
      return state === 'ready' && containerId !== before
    },
    { withinMs: 30_000, what: 'the restart' },
  )
const restart = async () => {
  const { containerId } = (await stack.admin('GET', '/v1/users/alice')).body.instance
  await stack.admin('POST', '/v1/users/alice/instance/restart')
  await restarted(containerId)
}
const work = async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  return await client.callTool({ name: 'search_requests', arguments: { view: 'all', limit: 1 } })
}

test('two hundred tool calls on an expired token make one token call, whether ours or Zoho’s clock noticed', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  const stampede = async () => {
    const before = tokenCalls()
    const results = await Promise.all(
      Array.from({ length: 200 }, () =>
        client.callTool({ name: 'search_requests', arguments: { view: 'all', limit: 1 } }, undefined, {
          timeout: 110_000,
        }),
      ),
    )
    expect(results.filter(result => result.isError)).toEqual([])
    return tokenCalls() - before
  }
  // Zoho no longer takes it: each call is answered 401
  await simulator('POST', '/expire-access-tokens', { user: 'alice' })
  expect(await stampede()).toBe(1)

  // it has expired by the clock, in a process that has just started
  await stack.sql("update oauth_access_tokens set expires_at = now() - interval '1 minute'")
  await restart()
  await using again = await connect('mcp', alice.mcp, alice.key)
  const before = tokenCalls()
  const results = await Promise.all(
    Array.from({ length: 200 }, () =>
      again.callTool({ name: 'search_requests', arguments: { view: 'all', limit: 1 } }),
    ),
  )
  expect(results.filter(result => result.isError)).toEqual([])
  expect(tokenCalls() - before).toBe(1)
}, 240_000)

test('an instance that is not used holds no connection of the database', async () => {
  const held = async () =>
    (
      await stack.sql(
        "select 1 from pg_stat_activity where usename like 'sdpmcp\\_u\\_%' and datname = current_database()",
      )
    ).length
  expect((await work()).isError).toBeFalsy()
  let most = 0
  await eventually(
    async () => {
      const now = await held()
      most = Math.max(most, now)
      return now === 0
    },
    { withinMs: 30_000, what: 'the release of the connections' },
  )
  expect(most).toBeLessThanOrEqual(2)
})

test('with Zoho away, ending an authorization fails, erases nothing and can be repeated', async () => {
  const { ids } = (await (
    await simulator('POST', '/faults', {
      rules: [{ kind: 'status', status: 503, match: { path: '/oauth/v2/token/revoke' } }],
    })
  ).json()) as { ids: string[] }
  const failed = await stack.admin('DELETE', '/v1/users/alice/authorization')
  expect([failed.status, failed.body.code, Number(failed.headers.get('retry-after')) > 0]).toEqual([
    503,
    'accounts-unavailable',
    true,
  ])
  expect(await stored()).toMatchObject({ tokens: true, state: 'connected' })
  expect((await work()).isError).toBeFalsy()
  await simulator('DELETE', `/faults/${ids[0]}`)
})

test('ending an authorization revokes it at Zoho, erases every token, is audited, and tells the person what to do', async () => {
  expect((await stack.admin('DELETE', '/v1/users/alice/authorization')).status).toBe(204)
  const state = (await (await simulator('GET', '/state')).json()) as { refreshTokens: { user: string }[] }
  expect(state.refreshTokens.filter(token => token.user === 'alice')).toEqual([])
  expect(await stored()).toEqual({ tokens: false, access: false, state: 'needs-authorization' })
  expect(await newest('connection.revoked')).toMatchObject({ actor: 'admin', username: 'alice' })
  const { body } = await stack.admin('GET', '/v1/users/alice')
  expect([body.sdp.connection, body.sdp.connectionReason]).toEqual([
    'needs-authorization',
    expect.stringContaining('POST /v1/users/alice/authorization'),
  ])

  const calls = tokenCalls()
  const told = JSON.stringify((await work()).content)
  expect(told).toContain('https://api-console.zoho.com')
  expect(told).toContain('SDPOnDemand.requests.ALL')
  expect(told).toContain('/v1/users/alice/authorization')
  await using client = await connect('mcp', alice.mcp, alice.key)
  const context = await callTool(client, 'get_my_context')
  expect(context.connection).toMatchObject({
    state: 'needs-authorization',
    next_step: expect.stringContaining('https://api-console.zoho.com'),
  })
  expect(context.connection.next_step).toContain('SDPOnDemand.requests.ALL')
  expect(tokenCalls()).toBe(calls)

  // again: nothing left to do; and a new grant works at once
  expect((await stack.admin('DELETE', '/v1/users/alice/authorization')).status).toBe(204)
  expect((await stack.admin('DELETE', '/v1/users/nobody/authorization')).status).toBe(404)
  const anew = await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: grantCode() })
  expect([anew.status, anew.body.connection]).toEqual([200, 'connected'])
  expect((await work()).isError).toBeFalsy()
})

test('force erases here what cannot be revoked at Zoho, says so, and the instance forgets its token, too', async () => {
  const { ids } = (await (
    await simulator('POST', '/faults', {
      rules: [{ kind: 'status', status: 503, match: { path: '/oauth/v2/token/revoke' } }],
    })
  ).json()) as { ids: string[] }
  const before = (await stack.admin('GET', '/v1/users/alice')).body.instance.containerId
  expect((await stack.admin('DELETE', '/v1/users/alice/authorization?force=true')).status).toBe(204)
  await simulator('DELETE', `/faults/${ids[0]}`)
  expect(await stored()).toEqual({ tokens: false, access: false, state: 'needs-authorization' })
  expect((await newest('connection.erased')).detail.next).toContain('Connected Apps')
  await restarted(before)
  expect((await work()).isError).toBe(true)
  await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: grantCode() })
})

test('a wrong client secret parks the connection at once; the right one, and nothing else, mends it', async () => {
  const { clientSecret } = stack.simulator.clients.find(client => client.owner === 'alice')!
  // as after somebody regenerated the secret in Zoho's console: the stored one is no longer right
  await stack.admin('PATCH', '/v1/users/alice', { sdp: { clientSecret: 'f'.repeat(42) } })
  await simulator('POST', '/expire-access-tokens', { user: 'alice' })
  await stack.sql('delete from oauth_access_tokens')
  await restart()
  expect((await work()).isError).toBe(true)
  const parked = (await stack.admin('GET', '/v1/users/alice')).body.sdp
  expect([parked.connection, parked.connectionReason]).toEqual([
    'needs-reauthorization',
    expect.stringContaining('secret'),
  ])
  const calls = tokenCalls()
  expect((await work()).isError).toBe(true)
  expect(tokenCalls()).toBe(calls)

  const { body: before } = await stack.admin('GET', '/v1/users/alice')
  await stack.admin('PATCH', '/v1/users/alice', { sdp: { clientSecret } })
  expect((await work()).isError).toBeFalsy()
  const { body: after } = await stack.admin('GET', '/v1/users/alice')
  expect(after.sdp.connection).toBe('connected')
  expect(after.instance.containerId).toBe(before.instance.containerId)
})
