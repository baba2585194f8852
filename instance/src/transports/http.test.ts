import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { exportJWK, generateKeyPair, SignJWT } from 'jose'
import { pino } from 'pino'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { z } from 'zod'
import { type ConnectionReport, health, sessionReport, statementAudience, statementIssuer } from '../contract.ts'
import type { SessionWish } from './headers.ts'
import { type HttpOptions, type HttpServer, serveHttp } from './http.ts'
import { statementGate } from './statement.ts'

const signing = await generateKeyPair('EdDSA')
const key = { ...(await exportJWK(signing.publicKey)), kid: 'k1' }
const userId = '6b0e9a3c-54f5-4f5e-8a53-6f2f1d2c3b4a'
const audience = statementAudience(userId, 7)

type Claims = {
  audience?: string
  issuer?: string
  subject?: string
  purpose?: string
  iat?: number
  exp?: number
  by?: typeof signing.privateKey
  alg?: string
  kid?: string
}
function statement(claims: Claims = {}): Promise<string> {
  const iat = claims.iat ?? Math.floor(Date.now() / 1000)
  return new SignJWT({ purpose: claims.purpose ?? 'mcp' })
    .setProtectedHeader({ alg: claims.alg ?? 'EdDSA', kid: claims.kid ?? 'k1' })
    .setIssuer(claims.issuer ?? statementIssuer)
    .setAudience(claims.audience ?? audience)
    .setSubject(claims.subject ?? 'alice')
    .setIssuedAt(iat)
    .setExpirationTime(claims.exp ?? iat + 300)
    .sign(claims.by ?? signing.privateKey)
}

const good = await statement()
const authorization = `Bearer ${good}`
const report: ConnectionReport = { state: 'connected', scopes: [], reasonCode: null, reason: null }

type Running = HttpServer & { url: string; wishes: SessionWish[]; calls: Call[] }
type Call = { name: string; aborted: boolean; finish(): void }
const servers = new Set<HttpServer>()
const clients = new Set<Client>()
afterEach(async () => {
  await Promise.allSettled([...clients].map(client => client.close()))
  clients.clear()
  await Promise.all([...servers].map(server => server.stop(0)))
  servers.clear()
})

async function serve(more: Partial<HttpOptions> = {}): Promise<Running> {
  const wishes: SessionWish[] = []
  const calls: Call[] = []
  const server = await serveHttp({
    host: '127.0.0.1',
    port: 0,
    gate: statementGate({ keys: [key], audience, username: 'alice' }),
    identity: { audience, version: '1.2.3' },
    control: {
      exchange: async () => report,
      revoke: async () => ({ ...report, state: 'needs-authorization' }),
      usage: async () => ({ epoch: userId, tools: [], upstream: [], tokens: null }),
    },
    log: pino({ level: 'silent' }),
    buildServer(wish) {
      wishes.push(wish)
      const mcp = new McpServer({ name: 'test', version: '1' })
      mcp.registerTool('echo', { inputSchema: { text: z.string() } }, async ({ text }) => ({
        content: [{ type: 'text', text }],
      }))
      // answers when the test says so
      mcp.registerTool('wait', { inputSchema: { name: z.string() } }, async ({ name }, extra) => {
        const progressToken = extra._meta?.progressToken
        if (progressToken !== undefined)
          await extra.sendNotification({ method: 'notifications/progress', params: { progressToken, progress: 1 } })
        await new Promise<void>(done => {
          const call = { name, aborted: false, finish: done }
          calls.push(call)
          extra.signal.addEventListener('abort', () => {
            call.aborted = true
            done()
          })
        })
        return { content: [{ type: 'text', text: `waited for ${name}` }] }
      })
      return mcp
    },
    ...more,
  })
  servers.add(server)
  return { ...server, url: `http://127.0.0.1:${server.port}`, wishes, calls }
}

async function connectClient(kind: 'streamable' | 'sse', url: string, headers: Record<string, string> = {}) {
  const init = { requestInit: { headers: { authorization, ...headers } } }
  const transport =
    kind === 'sse'
      ? new SSEClientTransport(new URL(`${url}/sse`), init)
      : new StreamableHTTPClientTransport(new URL(`${url}/mcp`), init)
  const client = new Client({ name: 'test', version: '1' })
  await client.connect(transport)
  clients.add(client)
  return { client, transport }
}

const initialize = (protocolVersion = '2025-06-18', id: unknown = 0) => ({
  jsonrpc: '2.0',
  id,
  method: 'initialize',
  params: { protocolVersion, capabilities: {}, clientInfo: { name: 'raw', version: '1' } },
})
const call = (id: number, name: string, args: object, meta: object = {}) => ({
  jsonrpc: '2.0',
  id,
  method: 'tools/call',
  params: { name, arguments: args, ...meta },
})

function post(url: string, body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal) {
  return fetch(url, {
    method: 'POST',
    headers: {
      authorization,
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
      ...headers,
    },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    signal: signal ?? null,
  })
}

/** A streamable session by hand. */
async function rawSession(url: string, version = '2025-06-18') {
  const response = await post(`${url}/mcp`, initialize(version))
  const sessionId = response.headers.get('mcp-session-id') as string
  await response.text()
  const headers = { 'mcp-session-id': sessionId, 'mcp-protocol-version': version }
  await post(`${url}/mcp`, { jsonrpc: '2.0', method: 'notifications/initialized' }, headers)
  return headers
}

/** Reads an event stream piece by piece. */
function reader(response: Response) {
  const stream = (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  return {
    text: () => text,
    async until(pattern: RegExp): Promise<string> {
      while (!pattern.test(text)) {
        const { done, value } = await stream.read()
        if (done) throw new Error(`the stream ended after ${JSON.stringify(text)}`)
        text += value
      }
      return text
    },
    async rest(): Promise<string> {
      for (;;) {
        const { done, value } = await stream.read()
        if (done) return text
        text += value
      }
    },
  }
}

const stream = (url: string, headers: Record<string, string> = {}, signal?: AbortSignal) =>
  fetch(url, { headers: { authorization, accept: 'text/event-stream', ...headers }, signal: signal ?? null })

describe.for(['streamable', 'sse'] as const)('over %s', kind => {
  test('the official client lists and calls tools, with progress', async () => {
    const { url, calls } = await serve()
    const { client } = await connectClient(kind, url)
    expect((await client.listTools()).tools.map(({ name }) => name)).toEqual(['echo', 'wait'])
    expect(await client.callTool({ name: 'echo', arguments: { text: 'hi' } })).toMatchObject({
      content: [{ text: 'hi' }],
    })
    let progress = 0
    const waiting = client.callTool({ name: 'wait', arguments: { name: 'a' } }, undefined, {
      onprogress: () => progress++,
    })
    await expect.poll(() => calls.length).toBe(1)
    calls[0]!.finish()
    expect(await waiting).toMatchObject({ content: [{ text: 'waited for a' }] })
    expect(progress).toBe(1)
  })

  test('cancelling a call aborts it', async () => {
    const { url, calls } = await serve()
    const { client } = await connectClient(kind, url)
    await client.listTools()
    const stop = new AbortController()
    const waiting = client.callTool({ name: 'wait', arguments: { name: 'a' } }, undefined, { signal: stop.signal })
    await expect.poll(() => calls.length).toBe(1)
    stop.abort()
    await expect(waiting).rejects.toThrow()
    await expect.poll(() => calls[0]!.aborted).toBe(true)
  })

  test('a session narrows by header or by URL, and a wrong wish is explained', async () => {
    const { url, wishes } = await serve()
    await connectClient(kind, url, { 'x-mcp-toolsets': 'core, approvals', 'x-mcp-readonly': 'true' })
    expect(wishes).toEqual([{ toolsets: ['core', 'approvals'], readOnly: true }])
    const target = kind === 'sse' ? `${url}/sse` : `${url}/mcp`
    const ask = (query: string) => (kind === 'sse' ? stream(target + query) : post(target + query, initialize()))
    const narrowed = await ask('?toolsets=core&readonly=1')
    expect(narrowed.status).toBe(200)
    await narrowed.body?.cancel()
    expect(wishes[1]).toEqual({ toolsets: ['core'], readOnly: true })
    const wrong = await ask('?toolsets=core,everything')
    expect(wrong.status).toBe(400)
    expect(await wrong.text()).toContain('everything')
  })

  test('a thousand reconnects leave nothing behind', { timeout: 60_000 }, async () => {
    const { url, sessions } = await serve()
    for (let round = 0; round < 20; round++) {
      await Promise.all(
        Array.from({ length: 50 }, async () => {
          if (kind === 'sse') {
            const leave = new AbortController()
            await reader(await stream(`${url}/sse`, {}, leave.signal)).until(/sessionId=/)
            leave.abort()
          } else {
            const headers = await rawSession(url)
            await fetch(`${url}/mcp`, { method: 'DELETE', headers: { authorization, ...headers } })
          }
        }),
      )
      await expect.poll(sessions, { interval: 5 }).toBe(0)
    }
  })
})

const other = await generateKeyPair('EdDSA')
const now = Math.floor(Date.now() / 1000)
const badStatements: Record<string, string | undefined> = {
  'without a statement': undefined,
  'with a word': 'nonsense',
  'signed by somebody else': await statement({ by: other.privateKey }),
  'with an unknown key id': await statement({ kid: 'k2' }),
  'of another user’s instance': await statement({ audience: statementAudience(crypto.randomUUID(), 7) }),
  'of another generation': await statement({ audience: statementAudience(userId, 6) }),
  'of another issuer': await statement({ issuer: 'somebody' }),
  'about somebody else': await statement({ subject: 'bob' }),
  'with an unknown purpose': await statement({ purpose: 'everything' }),
  'that expired': await statement({ iat: now - 400, exp: now - 10 }),
  'that lives too long': await statement({ iat: now - 400, exp: now + 3_000 }),
  'from the future': await statement({ iat: now + 100 }),
  'without a signature': `${Buffer.from('{"alg":"none"}').toString('base64url')}.${good.split('.')[1]}.`,
  'with a tampered body': good.replace(/\.(.{10})./, '.$1x'),
}

describe('nobody enters', () => {
  test.for(Object.keys(badStatements))('%s', async name => {
    const { url } = await serve()
    const headers: Record<string, string> = badStatements[name]
      ? { authorization: `Bearer ${badStatements[name]}` }
      : {}
    for (const [method, path] of [
      ['GET', '/sse'],
      ['POST', '/messages?sessionId=x'],
      ['POST', '/mcp'],
      ['DELETE', '/mcp'],
      ['POST', '/control/connection/exchange'],
      ['GET', '/other'],
    ]) {
      const response = await fetch(url + path, { method: method as string, headers })
      expect([path, response.status]).toEqual([path, 401])
      expect(response.headers.get('www-authenticate')).toMatch(/^Bearer/)
      expect(await response.json()).toMatchObject({ error: 'statement-required' })
    }
  })

  test('except to ask for its health', async () => {
    const { url } = await serve()
    const body: unknown = await (await fetch(`${url}/healthz`)).json()
    expect(health.parse(body)).toMatchObject({ audience, version: '1.2.3', sessions: 0 })
  })

  test('to the control part with a client’s statement', async () => {
    const { url } = await serve()
    const path = `${url}/control/connection/exchange`
    expect((await fetch(path, { method: 'POST', headers: { authorization } })).status).toBe(403)
    const headers = { authorization: `Bearer ${await statement({ purpose: 'control' })}` }
    expect(await (await fetch(path, { method: 'POST', headers })).json()).toEqual(report)
    expect((await fetch(path, { headers })).status).toBe(405)
  })

  test('with a remembered statement after its end', async () => {
    let clock = Date.now()
    const gate = statementGate({ keys: [key], audience, username: 'alice', now: () => clock })
    const asked = { headers: { authorization: `Bearer ${await statement()}` } } as IncomingMessage
    expect(await gate(asked)).toEqual({ purpose: 'mcp' })
    clock += 290_000
    expect(await gate(asked)).toEqual({ purpose: 'mcp' })
    clock += 20_000
    expect(await gate(asked)).toMatchObject({ status: 401 })
  })
})

test.for(['streamable', 'sse'] as const)(
  'the control plane sees who is connected over %s, and what they do',
  async kind => {
    const { url, calls } = await serve()
    const { client } = await connectClient(kind, url)
    await client.callTool({ name: 'echo', arguments: { text: 'hello' } })
    const waiting = client.callTool({ name: 'wait', arguments: { name: 'one' } })
    await vi.waitFor(() => expect(calls).toHaveLength(1))
    const headers = { authorization: `Bearer ${await statement({ purpose: 'control' })}` }
    const ask = async () => sessionReport.parse(await (await fetch(`${url}/control/sessions`, { headers })).json())
    const { sessions } = await ask()
    expect(sessions).toMatchObject([
      {
        transport: kind,
        client: { name: 'test', version: '1' },
        calls: 3,
        inFlight: 1,
        openStreams: expect.any(Number),
      },
    ])
    expect(sessions[0]?.openStreams).toBeGreaterThan(0)
    expect(sessions[0]?.bytesIn).toBeGreaterThan(100)
    expect(sessions[0]?.bytesOut).toBeGreaterThan(100)
    expect(health.parse(await (await fetch(`${url}/healthz`)).json())).toMatchObject({
      sessions: 1,
      inFlight: 1,
      inUse: 1,
    })
    calls[0]?.finish()
    await waiting
    expect((await ask()).sessions[0]).toMatchObject({ calls: 3, inFlight: 0 })
    // a client's own statement opens none of this
    expect((await fetch(`${url}/control/sessions`, { headers: { authorization } })).status).toBe(403)
  },
)

describe('session rules', () => {
  test('no session id is 400, an unknown or ended one 404, each with a JSON-RPC error', async () => {
    const { url } = await serve()
    const gone = await rawSession(url)
    expect((await fetch(`${url}/mcp`, { method: 'DELETE', headers: { authorization, ...gone } })).status).toBe(200)
    const list = { jsonrpc: '2.0', id: 1, method: 'tools/list' }
    const unknown = { 'mcp-session-id': crypto.randomUUID() }
    const get = { accept: 'text/event-stream' }
    const cases: [Promise<Response>, number][] = [
      [post(`${url}/mcp`, list), 400],
      [stream(`${url}/mcp`), 400],
      [fetch(`${url}/mcp`, { method: 'DELETE', headers: { authorization } }), 400],
      [post(`${url}/messages`, list), 400],
      [post(`${url}/mcp`, list, unknown), 404],
      [post(`${url}/mcp`, list, gone), 404],
      [post(`${url}/mcp`, initialize(), gone), 404],
      [stream(`${url}/mcp`, { ...get, ...unknown }), 404],
      [fetch(`${url}/mcp`, { method: 'DELETE', headers: { authorization, ...unknown } }), 404],
      [post(`${url}/messages?sessionId=${unknown['mcp-session-id']}`, list), 404],
      [post(`${url}/messages?sessionId=${gone['mcp-session-id']}`, list), 404],
    ]
    for (const [asked, status] of cases) {
      const response = await asked
      expect(response.status).toBe(status)
      expect(await response.json()).toMatchObject({ jsonrpc: '2.0', id: null, error: { message: expect.any(String) } })
    }
  })

  test('a session of one transport is none of the other', async () => {
    const { url } = await serve()
    const { 'mcp-session-id': id } = await rawSession(url)
    expect((await post(`${url}/messages?sessionId=${id}`, { jsonrpc: '2.0', id: 1, method: 'ping' })).status).toBe(404)
  })

  test('what is no JSON, no JSON-RPC, no JSON type, or too long is refused, and the session goes on', async () => {
    const { url } = await serve({ bodyLimitBytes: 1024 * 1024 })
    const headers = await rawSession(url)
    const legacy = await stream(`${url}/sse`)
    const path = /data: (\S+)/.exec(await reader(legacy).until(/sessionId=\S+\n/))![1]
    for (const target of [`${url}/mcp`, url + path]) {
      const malformed = await post(target, '{"jsonrpc":', headers)
      expect([malformed.status, await malformed.json()]).toMatchObject([400, { error: { code: -32700 } }])
      const wrong = await post(target, { hello: 1 }, headers)
      expect(wrong.status).toBe(400)
      expect((await post(target, initialize(), { ...headers, 'content-type': 'text/plain' })).status).toBe(415)
      const long = JSON.stringify(call(9, 'echo', { text: 'x'.repeat(1024 * 1024) }))
      const tooLong = await post(target, long, headers)
      expect([tooLong.status, await tooLong.json()]).toMatchObject([
        413,
        { error: { message: expect.stringContaining('1 MiB') } },
      ])
      const chunked = await fetch(target, {
        method: 'POST',
        headers: {
          authorization,
          'content-type': 'application/json',
          accept: 'application/json, text/event-stream',
          ...headers,
        },
        body: new Blob([long]).stream(),
        duplex: 'half',
      } as RequestInit).then(
        r => r.status,
        () => 'cut',
      )
      expect(chunked).toBe(413)
    }
    expect((await post(`${url}/mcp`, call(1, 'echo', { text: 'a' }), headers)).status).toBe(200)
  })

  test('a client that leaves in the middle of a message, or sends it piece by piece, disturbs nobody', async () => {
    const failures: unknown[] = []
    const log = pino({ level: 'error' }, { write: line => failures.push(line) })
    const { url, port } = await serve({ log })
    const headers = await rawSession(url)
    const message = JSON.stringify(call(3, 'echo', { text: 'caf\u00e9 \u2026' }))
    const fields = { authorization, accept: 'application/json, text/event-stream', ...headers }
    const head = [
      ...['POST /mcp HTTP/1.1', 'host: x', 'content-type: application/json'],
      ...Object.entries(fields).map(([name, value]) => `${name}: ${value}`),
      `content-length: ${Buffer.byteLength(message)}\r\n\r\n`,
    ].join('\r\n')
    const leaving = connect(port, '127.0.0.1')
    leaving.write(head + message.slice(0, 20))
    await new Promise(done => setTimeout(done, 50))
    leaving.destroy()
    const slow = connect(port, '127.0.0.1')
    let said = ''
    slow.on('data', chunk => (said += chunk))
    slow.write(head)
    for (const byte of Buffer.from(message)) {
      slow.write(Buffer.of(byte))
      await new Promise(done => setImmediate(done))
    }
    await expect.poll(() => said, { timeout: 10_000 }).toContain('caf\u00e9 \u2026')
    slow.destroy()
    expect((await post(`${url}/mcp`, call(4, 'echo', { text: 'b' }), headers)).status).toBe(200)
    expect(failures).toEqual([])
  })

  test('a request id that is still being answered is refused, so that answers cannot cross', async () => {
    const { url, calls } = await serve()
    const headers = await rawSession(url)
    const first = await post(`${url}/mcp`, call(5, 'wait', { name: 'first' }), headers)
    await expect.poll(() => calls.length).toBe(1)
    const second = await post(`${url}/mcp`, call(5, 'wait', { name: 'second' }), headers)
    expect([second.status, await second.json()]).toMatchObject([400, { error: { code: -32600 } }])
    calls[0]!.finish()
    expect(await first.text()).toContain('waited for first')
    expect((await post(`${url}/mcp`, call(5, 'echo', { text: 'b' }), headers)).status).toBe(200)
  })

  test('a full house turns new clients away with a sentence, but an abandoned session gives way', async () => {
    const { url, sessions } = await serve({ maxSessions: 2 })
    await rawSession(url)
    const second = await rawSession(url)
    const refused = await post(`${url}/mcp`, initialize())
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '60'])
    expect(await refused.json()).toMatchObject({ error: { message: expect.stringMatching(/2 sessions/) } })
    expect((await stream(`${url}/sse`)).status).toBe(503)
    await fetch(`${url}/mcp`, { method: 'DELETE', headers: { authorization, ...second } })
    expect((await post(`${url}/mcp`, initialize())).status).toBe(200)
    expect(sessions()).toBe(2)
  })

  test('an idle session ends, one with an open stream does not', async () => {
    const { url, sessions } = await serve({ sessionIdleMs: 200 })
    const idle = await rawSession(url)
    const busy = await rawSession(url)
    const open = await stream(`${url}/mcp`, busy)
    await expect.poll(sessions).toBe(1)
    expect((await stream(`${url}/mcp`, idle)).status).toBe(404)
    await new Promise(done => setTimeout(done, 400))
    expect((await post(`${url}/mcp`, call(1, 'echo', { text: 'a' }), busy)).status).toBe(200)
    await open.body?.cancel()
    await expect.poll(sessions).toBe(0)
  })
})

describe('streams', () => {
  test('send their headers at once and forbid buffering', async () => {
    const { url, calls } = await serve()
    const headers = await rawSession(url)
    const opened = [
      await stream(`${url}/sse`),
      await stream(`${url}/mcp`, headers),
      await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers),
    ]
    for (const response of opened) {
      expect(response.headers.get('content-type')).toBe('text/event-stream')
      expect(response.headers.get('x-accel-buffering')).toBe('no')
      expect(response.headers.get('cache-control')).toBe('no-cache, no-transform')
      expect(response.headers.get('content-encoding')).toBeNull()
    }
    expect(calls[0]!.aborted).toBe(false)
    await Promise.all(opened.map(response => response.body?.cancel()))
  })

  test('announce a path below the forwarded prefix, never a host', async () => {
    const { url } = await serve()
    const announced = async (headers: Record<string, string>) => {
      const response = await stream(`${url}/sse`, headers)
      const text = await reader(response).until(/data: \S+\n/)
      return /data: (\S+)/.exec(text)![1]!.replace(/sessionId=[0-9a-f-]{36}$/, 'sessionId=<id>')
    }
    expect(await announced({})).toBe('/messages?sessionId=<id>')
    expect(await announced({ 'x-forwarded-prefix': '/u/alice' })).toBe('/u/alice/messages?sessionId=<id>')
    for (const wrong of ['//evil.example', 'https://evil.example', '/u/../x', '/u/alice/', '/%2e'])
      expect(await announced({ 'x-forwarded-prefix': wrong })).toBe('/messages?sessionId=<id>')
  })

  test('carry a comment now and then, only between events', async () => {
    const { url, calls } = await serve({ keepAliveMs: 20 })
    const headers = await rawSession(url)
    const legacy = await stream(`${url}/sse`)
    const legacyReader = reader(legacy)
    const path = /data: (\S+)/.exec(await legacyReader.until(/sessionId=\S+\n/))![1]
    const quiet = reader(await stream(`${url}/mcp`, headers))
    const working = reader(await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers))
    await Promise.all([legacyReader, quiet, working].map(one => one.until(/(: keep-?alive\n\n[\s\S]*){3}/)))
    calls[0]!.finish()
    await post(url + path, initialize())
    for (let id = 1; id < 50; id++) await post(url + path, call(id, 'echo', { text: 'x'.repeat(10_000) }))
    await legacyReader.until(/"id":49\}/)
    for (const text of [legacyReader.text(), quiet.text(), await working.rest()])
      for (const frame of text.split('\n\n').filter(Boolean))
        expect(frame.slice(0, 40)).toMatch(/^(: keep-?alive$|event: (endpoint|message)\n|id: )/)
  })

  test('of a session: the newer one takes over', async () => {
    const { url } = await serve()
    const headers = await rawSession(url)
    const first = reader(await stream(`${url}/mcp`, headers))
    const second = await stream(`${url}/mcp`, headers)
    expect(second.status).toBe(200)
    await first.rest()
    expect((await stream(`${url}/mcp`, headers)).status).toBe(200)
  })

  test('cut off during a call are resumed by Last-Event-ID with the answer, exactly once', async () => {
    const { url, calls } = await serve()
    const headers = await rawSession(url, '2025-11-25')
    const cut = new AbortController()
    const started = await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers, cut.signal)
    const eventId = /id: (\S+)/.exec(await reader(started).until(/id: \S+\n/))![1] as string
    await expect.poll(() => calls.length).toBe(1)
    cut.abort()
    await new Promise(done => setTimeout(done, 50))
    expect(calls[0]!.aborted).toBe(false)
    const back = reader(await stream(`${url}/mcp`, { ...headers, 'last-event-id': eventId }))
    calls[0]!.finish()
    expect(await back.rest()).toMatch(/waited for a/)
    // and once more, after it is all over: the same answer, then the end
    const again = await reader(await stream(`${url}/mcp`, { ...headers, 'last-event-id': eventId })).rest()
    expect(again.match(/waited for a/g)).toHaveLength(1)
    const last = /id: (\S+)\ndata: .*waited/.exec(again)![1] as string
    expect(last).not.toBe(eventId)
    const foreign = await stream(`${url}/mcp`, { ...headers, 'last-event-id': '99.somewhere' })
    expect(foreign.status).toBe(400)
  })

  /** A waiting call whose stream can be resumed. */
  async function begin(url: string, headers: Record<string, string>, id: number, name: string) {
    const cut = new AbortController()
    const events = reader(await post(`${url}/mcp`, call(id, 'wait', { name }), headers, cut.signal))
    const eventId = /id: (\S+)/.exec(await events.until(/id: \S+\n/))![1] as string
    const resume = (signal?: AbortSignal) => stream(`${url}/mcp`, { ...headers, 'last-event-id': eventId }, signal)
    return { events, cut: () => cut.abort(), resume }
  }
  const pause = (ms: number) => new Promise(done => setTimeout(done, ms))
  const inFlight = async (url: string) => health.parse(await (await fetch(`${url}/healthz`)).json()).inFlight

  test('are resumed whatever answers other calls had; a lost answer is to be looked for, not repeated', async () => {
    const { url, calls } = await serve()
    const headers = await rawSession(url, '2025-11-25')
    const [early, late] = [await begin(url, headers, 1, 'early'), await begin(url, headers, 2, 'late')]
    await expect.poll(() => calls.length).toBe(2)
    early.cut()
    late.cut()
    await pause(50)
    calls[0]!.finish()
    await expect.poll(() => inFlight(url)).toBe(1)
    await (await post(`${url}/mcp`, call(3, 'echo', { text: 'x'.repeat(1_200_000) }), headers)).text()
    calls[1]!.finish()
    expect(await reader(await late.resume()).rest()).toMatch(/waited for late/)
    const lost = await early.resume()
    const told = await lost.text()
    expect([lost.status, told]).toEqual([400, expect.stringMatching(/not known: look, then repeat/)])
    expect(told).not.toMatch(/repeat the call/i)
  })

  test('cut off are waited for each by itself, and again when they are cut once more', async () => {
    const { url, calls } = await serve({ resumeMs: 500 })
    const headers = await rawSession(url, '2025-11-25')
    const [first, second] = [await begin(url, headers, 1, 'first'), await begin(url, headers, 2, 'second')]
    await expect.poll(() => calls.length).toBe(2)
    first.cut()
    second.cut()
    await pause(50)
    const cutAgain = new AbortController()
    expect((await second.resume(cutAgain.signal)).status).toBe(200)
    await expect.poll(() => calls[0]!.aborted, { timeout: 2_000 }).toBe(true)
    await pause(300)
    expect(calls[1]!.aborted).toBe(false)
    cutAgain.abort()
    await pause(100)
    expect(calls[1]!.aborted).toBe(false)
    await expect.poll(() => calls[1]!.aborted, { timeout: 2_000 }).toBe(true)
    await expect.poll(() => inFlight(url), { timeout: 3_000 }).toBe(0)
  })

  /** A call whose stream a second reader reads on, before the first is known to be gone. */
  async function takenOver() {
    const { url, calls } = await serve({ resumeMs: 200 })
    const headers = await rawSession(url, '2025-11-25')
    const started = await begin(url, headers, 1, 'a')
    await expect.poll(() => calls.length).toBe(1)
    const cut = new AbortController()
    await started.resume(cut.signal)
    return { calls, started, cut }
  }

  test('taken over by a second reader before the first is known to be gone stay with the second', async () => {
    const { calls, started, cut } = await takenOver()
    const back = reader(await started.resume())
    await started.events.rest()
    cut.abort()
    await pause(500)
    expect(calls[0]!.aborted).toBe(false)
    calls[0]!.finish()
    expect(await back.rest()).toMatch(/waited for a/)
  })

  test('taken over by a second reader who leaves are given up', async () => {
    const { calls, started, cut } = await takenOver()
    await started.events.rest()
    cut.abort()
    await expect.poll(() => calls[0]!.aborted, { timeout: 2_000 }).toBe(true)
  })

  test('cut off stay so when the client comes back in a way that is refused', async () => {
    const { url, calls } = await serve({ resumeMs: 300 })
    const headers = await rawSession(url, '2025-11-25')
    const started = await begin(url, headers, 1, 'a')
    await expect.poll(() => calls.length).toBe(1)
    const eventId = /id: (\S+)/.exec(started.events.text())![1] as string
    started.cut()
    await pause(50)
    const wrong = { authorization, ...headers, accept: 'application/json', 'last-event-id': eventId }
    expect((await fetch(`${url}/mcp`, { headers: wrong })).status).toBe(406)
    await expect.poll(() => calls[0]!.aborted, { timeout: 2_000 }).toBe(true)
  })

  test('cut off by a client that cannot resume cancel its call at once', async () => {
    const { url, calls } = await serve()
    const headers = await rawSession(url, '2025-06-18')
    const cut = new AbortController()
    await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers, cut.signal)
    await expect.poll(() => calls.length).toBe(1)
    cut.abort()
    await expect.poll(() => calls[0]!.aborted, { timeout: 1_000, interval: 5 }).toBe(true)
    const { client, transport } = await connectClient('sse', url)
    const gone = client.callTool({ name: 'wait', arguments: { name: 'b' } })
    gone.catch(() => {})
    await expect.poll(() => calls.length).toBe(2)
    await transport.close()
    await expect.poll(() => calls[1]!.aborted, { timeout: 1_000, interval: 5 }).toBe(true)
  })

  test('of a cancelled call end', async () => {
    const { url, calls } = await serve()
    const headers = await rawSession(url)
    const response = await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers)
    await expect.poll(() => calls.length).toBe(1)
    await post(`${url}/mcp`, { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 1 } }, headers)
    expect(await response.text()).toContain('cancelled')
  })
})

describe('stopping', () => {
  test('ends quiet streams, finishes calls, takes nothing new', async () => {
    const { url, calls, stop } = await serve()
    const headers = await rawSession(url)
    const quiet = reader(await stream(`${url}/mcp`, headers))
    const legacy = reader(await stream(`${url}/sse`))
    await legacy.until(/sessionId/)
    const working = await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers)
    const { client } = await connectClient('sse', url)
    const legacyCall = client.callTool({ name: 'wait', arguments: { name: 'b' } })
    await expect.poll(() => calls.length).toBe(2)
    const stopped = stop(5_000)
    await Promise.all([quiet.rest(), legacy.rest()])
    await expect(post(`${url}/mcp`, initialize())).rejects.toThrow()
    for (const one of calls) one.finish()
    expect(await working.text()).toContain('waited for a')
    expect(await legacyCall).toMatchObject({ content: [{ text: 'waited for b' }] })
    await stopped
  })

  test('cuts what takes longer than the grace', async () => {
    const { url, calls, stop } = await serve()
    const headers = await rawSession(url)
    const working = await post(`${url}/mcp`, call(1, 'wait', { name: 'a' }), headers)
    await expect.poll(() => calls.length).toBe(1)
    const startedAt = performance.now()
    await stop(200)
    expect(performance.now() - startedAt).toBeLessThan(1_500)
    expect(calls[0]!.aborted).toBe(true)
    await working.text().catch(() => {})
  })

  test.for(['streamable', 'sse'] as const)('tells the official client over %s that its call was cut', async kind => {
    const { url, calls, stop } = await serve()
    const { client } = await connectClient(kind, url)
    // without an answer the client waits for a minute
    const working = client.callTool({ name: 'wait', arguments: { name: 'a' } })
    const refused = expect(working).rejects.toThrow(/ended while it worked on this/)
    await expect.poll(() => calls.length).toBe(1)
    await stop(100)
    await refused
  })
})

describe('a request whose answer could not arrive', () => {
  test('is not accepted when the stream of its session ends while its body comes', async () => {
    const { url, sessions } = await serve()
    const ending = new AbortController()
    const events = reader(await stream(`${url}/sse`, {}, ending.signal))
    const endpoint = /data: (\S+)/.exec(await events.until(/sessionId=\S+/))![1]!
    const body = JSON.stringify(call(1, 'echo', { text: 'x' }))
    const request = httpRequest(`${url}${endpoint}`, {
      method: 'POST',
      headers: { authorization, 'content-type': 'application/json', 'content-length': body.length },
    })
    const answered = once(request, 'response')
    request.write(body.slice(0, 10))
    await new Promise(done => setTimeout(done, 50))
    ending.abort()
    await expect.poll(sessions).toBe(0)
    request.end(body.slice(10))
    expect(((await answered) as [IncomingMessage])[0].statusCode).toBe(404)
  })

  test.for(['streamable', 'sse'] as const)(
    'over %s comes with the words that the proxy says if this process dies',
    async kind => {
      const { url, calls } = await serve()
      const said = (words: string | null) => Buffer.from(words ?? '', 'base64').toString()
      if (kind === 'streamable') {
        const working = await post(`${url}/mcp`, call(7, 'wait', { name: 'a' }), await rawSession(url))
        expect(said(working.headers.get('x-sdp-last-words'))).toMatch(
          /^event: message\ndata: \{"jsonrpc":"2.0","id":7,"error":.*\}\n\n$/,
        )
        calls[0]!.finish()
        await working.text()
        return
      }
      const opened = await stream(`${url}/sse`)
      const name = opened.headers.get('x-sdp-stream')
      const endpoint = /data: (\S+)/.exec(await reader(opened).until(/sessionId=\S+/))![1]!
      for (const id of [1, 2]) {
        const { headers, status } = await post(`${url}${endpoint}`, call(id, 'wait', { name: 'a' }))
        expect([status, headers.get('x-sdp-stream')]).toEqual([202, name])
        // all that wait, because only the latest words count
        for (let waiting = 1; waiting <= id; waiting++)
          expect(said(headers.get('x-sdp-last-words'))).toContain(`"id":${waiting},"error"`)
      }
      for (const one of calls) one.finish()
    },
  )
})

test.for(['2025-03-26', '2025-06-18', '2025-11-25'])(
  'with protocol %s the answer of a quick call comes whole in the response to its own request',
  async version => {
    const { url } = await serve()
    const headers = await rawSession(url, version)
    const text = await (await post(`${url}/mcp`, call(1, 'echo', { text: 'whole' }), headers)).text()
    expect(text).toContain('"text":"whole"')
    expect(text.endsWith('\n\n')).toBe(true)
  },
)

test('broken HTTP gets an answer or is dropped, and the server lives', async () => {
  const { url, port } = await serve()
  for (const raw of [
    'GET // HTTP/1.1\r\nHost: x\r\n\r\n',
    'GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n',
    'POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello',
    'POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz\r\n',
    `GET /sse HTTP/1.1\r\nHost: x\r\n${'a: b\r\n'.repeat(5_000)}\r\n`,
    '\0\0\0\0\r\n\r\n',
  ]) {
    const socket = connect(port, '127.0.0.1')
    socket.on('error', () => {})
    socket.setEncoding('utf8')
    let text = ''
    socket.on('data', chunk => {
      text += chunk
    })
    socket.end(raw)
    await once(socket, 'close')
    expect(text === '' || /^HTTP\/1\.1 [45]\d\d/.test(text)).toBe(true)
  }
  expect((await fetch(`${url}/healthz`)).status).toBe(200)
})

test('a client that sends half a body and leaves costs nothing', async () => {
  const { url, sessions } = await serve()
  const request = httpRequest(`${url}/mcp`, {
    method: 'POST',
    headers: { authorization, 'content-type': 'application/json', 'content-length': 1000 },
  })
  request.on('error', () => {})
  request.write('{"jsonrpc"')
  await new Promise(done => setTimeout(done, 50))
  request.destroy()
  expect((await fetch(`${url}/healthz`)).status).toBe(200)
  expect(sessions()).toBe(0)
})
