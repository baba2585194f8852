import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import {
  LoggingMessageNotificationSchema,
  type MessageExtraInfo,
  ToolListChangedNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js'
import { pino } from 'pino'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { createClientLog } from './client-log.ts'
import { AuthorizationError } from './context.ts'
import { buildServer, servicesOf } from './server.ts'
import { createSession, type Extra, type ToolCallRecord } from './session.ts'
import { type Desk, startDesk, textOf } from './testing/desk.ts'
import { catalogue } from './tools/catalogue.ts'

let desk: Desk
beforeAll(async () => {
  desk = await startDesk()
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const names = async (session: { client: { listTools(): Promise<{ tools: { name: string }[] }> } }) =>
  (await session.client.listTools()).tools.map(({ name }) => name)

describe('the tools of a session', () => {
  it('are what the administrator allows, narrowed by the session, never widened', async () => {
    const context = await desk.context('alice', { toolsets: ['core', 'approvals'] })
    const whole = await names(await desk.connect(context))
    const core = await names(await desk.connect(context, { toolsets: ['core', 'destructive'] }))
    expect(core.length).toBeGreaterThan(20)
    expect(core.filter(name => !whole.includes(name))).toEqual([])
    expect(core).not.toContain('trash_request')
  })

  it('contain no write when read-only, and a write then does not exist', async () => {
    const context = await desk.context('alice', { readOnly: true })
    const session = await desk.connect(context)
    const { tools } = await session.client.listTools()
    expect(tools.length).toBeGreaterThan(10)
    for (const tool of tools) expect(tool.annotations?.readOnlyHint, tool.name).toBe(true)
    await expect(session.call('add_note', { request_id: '1', text: 'x' })).rejects.toThrow(/read-only/)
    const narrowed = await desk.connect(await desk.context('alice'), { readOnly: true })
    expect(await names(narrowed)).toEqual(await names(session))
  })

  it('contain nothing the granted scopes cannot do', async () => {
    const session = await desk.connect(await desk.context('alice', { scopes: ['SDPOnDemand.requests.READ'] }))
    const offered = await names(session)
    expect(offered).toContain('search_requests')
    expect(offered).not.toContain('create_request')
    expect(offered).not.toContain('search_solutions')
    await expect(session.call('create_request', { subject: 'x' })).rejects.toThrow(/scopes requests.CREATE/)
  })

  it('are announced anew when the granted scopes change', async () => {
    let now = Date.now()
    const context = { ...(await desk.context('alice', { scopes: ['SDPOnDemand.requests.READ'] })), now: () => now }
    const session = await desk.connect(context)
    const changed = vi.fn()
    session.client.setNotificationHandler(ToolListChangedNotificationSchema, changed)
    const before = await names(session)
    const status = await context.tokens.status()
    context.tokens.status = async () => ({ ...status, scopes: ['SDPOnDemand.requests.ALL'] })
    now += 60_000
    await names(session)
    await vi.waitFor(() => expect(changed).toHaveBeenCalled())
    expect((await names(session)).length).toBeGreaterThan(before.length)
  })

  it('stay visible while nobody has authorized, so that the failure can say what to do', async () => {
    const context = await desk.context('alice')
    context.tokens.lose(new AuthorizationError('needs-authorization', 'Not authorized yet.', ''))
    const session = await desk.connect(context)
    expect((await names(session)).length).toBeGreaterThan(20)
    expect(await session.fails('search_requests')).toContain('1. Open https://api-console.zoho.com')
  })

  it('an unknown tool is a protocol error', async () => {
    const session = await desk.connect(await desk.context('alice'))
    await expect(session.call('no_such_tool')).rejects.toThrow(/Unknown tool/)
  })
})

it('schemas are made once for all sessions, not for each list', async () => {
  const context = await desk.context('alice')
  const lists: unknown[][] = []
  for (let round = 0; round < 2; round++) {
    const [near, far] = InMemoryTransport.createLinkedPair()
    near.onmessage = message => {
      const { result } = message as { result?: { tools?: unknown[] } }
      if (result?.tools) lists.push(result.tools)
    }
    await buildServer(context).connect(far)
    await near.start()
    await near.send({ jsonrpc: '2.0', id: 1, method: 'tools/list' })
    await vi.waitFor(() => expect(lists).toHaveLength(round + 1))
  }
  // in memory nothing is serialized: the very same objects
  expect(lists[0]?.every((tool, index) => tool === lists[1]?.[index])).toBe(true)
})

it.each([
  ['2025-11-25', true],
  ['2025-06-18', true],
  ['2025-03-26', false],
  [undefined, false],
])('a client of protocol version %s gets resource links: %s', async (version, expected) => {
  const context = await desk.context('carol')
  const carol = await desk.connect(context)
  const { number } = await carol.ok('create_request', { subject: `Zip for ${version}` })
  await carol.ok('add_attachment', { request_id: number, name: 'a.zip', content: 'UEsDBA==', encoding: 'base64' })
  const [near, far] = InMemoryTransport.createLinkedPair()
  const answered = new Promise<{ type: string }[]>(done => {
    near.onmessage = message => done((message as unknown as { result: { content: { type: string }[] } }).result.content)
  })
  await buildServer(context).connect(far)
  const headers = version === undefined ? {} : { 'mcp-protocol-version': version }
  const params = { name: 'get_attachment', arguments: { request_id: number, attachment_id: 'a.zip' } }
  // what the HTTP transports hand over with each message
  const extra: MessageExtraInfo = { requestInfo: { headers } }
  const receive: Transport['onmessage'] = far.onmessage
  receive?.({ jsonrpc: '2.0', id: 1, method: 'tools/call', params }, extra)
  expect((await answered).some(({ type }) => type === 'resource_link')).toBe(expected)
})

it('two people at once get their own answers', async () => {
  const [alice, bob] = await Promise.all(['alice', 'bob'].map(async user => desk.connect(await desk.context(user))))
  const asked = await Promise.all(
    Array.from({ length: 20 }, (_, index) => (index % 2 ? alice : bob)?.ok('get_my_context')),
  )
  expect(asked.map(answer => answer.user.username)).toEqual(
    Array.from({ length: 20 }, (_, index) => (index % 2 ? 'alice' : 'bob')),
  )
})

it('a cancelled call ends the call to the site', async () => {
  const session = await desk.connect(await desk.context('alice'))
  desk.simulator.faults.add({ kind: 'hang', match: { path: '/requests' } })
  const controller = new AbortController()
  const call = session.client.callTool({ name: 'search_requests', arguments: {} }, undefined, {
    signal: controller.signal,
  })
  await vi.waitFor(() => expect(desk.simulator.faults.list()[0]?.hits).toBe(1))
  const startedAt = performance.now()
  controller.abort('changed my mind')
  await expect(call).rejects.toThrow()
  await vi.waitFor(() => expect(session.calls.at(-1)?.outcome).toBe('cancelled'))
  expect(performance.now() - startedAt).toBeLessThan(1_000)
})

it('each call leaves one line for the audit: tool, target, outcome, no content', async () => {
  const lines: string[] = []
  const log = pino({ level: 'debug' }, { write: line => lines.push(line) })
  const session = await desk.connect(await desk.context('alice', { log }))
  const { number } = await session.ok('create_request', { subject: 'Secret subject 4711' })
  await session.ok('add_note', { request_id: number, text: 'Secret note 4712' })
  await session.fails('get_request', { request_id: '999999' })
  expect(session.calls).toEqual([
    expect.objectContaining({
      tool: 'create_request',
      outcome: 'ok',
      sdpCalls: expect.any(Number),
      requestId: expect.any(String),
    }),
    expect.objectContaining({ tool: 'add_note', target: number, outcome: 'ok' }),
    expect.objectContaining({ tool: 'get_request', target: '999999', outcome: 'not-found' }),
  ])
  const written = lines.join('')
  expect(written.match(/"tool.called"/g)).toHaveLength(3)
  expect(written).not.toMatch(/Secret|\b471[12]\b/)
  expect(written).not.toContain('1000.')
})

it('a client that asks for log messages is told of calls from its level up, and one that does not ask is not', async () => {
  const session = await desk.connect(await desk.context('alice'))
  const told: { level: string; data: unknown }[] = []
  session.client.setNotificationHandler(
    LoggingMessageNotificationSchema,
    ({ params }) => void told.push(params as never),
  )
  await session.fails('get_request', { request_id: '999999' })
  expect(told).toEqual([])
  await session.client.setLoggingLevel('info')
  await session.ok('search_requests', { text: 'secret words 4711' })
  await session.fails('get_request', { request_id: '999999' })
  expect(told).toEqual([
    { level: 'info', logger: 'sdp-mcp', data: expect.objectContaining({ tool: 'get_request', outcome: 'not-found' }) },
  ])
  await session.client.setLoggingLevel('debug')
  await session.ok('search_requests', { text: 'secret words 4711' })
  expect(told[1]).toMatchObject({ level: 'debug', data: { tool: 'search_requests', outcome: 'ok' } })
  expect(JSON.stringify(told)).not.toContain('4711')
})

it('a fault of ours tells no internals, but a reference that the log has', async () => {
  const lines: string[] = []
  const log = pino({}, { write: line => lines.push(line) })
  const context = await desk.context('alice', { log })
  servicesOf(context).requests.list = () => {
    throw new TypeError('inner detail')
  }
  const session = await desk.connect(context)
  const failure = await session.fails('search_requests')
  expect(failure).not.toContain('inner detail')
  const reference = /Reference (\w+)/.exec(failure)?.[1] ?? 'none'
  expect(lines.some(line => line.includes(reference) && line.includes('inner detail'))).toBe(true)
})

it('a result that cannot be shown is a failure of the tool like any other, and told as one', async () => {
  const context = await desk.context('alice')
  const mcp = buildServer(context)
  const records: ToolCallRecord[] = []
  const clientLog = createClientLog(new McpServer({ name: 'test', version: '1' }))
  const session = createSession(context, servicesOf(context), mcp, { clientLog, onToolCall: one => records.push(one) })
  const tool = { ...catalogue[0]!, requiredLists: [], run: async () => ({ data: { many: 1n } }) }
  const result = await session.run(tool, {}, { signal: new AbortController().signal } as Extra)
  expect(result.isError).toBe(true)
  expect(textOf(result)).toMatch(/This server failed[\s\S]*Reference/)
  expect(records).toEqual([expect.objectContaining({ outcome: 'internal' })])
})

describe('resources', () => {
  it('are listed, and read like the tools behind them', async () => {
    const session = await desk.connect(await desk.context('carol'))
    const listed = (await session.client.listResources()).resources.map(({ uri }) => uri)
    expect(listed).toEqual(
      expect.arrayContaining(['sdp://me', 'sdp://me/queue', 'sdp://guide/search', 'sdp://guide/errors']),
    )
    const templates = (await session.client.listResourceTemplates()).resourceTemplates.map(
      ({ uriTemplate }) => uriTemplate,
    )
    expect(templates).toEqual([
      'sdp://request/{id}',
      'sdp://solution/{id}',
      'sdp://schema/{module}',
      'sdp://options/{field}',
    ])
    const read = async (uri: string) => {
      const { contents } = await session.client.readResource({ uri })
      return (contents[0] as { text: string }).text
    }
    expect(await read('sdp://me')).toContain('username: carol')
    expect(await read('sdp://me/queue')).toContain('requests:')
    expect(await read('sdp://request/12')).toContain('number: 12')
    expect(await read('sdp://request/%2312')).toContain('number: 12')
    expect(await read('sdp://schema/request')).toContain('txt_environment')
    expect(await read('sdp://options/status')).toContain('On Hold')
    expect(await read('sdp://guide/search')).toContain('lesser than')
    await expect(read('sdp://request/999999')).rejects.toThrow(/no ticket #999999/)
  })

  it('of tools that the session lacks are refused', async () => {
    const session = await desk.connect(await desk.context('alice', { scopes: ['SDPOnDemand.requests.READ'] }))
    await expect(session.client.readResource({ uri: 'sdp://solution/1' })).rejects.toThrow(/scopes/)
  })

  it('complete ticket numbers, modules and fields', async () => {
    const session = await desk.connect(await desk.context('carol'))
    const complete = async (uri: string, name: string, value: string) =>
      (await session.client.complete({ ref: { type: 'ref/resource', uri }, argument: { name, value } })).completion
        .values
    expect(await complete('sdp://options/{field}', 'field', 'clos')).toEqual(['closure_code'])
    expect(await complete('sdp://schema/{module}', 'module', 'pro')).toEqual(['problem', 'project'])
    const numbers = await complete('sdp://request/{id}', 'id', '')
    expect(numbers.length).toBeGreaterThan(0)
    expect(await complete('sdp://request/{id}', 'id', numbers[0] ?? '')).toContain(numbers[0])
  })
})

describe('prompts', () => {
  it('are listed, filled and completed', async () => {
    const session = await desk.connect(await desk.context('carol', { toolsets: ['core'] }))
    const { prompts } = await session.client.listPrompts()
    expect(prompts.map(({ name }) => name)).toEqual([
      'triage',
      'standup',
      'work_ticket',
      'resolve',
      'handoff',
      'draft_reply',
      'escalate',
      'ticket_from_conversation',
      'weekly_report',
    ])
    const { messages } = await session.client.getPrompt({ name: 'handoff', arguments: { id: '57', person: 'Bob' } })
    expect(messages).toEqual([
      { role: 'user', content: { type: 'text', text: expect.stringContaining('Hand ticket 57 over to Bob') } },
    ])
    const people = await session.client.complete({
      ref: { type: 'ref/prompt', name: 'handoff' },
      argument: { name: 'person', value: 'al' },
    })
    expect(people.completion.values).toContain('Alice Moreau')
  })

  it('that write are not offered to a read-only session', async () => {
    const session = await desk.connect(await desk.context('carol', { readOnly: true }))
    const offered = (await session.client.listPrompts()).prompts.map(({ name }) => name)
    expect(offered).toContain('standup')
    expect(offered).not.toContain('resolve')
  })
})

it('instructions are at most 120 words and say the rules that matter', async () => {
  const session = await desk.connect(await desk.context('carol'))
  const text = session.client.getInstructions() ?? ''
  expect(text.split(/\s+/).length).toBeLessThanOrEqual(120)
  for (const word of ['get_my_context', 'private', 'e-mail', 'list_field_options', '<untrusted>'])
    expect(text).toContain(word)
})
