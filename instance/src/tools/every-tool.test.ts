import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js'
import { pino } from 'pino'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { buildServer } from '../server.ts'
import { type Desk, outcomesOf, type Session, startDesk, type TestContext, textOf } from '../testing/desk.ts'
import { everyTool } from '../testing/every-tool.ts'
import { createFixtures, type Fixtures } from '../testing/fixtures.ts'
import { writesOf } from '../testing/support.ts'
import { type HttpServer, serveHttp } from '../transports/http.ts'
import { catalogue } from './catalogue.ts'
import type { Tool } from './define.ts'

/**
 * Each tool over the wire, from the SDK's client through the HTTP transport to the simulated site: a success, a mistake
 * the model can mend, a refusal and a time-out of the site.
 */

const timeoutMs = 400
/** Calls at a time in the time-out rows: they wait more than they work. */
const atOnce = 16

let desk: Desk
let server: HttpServer
let context: TestContext
let carol: Session
let fixtures: Fixtures
/** whose answers are not waited for longer than {@link timeoutMs} */
let impatientWith: string[] = []

beforeAll(async () => {
  desk = await startDesk()
  context = await desk.context('carol')
  const { http } = context
  // in place of the 20 and 30 seconds that the client of the site waits
  context.http = call => http(impatientWith.includes(call.method) ? { ...call, timeoutMs } : call)
  server = await serveHttp({
    host: '127.0.0.1',
    port: 0,
    gate: async () => ({ purpose: 'mcp' }),
    // a context of its own for each session, so that no cache of another call hides a call to the site
    buildServer: wish => buildServer({ ...context }, wish),
    identity: { audience: 'test', version: '0' },
    control: {
      exchange: () => Promise.reject(new Error('not here')),
      revoke: () => Promise.reject(new Error('not here')),
      usage: () => Promise.reject(new Error('not here')),
    },
    log: pino({ level: 'silent' }),
  })
  carol = await connect()
  fixtures = await createFixtures(carol)
})
afterEach(() => {
  impatientWith = []
  desk.simulator.faults.clear()
})
afterAll(async () => {
  await carol?.client.close()
  await server?.stop(0)
  await desk?.[Symbol.asyncDispose]()
})

async function connect(): Promise<Session> {
  const client = new Client({ name: 'test', version: '1' })
  const transport = new StreamableHTTPClientTransport(new URL(`http://127.0.0.1:${server.port}/mcp`))
  await client.connect(transport)
  const call = async (tool: string, args = {}) =>
    (await client.callTool({ name: tool, arguments: args })) as CallToolResult
  return {
    client: Object.assign(client, { close: () => transport.terminateSession().then(() => transport.close()) }),
    calls: [],
    ...outcomesOf(call),
  }
}

/** Calls a tool, and again with its token where it shows first what it would do. */
async function act({ call }: Session, tool: string, args: Record<string, unknown>): Promise<CallToolResult> {
  const first = await call(tool, args)
  const { confirm_token, plan_token } = (first.structuredContent ?? {}) as Record<string, string | undefined>
  if (confirm_token) return call(tool, { ...args, confirm_token })
  return plan_token ? call(tool, { ...args, plan_token, dry_run: false }) : first
}

const byName = catalogue.map(tool => [tool.name, tool] as const)
const rowOf = (name: string) => everyTool[name]!
const spoiled = (tool: Tool) => (tool.effect === 'read' ? ['GET'] : ['POST', 'PUT', 'DELETE'])

it('there is a row for every tool', () => {
  expect(Object.keys(everyTool).sort()).toEqual(catalogue.map(({ name }) => name).sort())
})

it.each(byName)('%s succeeds, and only writes write', async (name, tool) => {
  const args = await rowOf(name).works(fixtures, carol)
  const before = writesOf(desk).length
  const result = await act(carol, name, args)
  expect(result.isError, textOf(result)).toBeFalsy()
  expect(result.structuredContent).toBeTruthy()
  expect(result.structuredContent?.done, textOf(result)).not.toBe(false)
  if (tool.effect === 'read') expect(writesOf(desk).length).toBe(before)
  else expect(writesOf(desk).length).toBeGreaterThan(before)
})

it.each(byName)('%s tells the model how to mend a mistake, and changes nothing', async name => {
  const { mistake, told } = rowOf(name)
  const args = await mistake(fixtures)
  const before = writesOf(desk).length
  const failure = await carol.fails(name, args)
  expect(failure).toMatch(told)
  expect(failure).not.toMatch(/Reference \w+\.|\[object|undefined/)
  expect(failure).toMatch(/Next: |is not a date\. Use ISO/)
  expect(writesOf(desk).length).toBe(before)
})

/** What a refusal or a time-out of the site leads to, each tool on a session with cold caches. */
async function underFaults(
  tools: readonly Tool[],
  fault: { kind: 'status'; status: number } | { kind: 'hang' },
  methods: string[],
): Promise<Map<string, CallToolResult>> {
  const results = new Map<string, CallToolResult>()
  const ready: { tool: Tool; session: Session; args: Record<string, unknown> }[] = []
  for (const tool of tools) {
    const session = await connect()
    ready.push({ tool, session, args: await rowOf(tool.name).works(fixtures, session) })
  }
  for (const method of methods) desk.simulator.faults.add({ ...fault, match: { method, server: 'api' } })
  if (fault.kind === 'hang') impatientWith = methods
  const queue = [...ready]
  const work = async () => {
    for (let next = queue.shift(); next; next = queue.shift())
      results.set(next.tool.name, await act(next.session, next.tool.name, next.args))
  }
  await Promise.all(Array.from({ length: atOnce }, work))
  for (const { session } of ready) await session.client.close()
  return results
}

const groups: [string, readonly Tool[]][] = [
  ['reads', catalogue.filter(({ effect }) => effect === 'read')],
  ['writes', catalogue.filter(({ effect }) => effect !== 'read')],
]
/** These answer with what they know. */
const answerAnyway = ['get_my_context', 'get_form_fields']
/** These tell of each record by itself. */
const answerByRecord = ['bulk_update_requests', 'link_requests_to_problem', 'link_to_change']

describe.each(groups)('%s', (what, tools) => {
  it('say so when the site refuses, and what to do', async () => {
    const results = await underFaults(tools, { kind: 'status', status: 403 }, spoiled(tools[0]!))
    expect(results.size).toBe(tools.length)
    for (const [name, result] of results) {
      const said = textOf(result)
      if (name === 'get_my_context') expect(said).toContain('username: carol')
      else expect(said, name).toMatch(/does not let this person|does not show its form/)
      if (answerByRecord.includes(name)) expect(result.structuredContent).toMatchObject({ done: false })
      else if (!answerAnyway.includes(name)) {
        expect(result.isError, said).toBe(true)
        expect(said, name).toMatch(/HTTP 403[\s\S]*Next: /)
      }
    }
  }, 60_000)

  it('say so when the site does not answer in time, and never repeat a write that may have been made', async () => {
    const results = await underFaults(tools, { kind: 'hang' }, spoiled(tools[0]!))
    expect(results.size).toBe(tools.length)
    for (const [name, result] of results) {
      const said = textOf(result)
      expect(said, name).toMatch(/did not answer in time|No answer came in time/)
      if (answerByRecord.includes(name)) expect(result.structuredContent).toMatchObject({ done: false })
      else if (!answerAnyway.includes(name)) {
        expect(result.isError, said).toBe(true)
        expect(said, name).toMatch(
          what === 'reads' ? /Next: Try again in a minute/ : /Next: .*(Do not repeat it blindly|never send it again)/,
        )
      }
    }
    const posts = desk.simulator.faults.list().find(({ rule }) => rule.match.method === 'POST')
    if (posts) expect(posts.hits).toBeLessThanOrEqual(tools.length)
  }, 60_000)
})

/** A raw write names no record that could be looked at. */
const cannotLook = ['sdp_api_write']
const writes = byName.filter(([name, { effect }]) => effect !== 'read' && !cannotLook.includes(name))

it.each(writes)('%s whose answer is lost looks what became of it, and is not made twice', async name => {
  const args = await rowOf(name).works(fixtures, carol)
  const before = writesOf(desk).length
  // the site does what it is told, and the connection ends before its answer
  desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'POST', server: 'api' }, count: 1 })
  desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'DELETE', server: 'api' }, count: 1 })
  const result = await act(carol, name, args)
  const isLost = desk.simulator.faults.list().some(({ hits }) => hits > 0)
  desk.simulator.faults.clear()
  expect(isLost).toBe(
    writesOf(desk)
      .slice(before)
      .some(({ method }) => method !== 'PUT'),
  )
  expect(result.isError, textOf(result)).toBeFalsy()
  expect(result.structuredContent?.done, textOf(result)).not.toBe(false)
  const sent = writesOf(desk)
    .slice(before)
    .map(write => JSON.stringify(write))
  expect(new Set(sent).size).toBe(sent.length)
})

const edits = [
  ...[
    'update_request',
    'assign_request',
    'resolve_request',
    'close_request',
    'revert_change',
    'edit_note',
    'update_task',
  ],
  ...['update_problem', 'update_change', 'submit_change', 'update_asset', 'link_assets', 'update_ci', 'update_project'],
  ...['decide_approval', 'merge_requests', 'restore_request', 'bulk_update_requests'],
]

it.each(edits)(
  '%s whose every answer to an edit is lost looks what became of it',
  async name => {
    const args = await rowOf(name).works(fixtures, carol)
    // an edit is sent three times at most; an operation that is no edit once
    desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'PUT', server: 'api' }, count: 3 })
    const result = await act(carol, name, args)
    expect(desk.simulator.faults.list().some(({ hits }) => hits > 0)).toBe(true)
    desk.simulator.faults.clear()
    expect(result.isError, textOf(result)).toBeFalsy()
    expect(result.structuredContent?.done, textOf(result)).not.toBe(false)
  },
  20_000,
)
