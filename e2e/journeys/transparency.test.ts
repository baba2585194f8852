import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js'
import { freePort } from '@sdp-mcp/migrations/testing'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { runConformance } from '../support/conformance.ts'
import { buildFixtureImage } from '../support/fixture-image.ts'
import { startKeyAdder } from '../support/key-adder.ts'
import { connect } from '../support/mcp-client.ts'
import { patternAt } from '../support/pattern.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// Whether the control plane is transparent: a sample server on the official SDK, asked directly, and as the container of a
// user through the control plane. Both ways must give the same.

const image = 'sdp-mcp/instance:e2e-sample'
const sample = join(import.meta.dirname, '../support/sample-instance.ts')

/** `port`: where the sample server itself listens */
type Way = { url: string; key: string; port: number }
let stack: Stack
/** how the sample server is reached without, and with a control plane */
let directly: Way
let proxied: Way
const cleanups: (() => unknown)[] = []

beforeAll(async () => {
  // the image of instances, with the sample server in the place of ours
  const built = await buildFixtureImage({ script: sample, image, engine: inject('engine').host })
  cleanups.push(() => built.remove())
  stack = await startStack({ installation: 'e2e-sample', environment: { SDP_INSTANCE_IMAGE: image } })
  const { status, body } = await stack.admin('POST', '/v1/users', { username: 'alice' }, { prefer: 'wait=60' })
  expect([status, body.user?.instance.state], JSON.stringify(body)).toEqual([201, 'ready'])
  proxied = { url: `${stack.publicUrl}/u/alice`, key: body.apiKey.key, port: body.user.instance.port }

  const port = await freePort()
  const child = spawn(process.execPath, [sample, String(port)], { stdio: ['ignore', 'ignore', 'inherit'] })
  cleanups.push(() => child.kill('SIGKILL'))
  directly = { url: `http://127.0.0.1:${port}`, key: 'none', port }
  await eventually(async () => (await fetch(`${directly.url}/mcp?closed=x`)).ok, { what: 'the sample server' })
})
afterAll(async () => {
  await stack?.[Symbol.asyncDispose]()
  for (const cleanup of cleanups) await cleanup()
})

/** Statuses of all checks, by scenario; one that is made several times stands there as often. */
async function checksOf(way: Way): Promise<Record<string, string[]>> {
  // the tool cannot send a key
  await using relay = await startKeyAdder(`${way.url}/mcp`, way.key, { port: way.port })
  const results = await runConformance(relay.url)
  return Object.fromEntries(
    [...results].map(([scenario, checks]) => [scenario, checks.map(({ id, status }) => `${id}: ${status}`)]),
  )
}

test('the whole conformance suite gives the same through the control plane as directly', async () => {
  const [direct, through] = [await checksOf(directly), await checksOf(proxied)]
  expect(through).toEqual(direct)
  const statuses = Object.values(direct).flat()
  expect(Object.keys(direct).length).toBeGreaterThanOrEqual(30)
  expect(statuses.filter(status => / SUCCESS$/.test(status)).length).toBeGreaterThanOrEqual(35)
  expect(statuses.filter(status => / FAILURE$/.test(status))).toEqual([])
}, 240_000)

test.each(['sse', 'mcp'] as const)(
  'over %s a server asks back, logs and tells its progress as it does directly',
  async kind => {
    const seen = await Promise.all(
      [directly, proxied].map(async way => {
        await using client = await connect(kind, `${way.url}/${kind}`, way.key, {
          sampling: {},
          elicitation: {},
        })
        const heard: unknown[] = []
        client.setRequestHandler(CreateMessageRequestSchema, async ({ params }) => {
          heard.push(params)
          return { role: 'assistant', model: 'none', content: { type: 'text', text: 'sampled' } }
        })
        client.setRequestHandler(ElicitRequestSchema, async ({ params }) => {
          heard.push(params)
          return { action: 'accept', content: { username: 'bob', email: 'bob@example.com' } }
        })
        client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => void heard.push(params))
        const call = async (name: string, input: Record<string, unknown> = {}) =>
          heard.push(
            await client.callTool({ name, arguments: input }, undefined, {
              onprogress: progress => heard.push(progress),
            }),
          )
        heard.push((await client.listTools()).tools.length, await client.listPrompts(), await client.listResources())
        await call('test_tool_with_logging')
        await call('test_tool_with_progress')
        await call('test_sampling', { prompt: 'say something' })
        await call('test_elicitation', { message: 'who are you?' })
        await call('test_error_handling')
        return heard
      }),
    )
    expect(seen[1]).toEqual(seen[0])
    expect(seen[0]!.length).toBeGreaterThan(12)
  },
)

test('a stream that is cut in the middle of a call is resumed by Last-Event-ID, with the answer once', async () => {
  for (const way of [directly, proxied]) {
    const headers: Record<string, string> = {
      authorization: `Bearer ${way.key}`,
      accept: 'application/json, text/event-stream',
      'content-type': 'application/json',
      'mcp-protocol-version': '2025-11-25',
    }
    const post = (body: object) =>
      fetch(`${way.url}/mcp`, { method: 'POST', headers, body: JSON.stringify({ jsonrpc: '2.0', ...body }) })
    const opened = await post({
      id: 0,
      method: 'initialize',
      params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'transparency', version: '1' } },
    })
    headers['mcp-session-id'] = opened.headers.get('mcp-session-id')!
    await opened.text()
    await (await post({ method: 'notifications/initialized' })).text()
    const cut = await (await post({ id: 1, method: 'tools/call', params: { name: 'test_reconnection' } })).text()
    const lastEventId = /^id: (.+)$/m.exec(cut)?.[1]
    expect(lastEventId).toBeDefined()
    expect(cut).not.toContain('"result"')
    const resumed = await fetch(`${way.url}/mcp`, {
      headers: { ...headers, 'last-event-id': lastEventId! },
      signal: AbortSignal.timeout(20_000),
    })
    let text = ''
    for await (const chunk of resumed.body!.pipeThrough(new TextDecoderStream())) {
      text += chunk
      if (text.includes('Reconnection test completed successfully')) break
    }
    expect(text.match(/Reconnection test completed successfully/g)).toHaveLength(1)
  }
})

function post(path: string): Promise<IncomingMessage> {
  return new Promise((done, failed) => {
    const headers = { authorization: `Bearer ${proxied.key}` }
    const request = httpRequest(`${proxied.url}${path}`, { method: 'POST', headers, agent: false })
    request.once('response', done).once('error', failed)
    request.end()
  })
}

const residentMb = () =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${stack.controlPlane().process.pid}/status`, 'utf8'))?.[1]) / 1024

test.each(['fast', 'slow'] as const)(
  '50 MB pass a %s reader byte for byte, and do not fill our memory',
  async reader => {
    const bytes = 50_000_000
    // code is compiled and buffers are made with the first one
    for await (const _ of await post('/mcp?bytes=5000000'));
    await delay(300)
    const before = residentMb()
    let peak = before
    const sampler = setInterval(() => {
      peak = Math.max(peak, residentMb())
    }, 10)
    const hash = createHash('sha256')
    let read = 0
    const answer = await post(`/mcp?bytes=${bytes}`)
    if (reader === 'slow') await delay(1_500)
    for await (const chunk of answer) {
      hash.update(chunk)
      read += chunk.length
      if (reader === 'slow' && read % 7 === 0) await delay(1)
    }
    clearInterval(sampler)
    expect(read).toBe(bytes)
    expect(hash.digest('hex')).toBe(createHash('sha256').update(patternAt(0, bytes)).digest('hex'))
    // less than half of it, where buffering would take all of it
    expect(peak - before).toBeLessThan(24)
  },
)

test('a client that aborts is noticed by the container within 100 ms', async () => {
  const nowMicros = () => Number(process.hrtime.bigint() / 1000n)
  const times: number[] = []
  for (let round = 0; round < 9; round++) {
    const mark = Math.random().toString(36).slice(2)
    const headers = { authorization: `Bearer ${proxied.key}` }
    const request = httpRequest(`${proxied.url}/mcp?mark=${mark}`, { method: 'POST', headers, agent: false })
    request.on('error', () => {})
    request.end('{}')
    // it is under way
    await delay(100)
    const leftAt = nowMicros()
    request.destroy()
    const closedAt = await eventually(async () => {
      const asked = await fetch(`${proxied.url}/mcp?closed=${mark}`, { headers })
      return (await asked.json()) as number | null
    })
    // processes of one machine share this clock
    times.push((closedAt - leftAt) / 1000)
  }
  // the median, because a busy machine may take the processor away for longer than that
  const median = times.sort((a, b) => a - b)[4]!
  expect(median).toBeLessThan(100)
  expect(median).toBeGreaterThan(-1)
})
