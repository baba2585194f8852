import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// Who did what, as an auditor asks for it.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>

beforeAll(async () => {
  stack = await startStack({ installation: 'e2e-audit' })
  alice = await stack.addUser('alice')
})
afterAll(() => stack?.[Symbol.asyncDispose]())

type Entry = {
  id: string
  at: string
  actor: string
  action: string
  username: string
  detail: Record<string, unknown>
}
const audit = async (query: string): Promise<Entry[]> => {
  const { status, body } = await stack.admin('GET', `/v1/audit?${query}`)
  expect(status, JSON.stringify(body)).toBe(200)
  return body.events
}
const words = 'the-words-of-a-note-Kx93'

test('a tool call is recorded with user, tool, target, result, duration and request id, and nothing of its contents', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  const { requests } = await callTool(client, 'search_requests', { view: 'all', limit: 1 })
  const id = String(requests[0].id)
  await callTool(client, 'add_note', { request_id: id, text: words })
  const failed = await client.callTool({ name: 'get_request', arguments: { request_id: '999999999' } })
  expect(failed.isError).toBe(true)
  const calls = await eventually(
    async () => {
      const found = await audit('user=alice&action=tool.called')
      return found.length >= 3 ? found.reverse() : undefined
    },
    { what: 'three audited calls' },
  )
  expect(calls.map(({ actor, detail }) => [actor, detail.tool, detail.target, detail.outcome])).toEqual([
    ['user:alice', 'search_requests', undefined, 'ok'],
    ['user:alice', 'add_note', id, 'ok'],
    ['user:alice', 'get_request', '999999999', 'not-found'],
  ])
  for (const { detail } of calls) {
    expect(detail.durationMs).toEqual(expect.any(Number))
    expect(detail.requestId).toMatch(/^[0-9a-f]{12}$/)
  }
  expect(JSON.stringify(await audit('limit=1000'))).not.toContain(words)
})

test('calls that were not written yet when an instance ends are written on its way out', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  await callTool(client, 'find_people', { query: 'bob' })
  expect((await stack.admin('POST', '/v1/users/alice/instance/stop')).status).toBe(202)
  await eventually(async () => (await stack.admin('GET', '/v1/users/alice')).body.instance.state === 'stopped', {
    what: 'the stop',
  })
  // far less than the second for which calls are gathered may have passed since the call
  await eventually(
    async () => (await audit('user=alice&action=tool.called&limit=1'))[0]?.detail.tool === 'find_people',
    { what: 'the call made just before the end' },
  )
})

test('the database away makes no call fail or wait, and what happened meanwhile is recorded afterwards', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  await callTool(client, 'get_queue_summary')
  await eventually(async () => (await audit('action=tool.called&limit=1'))[0]?.detail.tool === 'get_queue_summary', {
    what: 'the first call',
  })
  const [{ role }] = (await stack.sql<{ role: string }>(
    "select 'sdpmcp_u_' || replace(id::text, '-', '') as role from users where username = 'alice'",
  )) as [{ role: string }]
  await stack.sql(`alter role ${role} nologin`)
  await stack.sql('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [role])
  const startedAt = performance.now()
  await callTool(client, 'search_requests', { view: 'all', limit: 2 })
  // the connection would be tried for seconds
  expect(performance.now() - startedAt).toBeLessThan(4_000)
  await delay(1_500)
  await stack.sql(`alter role ${role} login`)
  await eventually(async () => (await audit('action=tool.called&limit=1'))[0]?.detail.tool === 'search_requests', {
    withinMs: 40_000,
    what: 'the call made while the database was away',
  })
})

test('changes by the admin, the first use of a key and the authorization are there, filtered and in pages', async () => {
  await stack.admin('PATCH', '/v1/users/alice', { readOnly: false, displayName: 'Alice A.' })
  const actions = (await audit('user=alice&limit=1000')).map(({ action }) => action)
  for (const action of ['user.created', 'user.changed', 'api-key.used', 'connection.state-changed', 'instance.stop'])
    expect(actions).toContain(action)
  expect((await audit('action=connection.*')).map(({ actor, detail }) => [actor, detail.to])).toEqual([
    ['instance:alice', 'connected'],
  ])
  expect(await audit('user=nobody')).toEqual([])
  const future = new Date(Date.now() + 60_000).toISOString()
  expect(await audit(`from=${future}`)).toEqual([])

  const seen: Entry[] = []
  let cursor: string | null = null
  do {
    const { body } = await stack.admin(
      'GET',
      `/v1/audit?user=alice&limit=3${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ''}`,
    )
    seen.push(...body.events)
    cursor = body.nextCursor
  } while (cursor)
  expect(seen.map(({ id }) => id)).toEqual((await audit('user=alice&limit=1000')).map(({ id }) => id))
  expect(new Set(seen.map(({ id }) => id)).size).toBe(seen.length)
})

test('everything is exported as lines of JSON and as CSV, oldest first', async () => {
  // a spreadsheet must not run what a client sent
  await using client = await connect('mcp', alice.mcp, alice.key)
  await client.callTool({ name: 'get_request', arguments: { request_id: '=HYPERLINK("http://x"),1' } })
  await eventually(async () => (await audit('action=tool.called&limit=1'))[0]?.detail.target !== undefined, {
    what: 'the call',
  })
  const lines = await stack.admin('GET', '/v1/audit?user=alice', undefined, { accept: 'application/x-ndjson' })
  expect(lines.headers.get('content-type')).toContain('application/x-ndjson')
  const entries: Entry[] = String(lines.body)
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  expect(entries.map(({ id }) => id).reverse()).toEqual((await audit('user=alice&limit=1000')).map(({ id }) => id))

  const csv = await stack.admin('GET', '/v1/audit?user=alice', undefined, { accept: 'text/csv' })
  expect(csv.headers.get('content-type')).toContain('text/csv')
  const rows = String(csv.body).trim().split('\r\n')
  expect(rows[0]).toBe('id,at,actor,action,username,tool,target,outcome,durationMs,requestId,detail')
  expect(rows).toHaveLength(entries.length + 1)
  expect(rows.at(-1)).toContain(`,"'=HYPERLINK(""http://x""),1",`)
})

test('a wrong question is refused with all its wrong parts, and nobody without the admin token reads anything', async () => {
  const { status, body } = await stack.admin('GET', '/v1/audit?user=A&from=yesterday&limit=0&cursor=x&action=DROP')
  expect([status, body.code]).toEqual([400, 'request-invalid'])
  expect(body.errors.map((part: { pointer: string }) => part.pointer).sort()).toEqual(
    ['user', 'from', 'limit', 'cursor', 'action'].map(name => `#/query/${name}`).sort(),
  )
  for (const from of ['0000-01-01T00:00:00Z', '2026-01-01T00:00:00%2B23:59'])
    expect((await stack.admin('GET', `/v1/audit?from=${from}`)).status, from).toBe(400)
  expect((await stack.admin('GET', '/v1/audit', undefined, { authorization: 'Bearer wrong' })).status).toBe(401)
})
