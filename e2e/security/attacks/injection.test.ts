import type { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bearer, docker, initialize, post, speak } from '../../support/attacker.ts'
import { callTool, connect } from '../../support/mcp-client.ts'
import { type Stack, startStack } from '../../support/stack.ts'

// Text that wants to be something else: a statement, a path, a log line, an object.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let client: Client

beforeAll(async () => {
  // at the level that writes most
  stack = await startStack({ environment: { SDP_LOG_LEVEL: 'debug' } })
  alice = await stack.addUser('alice', { toolsets: await everyToolset() })
  client = await connect('mcp', alice.mcp, alice.key)
})
afterAll(async () => {
  await client?.close()
  await stack?.[Symbol.asyncDispose]()
})

/** As the description of the API names them. */
async function everyToolset(): Promise<string[]> {
  const description = JSON.stringify(await (await fetch(`${stack.adminUrl}/openapi.json`)).json())
  return JSON.parse(/"toolsets":\{.*?"enum":(\[[^\]]+\])/.exec(description)![1]!)
}

const sql = "x'; drop table oauth_tokens; select pg_sleep(10); --"
const forged = '{"level":"info","msg":"forged.event","username":"bob"}'
const newlines = `a\r\n${forged}\n\u001b[2K\u001b[31m\u2028${forged}\u0085`

type Schema = {
  type?: string | string[]
  enum?: unknown[]
  items?: Schema
  properties?: Record<string, Schema>
  required?: string[]
  anyOf?: Schema[]
  minimum?: number
}

/** A value that fits the schema, with `text` wherever a free text goes. */
function filled(schema: Schema, text: string, everything: boolean): unknown {
  if (schema.enum) return schema.enum[0]
  if (schema.anyOf) return filled(schema.anyOf[0]!, text, everything)
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type
  if (type === 'string') return text
  if (type === 'integer' || type === 'number') return Math.max(1, schema.minimum ?? 1)
  if (type === 'boolean') return false
  if (type === 'array') return [filled(schema.items ?? { type: 'string' }, text, everything)]
  const names = Object.keys(schema.properties ?? {})
  return Object.fromEntries(
    names
      .filter(name => everything || schema.required?.includes(name))
      .map(name => [name, filled(schema.properties![name]!, text, everything)]),
  )
}

const upstreamSince = (number: number) => stack.simulator.log.list(number)
const lastNumber = () => stack.simulator.log.list().at(-1)?.number ?? 0
const controlLines = () => stack.controlPlane().output().split('\n').filter(Boolean)

/** The log of the container as the engine has it, without the control plane in between. */
async function instanceLines(): Promise<string[]> {
  const { body } = await stack.admin('GET', '/v1/users/alice')
  return (await docker(['logs', body.instance.containerId])).output.split('\n').filter(Boolean)
}

function expectOneEventALine(lines: string[]): void {
  expect(lines.length).toBeGreaterThan(0)
  for (const line of lines) {
    expect(() => JSON.parse(line)).not.toThrow()
    // nothing that a terminal would obey
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what is looked for
    expect(line).not.toMatch(/[\x00-\x08\x0b-\x1f\x7f]/)
    expect(JSON.parse(line).msg).not.toBe('forged.event')
  }
}

test('attack: SQL in every text of every tool is data: for the desk, in the log of the desk, and never a statement', async () => {
  const { tools } = await client.listTools()
  expect(tools.length).toBeGreaterThan(50)
  const from = lastNumber()
  for (const tool of tools)
    for (const everything of [false, true]) {
      const startedAt = performance.now()
      const result = await client
        .callTool({
          name: tool.name,
          arguments: filled(tool.inputSchema as Schema, sql, everything) as Record<string, unknown>,
        })
        .catch((error: Error) => ({ content: error.message }))
      expect([tool.name, performance.now() - startedAt < 9_000]).toEqual([tool.name, true])
      expect(JSON.stringify(result)).not.toMatch(/syntax error at or near|SQLSTATE/i)
    }
  for (const { path } of upstreamSince(from)) expect(path).toMatch(/^\/((app\/itdesk\/)?api\/v3|oauth)\//)
  const mark = lastNumber()
  await callTool(client, 'search_requests', { text: sql })
  expect(JSON.stringify(upstreamSince(mark).map(entry => entry.input))).toContain(JSON.stringify(sql).slice(1, -1))
  expect(await stack.sql('select count(*)::integer as n from oauth_tokens')).toEqual([{ n: 1 }])
})

test('attack: ids that climb, encode or add a query stay one segment of the path or are refused', async () => {
  const { tools } = await client.listTools()
  const from = lastNumber()
  for (const id of [
    '../../users',
    '..%2f..%2fusers',
    '1?input_data={}',
    '//evil.example/',
    '..',
    '%2e%2e/%2e%2e',
    '1\r\nHost: evil',
  ])
    for (const tool of tools) {
      const schema = tool.inputSchema as Schema
      const names = Object.keys(schema.properties ?? {}).filter(name => /(^|_)id$/.test(name))
      if (names.length === 0) continue
      const input = {
        ...(filled(schema, 'x', false) as Record<string, unknown>),
        ...Object.fromEntries(names.map(name => [name, id])),
      }
      await client.callTool({ name: tool.name, arguments: input }).catch(() => {})
    }
  for (const { path } of upstreamSince(from)) {
    expect(path).toMatch(/^\/app\/itdesk\/api\/v3\//)
    expect(path).not.toMatch(/\/\.\.?(\/|$)|\/\/|[\r\n?#]/)
    expect(path.split('/').at(-1)).not.toBe('users')
  }
})

test('attack: objects, lists and operators where a tool expects text are refused before anything is asked', async () => {
  const from = lastNumber()
  for (const value of [{ $gt: '' }, { $ne: null }, ['a'], true, { toString: 'x' }])
    for (const [name, field] of [
      ['search_requests', 'text'],
      ['get_request', 'request_id'],
      ['add_note', 'request_id'],
      ['create_request', 'subject'],
    ] as const) {
      const input = name === 'add_note' ? { text: 'x', [field]: value } : { [field]: value }
      const outcome = await client.callTool({ name, arguments: input as Record<string, unknown> }).then(
        result => (result.isError ? 'refused' : 'taken'),
        () => 'refused',
      )
      expect([name, value, outcome]).toEqual([name, value, 'refused'])
    }
  const writes = upstreamSince(from).filter(entry => entry.method !== 'GET' && entry.path.startsWith('/app/'))
  expect(writes).toEqual([])
})

test('attack: raw criteria cannot leave the list they filter', async () => {
  const from = lastNumber()
  for (const criteria of [
    [{ field: "id' or '1'='1", condition: 'is', values: ['1'] }],
    [{ field: 'subject', condition: 'is"}]},"get_total_count":true', values: [sql] }],
    [{ field: '__proto__', condition: 'is', value: { readOnly: true } }],
    [{ field: 'subject', condition: 'is', value: '"}],"row_count":100000,"x":[{"a":"' }],
  ])
    await client.callTool({ name: 'search_requests', arguments: { criteria, limit: 2 } }).catch(() => {})
  for (const { path, input } of upstreamSince(from)) {
    expect(path).toMatch(/^\/app\/itdesk\/api\/v3\//)
    const count = (input as { list_info?: { row_count?: number } } | undefined)?.list_info?.row_count ?? 0
    expect(count).toBeLessThanOrEqual(100)
  }
  expect((await callTool(client, 'search_requests', { limit: 2 })).requests.length).toBe(2)
})

test('attack: a name of a tool, resource or prompt from the prototype, a path or a file URL finds nothing', async () => {
  for (const name of [
    '__proto__',
    'constructor',
    'toString',
    'hasOwnProperty',
    '../core/add-note',
    '',
    '*',
    'search_requests\0',
  ]) {
    const answer = await client.callTool({ name, arguments: {} }).then(
      result => result.isError === true,
      () => true,
    )
    expect([name, answer]).toEqual([name, true])
    await expect(client.getPrompt({ name, arguments: {} })).rejects.toThrow()
  }
  for (const uri of [
    'file:///etc/passwd',
    'sdp://../../etc/passwd',
    'sdp://guide/..%2f..%2fapp%2fmain.mjs',
    'sdp://guide/__proto__',
    'http://169.254.169.254/',
    'data:text/plain,x',
    'sdp://',
  ])
    await expect(client.readResource({ uri })).rejects.toThrow()
})

test('attack: line breaks and escape codes in tool input leave one JSON line for each event of the instance', async () => {
  const { tools } = await client.listTools()
  for (const tool of tools)
    await client
      .callTool({
        name: tool.name,
        arguments: filled(tool.inputSchema as Schema, newlines, true) as Record<string, unknown>,
      })
      .catch(() => {})
  await client.callTool({ name: newlines, arguments: { [newlines]: newlines } }).catch(() => {})
  expectOneEventALine(await instanceLines())
})

test('attack: line breaks in client names, versions, methods, ids and sessions forge no log line', async () => {
  const named = {
    ...initialize,
    params: { ...initialize.params, clientInfo: { name: newlines, version: newlines, title: newlines } },
  }
  await (await post(alice.mcp, bearer(alice.key), named)).text()
  for (const body of [
    { jsonrpc: '2.0', id: newlines, method: newlines, params: { [newlines]: newlines } },
    { jsonrpc: '2.0', method: `notifications/${newlines}` },
    { ...initialize, params: { ...initialize.params, protocolVersion: newlines } },
  ])
    await (await post(alice.mcp, bearer(alice.key), body)).text()
  await (
    await post(`${stack.publicUrl}/u/alice/messages?sessionId=${encodeURIComponent(newlines)}`, bearer(alice.key))
  ).text()
  expectOneEventALine(await instanceLines())
  expectOneEventALine(controlLines())
})

test('attack: hostile user agents, headers and request lines forge no log line of the control plane', async () => {
  const red = '\u001b[31m'
  for (const [base, path] of [
    [stack.publicUrl, '/u/alice/mcp'],
    [stack.publicUrl, '/nowhere'],
    [stack.adminUrl, '/v1/users'],
  ] as const) {
    await (
      await fetch(`${base}${path}?x=${encodeURIComponent(newlines)}`, {
        headers: {
          'user-agent': `evil ${forged}`,
          referer: forged,
          'x-request-id': forged,
          'x-forwarded-for': forged,
          'x-correlation-id': forged,
        },
      })
    ).text()
    for (const bytes of [
      `GET ${path}/${encodeURIComponent(newlines)} HTTP/1.1\r\nHost: x\r\nUser-Agent: ${red}\r\nConnection: close\r\n\r\n`,
      `GET ${path}\n${forged} HTTP/1.1\r\nHost: x\r\n\r\n`,
      `${forged}\r\n\r\n`,
      `GET /\u001b[2J HTTP/1.1\r\nHost: ${red}\r\nConnection: close\r\n\r\n`,
      '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    ])
      await speak(base, Buffer.from(bytes, 'latin1'), { withinMs: 1_000 })
  }
  expectOneEventALine(controlLines())
})

test('attack: usernames and texts of the admin API forge no log line and no audit row', async () => {
  for (const username of [`alice\n${forged}`, newlines, 'alice\u001b[2K'])
    for (const [method, path, body] of [
      ['POST', '/v1/users', { username }],
      ['GET', `/v1/users/${encodeURIComponent(username)}`, undefined],
      ['DELETE', `/v1/users/${encodeURIComponent(username)}`, undefined],
      ['PATCH', '/v1/users/alice', { displayName: username }],
      ['POST', '/v1/users/alice/api-keys', { name: username }],
      ['POST', '/v1/users/alice/authorization', { grantCode: username }],
    ] as const)
      expect((await stack.admin(method, path, body)).status).toBe(400)
  expectOneEventALine(controlLines())
  expect(await stack.sql("select 1 from audit_events where username <> 'alice'")).toEqual([])
})

test('attack: the log of an instance, shown to an admin, is lines of JSON, too', async () => {
  const answer = await stack.admin('GET', '/v1/users/alice/instance/logs?tail=10000')
  expect(answer.status).toBe(200)
  expect(answer.headers.get('content-type')).toContain('text/plain')
  const lines = (typeof answer.body === 'string' ? answer.body : JSON.stringify(answer.body))
    .split('\n')
    .filter(Boolean)
  for (const line of lines) expect(line.replace(/^\S+Z /, '')).toMatch(/^\{.*\}$/)
})
