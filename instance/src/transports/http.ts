import { randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js'
import { WebStandardStreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js'
import { isInitializeRequest, JSONRPCMessageSchema, type RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Logger } from 'pino'
import { type ConnectionReport, type Health, type SessionReport, streamHeader, type UsageReport } from '../contract.ts'
import { createTrim } from '../trim.ts'
import {
  allows,
  answer,
  idInUse,
  jsonRpcCodes,
  noSession,
  notFound,
  refuse,
  stoppingNow,
  unavailable,
} from './answers.ts'
import { readJson } from './body.ts'
import { type CallStreams, createCallStreams, type StreamCalls } from './call-streams.ts'
import { pump, stalledMs } from './event-pump.ts'
import { createEventStore, type ResumableEvents } from './event-store.ts'
import { forwardedPrefix, header, plainHeaders, readWish, type SessionWish } from './headers.ts'
import { endedText, forgottenText, lastWords } from './last-words.ts'
import { createSessions, requestIdOf, type Session } from './sessions.ts'
import { webRequest } from './web.ts'

export type Admission =
  | { purpose: 'mcp' | 'control' | 'nothing' }
  | { status: number; code: string; message: string; headers?: Record<string, string> }

/** Says who may come in. */
export type Gate = (request: IncomingMessage) => Promise<Admission>

export type HttpOptions = {
  host: string
  port: number
  gate: Gate
  buildServer: (wish: SessionWish) => McpServer
  /** the parts of the health body that are not about this server */
  identity: Pick<Health, 'audience' | 'version'>
  /** what the control plane may ask for */
  control: {
    exchange(): Promise<ConnectionReport>
    revoke(): Promise<ConnectionReport>
    usage(): Promise<UsageReport>
  }
  log: Logger
  maxSessions?: number
  sessionIdleMs?: number
  keepAliveMs?: number
  /** How long a client of a resumable stream may take to come back before its call is cancelled. */
  resumeMs?: number
  bodyLimitBytes?: number
}

export type HttpServer = {
  port: number
  sessions(): number
  /** Takes nothing new, ends quiet streams, lets calls finish for `graceMs`, then closes everything. */
  stop(graceMs?: number): Promise<void>
}

/** What of a request counts for its answer: the calls it brings, or those whose stream it reads on. */
type Forwarded = { parsed?: unknown; ids?: RequestId[]; resumed?: StreamCalls; endAfterEvents?: number }

/** An answer that takes no longer leaves together with its headers. */
const answerMs = 25

/**
 * Serves both HTTP transports of MCP, a session for each client:
 *
 *     GET  /sse  POST /messages?sessionId=      the legacy transport of 2024-11-05
 *     POST GET DELETE /mcp                      Streamable HTTP
 *     GET  /healthz                             for everybody
 *     POST /control/connection/{exchange,revoke}, GET /control/{usage,sessions}   for the control plane
 *
 * @throws Error with code EADDRINUSE when another process listens there
 */
export async function serveHttp(options: HttpOptions): Promise<HttpServer> {
  const { gate, log, keepAliveMs = 15_000, resumeMs = 30_000, bodyLimitBytes = 4 * 1024 * 1024 } = options
  const startedAt = performance.now()
  const sessions = createSessions({
    max: options.maxSessions ?? 100,
    idleMs: options.sessionIdleMs ?? 30 * 60_000,
    log,
  })
  const trim = createTrim({ isQuiet: () => sessions.inFlight() === 0 })
  trim.worked()
  /** what a client may come back to */
  const resumable = new WeakMap<Session, { events: ResumableEvents; calls: CallStreams }>()
  const streamable = (session: Session | undefined) =>
    session?.kind === 'streamable' ? (session as Session<WebStandardStreamableHTTPServerTransport>) : undefined
  const legacyStreams = new Map<Session, { response: ServerResponse; stalledSince: number }>()
  let stopping = false

  // One write is one frame, so a comment never lands inside an event. The SDK does the same on its own streams.
  const heartbeat = setInterval(() => {
    for (const [session, stream] of legacyStreams) {
      const { response } = stream
      if (!response.writableNeedDrain) {
        stream.stalledSince = 0
        response.write(': keep-alive\n\n')
      } else if (stream.stalledSince === 0) stream.stalledSince = performance.now()
      else if (performance.now() - stream.stalledSince > stalledMs) void session.close()
    }
  }, keepAliveMs)
  heartbeat.unref()

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = URL.parse(request.url ?? '/', 'http://instance')
    if (!url)
      return answer(response, 400, { error: 'url-malformed', message: 'The request target is not a valid URL.' })
    const path = url.pathname.length > 1 ? url.pathname.replace(/\/$/, '') : url.pathname
    if (path === '/healthz' && request.method === 'GET') return health(response)
    const admission = await gate(request)
    if ('status' in admission) {
      const { status, code, message, headers } = admission
      return answer(response, status, { error: code, message }, headers)
    }
    if (admission.purpose === 'nothing') return answer(response, 404, notFound)
    // the control plane asks every few seconds, which is no work
    if (admission.purpose === 'mcp') response.once('close', trim.worked)
    if (path.startsWith('/control/') && admission.purpose !== 'control')
      return answer(response, 403, { error: 'control-only', message: 'Only the control plane may call this.' })
    switch (path) {
      case '/control/connection/exchange':
        return allows(request, response, ['POST']) ? answer(response, 200, await options.control.exchange()) : undefined
      case '/control/connection/revoke':
        return allows(request, response, ['POST']) ? answer(response, 200, await options.control.revoke()) : undefined
      case '/control/usage':
        return allows(request, response, ['GET']) ? answer(response, 200, await options.control.usage()) : undefined
      case '/control/sessions':
        return allows(request, response, ['GET']) ? answer(response, 200, sessionReport()) : undefined
      case '/sse':
        return allows(request, response, ['GET']) ? openLegacy(request, response, url) : undefined
      case '/messages':
        return allows(request, response, ['POST']) ? postLegacy(request, response, url) : undefined
      case '/mcp':
        if (!allows(request, response, ['POST', 'GET', 'DELETE'])) return
        if (request.method === 'POST') return postStreamable(request, response, url)
        return getOrDeleteStreamable(request, response, url)
      default:
        return answer(response, 404, notFound)
    }
  }

  function health(response: ServerResponse): void {
    const body: Health = {
      status: 'ok',
      ...options.identity,
      uptimeSeconds: Math.round((performance.now() - startedAt) / 1000),
      sessions: sessions.size,
      inFlight: sessions.inFlight(),
      inUse: sessions.inUse(),
    }
    answer(response, 200, body)
  }

  function sessionReport(): SessionReport {
    for (const [session, { response }] of legacyStreams) session.bytesOut = response.socket?.bytesWritten ?? 0
    const instant = (ms: number) => new Date(ms).toISOString()
    return {
      sessions: [...sessions.all()].map(session => ({
        id: session.id,
        transport: session.kind,
        client: session.client(),
        startedAt: instant(session.startedAt),
        lastActivityAt: instant(session.usedAt),
        calls: session.calls,
        inFlight: session.inFlight.size,
        openStreams: session.openStreams,
        bytesIn: session.bytesIn,
        bytesOut: session.bytesOut,
      })),
    }
  }

  /** Answers and returns undefined when no further session may begin. */
  function beginSession(request: IncomingMessage, response: ServerResponse, url: URL): McpServer | undefined {
    const wish = readWish(request, url)
    if ('problem' in wish) return void refuse(response, 400, jsonRpcCodes.generic, wish.problem)
    if (stopping) return void unavailable(response, 'This instance is being stopped. Connect again in some seconds.', 2)
    if (!sessions.makeRoom())
      return void unavailable(
        response,
        `All ${sessions.size} sessions of this user are in use. Close an MCP client that is not needed, or try again later.`,
        60,
      )
    return options.buildServer(wish)
  }

  async function openLegacy(request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> {
    const server = beginSession(request, response, url)
    if (!server) return
    response.setHeader('X-Accel-Buffering', 'no')
    // a path, never a host: only the client knows by which host it came
    const transport = new SSEServerTransport(`${forwardedPrefix(request)}/messages`, response)
    // connecting writes the endpoint event; the session must be known before the client can act on it
    response.setHeader(streamHeader, transport.sessionId)
    const opening = sessions.open(transport.sessionId, 'sse', server, transport)
    const session = await opening
    session.openStreams = 1
    sessions.add(session)
    legacyStreams.set(session, { response, stalledSince: 0 })
    response.once('close', () => {
      legacyStreams.delete(session)
      void session.close()
    })
    if (response.destroyed) await session.close()
  }

  async function postLegacy(request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> {
    const id = url.searchParams.get('sessionId')
    if (!id) return refuse(response, 400, jsonRpcCodes.generic, 'The query parameter sessionId is missing.')
    const found = sessions.get(id)
    if (found?.kind !== 'sse') return noSession(response)
    const body = await readJson(request, response, bodyLimitBytes)
    if (!body) return
    const message = JSONRPCMessageSchema.safeParse(body.value)
    if (!message.success)
      return refuse(response, 400, jsonRpcCodes.invalid, 'The body is not one JSON-RPC 2.0 message.')
    // its stream may have ended while the body came: an answer would go nowhere
    if (sessions.get(id) !== found) return noSession(response)
    const { transport } = found as Session<SSEServerTransport>
    found.bytesIn += body.bytes
    const requestId = requestIdOf(message.data)
    if (stopping && requestId !== undefined) return stoppingNow(response)
    if (requestId !== undefined && found.inFlight.has(requestId)) return idInUse(response)
    await transport.handleMessage(message.data, { requestInfo: { headers: plainHeaders(request) } })
    const headers = { 'content-type': 'text/plain', [streamHeader]: id, ...lastWords(found.inFlight) }
    response.writeHead(202, headers).end('Accepted')
  }

  async function postStreamable(request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> {
    const sessionId = header(request, 'mcp-session-id')
    const known = streamable(sessions.get(sessionId))
    if (sessionId !== undefined && !known) return noSession(response)
    const body = await readJson(request, response, bodyLimitBytes)
    if (!body) return
    const messages = Array.isArray(body.value) ? body.value : [body.value]
    const ids = messages.map(requestIdOf).filter(id => id !== undefined)
    if (known) {
      if (sessions.get(sessionId) !== known) return noSession(response)
      if (stopping && ids.length > 0) return stoppingNow(response)
      if (ids.some(id => known.inFlight.has(id)) || new Set(ids).size < ids.length) return idInUse(response)
      known.bytesIn += body.bytes
      return forward(request, response, known, url, { parsed: body.value, ids })
    }
    if (!messages.some(isInitializeRequest))
      return refuse(
        response,
        400,
        jsonRpcCodes.generic,
        'The Mcp-Session-Id header is missing. A session begins with an initialize request.',
      )
    const server = beginSession(request, response, url)
    if (!server) return
    const id = randomUUID()
    const events = createEventStore()
    const transport = new WebStandardStreamableHTTPServerTransport({
      sessionIdGenerator: () => id,
      eventStore: events,
      keepAliveMs,
      onsessioninitialized: () => sessions.add(session),
    })
    const session = await sessions.open(id, 'streamable', server, transport)
    resumable.set(session, { events, calls: createCallStreams(session, resumeMs) })
    session.bytesIn += body.bytes
    await forward(request, response, session, url, { parsed: body.value, ids })
    if (!sessions.get(id)) await session.close()
  }

  async function getOrDeleteStreamable(request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> {
    const sessionId = header(request, 'mcp-session-id')
    if (sessionId === undefined)
      return refuse(response, 400, jsonRpcCodes.generic, 'The Mcp-Session-Id header is missing.')
    const session = streamable(sessions.get(sessionId))
    if (!session) return noSession(response)
    if (request.method === 'DELETE') return forward(request, response, session, url)
    if (stopping) return stoppingNow(response)
    const lastEventId = header(request, 'last-event-id')
    if (lastEventId === undefined) {
      // the SDK would answer 409; the newer stream is the one somebody reads
      session.transport.closeStandaloneSSEStream()
      return forward(request, response, session, url)
    }
    const kept = resumable.get(session)
    const outlook = kept?.events.outlook(lastEventId) ?? { kind: 'unknown' }
    if (outlook.kind === 'unknown')
      return refuse(response, 400, jsonRpcCodes.generic, 'The Last-Event-ID is not one of this session.')
    if (outlook.kind === 'gap') return refuse(response, 400, jsonRpcCodes.generic, forgottenText)
    return forward(request, response, session, url, {
      resumed: kept?.calls.find(outlook.streamId),
      endAfterEvents: outlook.kind === 'finished' ? outlook.events : undefined,
    })
  }

  /** Hands a request to the SDK's transport and its answer to the client. */
  async function forward(
    request: IncomingMessage,
    response: ServerResponse,
    session: Session<WebStandardStreamableHTTPServerTransport>,
    url: URL,
    { parsed, ids = [], resumed, endAfterEvents }: Forwarded = {},
  ): Promise<void> {
    session.touch()
    const asked = webRequest(request, url, plainHeaders(request))
    const webResponse = await session.transport.handleRequest(asked, { parsedBody: parsed })
    const isStream = webResponse.body !== null && webResponse.headers.get('content-type') === 'text/event-stream'
    if (!isStream) {
      response.writeHead(webResponse.status, Object.fromEntries(webResponse.headers))
      const text = webResponse.body === null ? undefined : await webResponse.text()
      session.bytesOut += text === undefined ? 0 : Buffer.byteLength(text)
      response.end(text)
      return
    }
    session.openStreams++
    const calls = resumed ?? (ids.length > 0 ? { ids } : undefined)
    const reading = calls && resumable.get(session)?.calls.read(calls)
    let whole = false
    try {
      whole = await pump(
        webResponse,
        response,
        lastWords(ids),
        ids.length > 0 ? answerMs : 0,
        endAfterEvents,
        chunk => {
          session.bytesOut += chunk.length
          reading?.sent(chunk)
        },
      )
    } finally {
      reading?.ended(whole)
      session.openStreams--
      session.touch()
    }
  }

  const server = createServer(
    {
      // for receiving a request, not for answering it: streams stay open as long as somebody reads
      headersTimeout: 15_000,
      requestTimeout: 60_000,
      // longer than the keep-alive of whatever stands before us, so that it closes first
      keepAliveTimeout: 75_000,
      keepAlive: true,
      keepAliveInitialDelay: 30_000,
      noDelay: true,
    },
    (request, response) => {
      response.on('error', () => {}) // the client went away; "close" follows
      if (log.isLevelEnabled('debug')) logWhenDone(request, response)
      handle(request, response).catch(error => {
        if (response.destroyed) return
        log.error({ err: error, path: request.url?.split('?')[0] }, 'http.failed')
        if (response.headersSent) response.destroy()
        else refuse(response, 500, -32603, 'Something went wrong in this instance. Try again.')
      })
    },
  )
  function logWhenDone(request: IncomingMessage, response: ServerResponse): void {
    const at = performance.now()
    const { method } = request
    // without the query: it may hold a session id
    const path = request.url?.split('?')[0]?.slice(0, 100)
    response.once('close', () => {
      const ms = Math.round(performance.now() - at)
      log.debug({ method, path, status: response.statusCode, ms, whole: response.writableFinished }, 'http.request')
    })
  }
  server.timeout = 0
  await new Promise<void>((done, failed) => {
    server.once('error', failed)
    server.listen(options.port, options.host, () => {
      server.off('error', failed)
      done()
    })
  })
  server.on('error', error => log.error({ err: error }, 'http.server.failed'))

  async function stop(graceMs = 8_000): Promise<void> {
    stopping = true
    trim.stop()
    clearInterval(heartbeat)
    const closed = new Promise(done => server.close(done))
    server.closeIdleConnections()
    const deadline = performance.now() + graceMs
    for (;;) {
      for (const session of sessions.all()) {
        streamable(session)?.transport.closeStandaloneSSEStream()
        if (session.kind === 'sse' && session.inFlight.size === 0) void session.close()
      }
      if (sessions.inFlight() === 0 || performance.now() > deadline) break
      await delay(20)
    }
    if (sessions.inFlight() > 0) {
      log.warn({ calls: sessions.inFlight() }, 'http.stop.calls-cut')
      await Promise.all([...sessions.all()].map(session => session.giveUp(endedText)))
    }
    await sessions.close()
    // answers that were just written get a moment to leave
    await Promise.race([closed, delay(250)])
    server.closeAllConnections()
    await closed
  }

  return { port: (server.address() as AddressInfo).port, sessions: () => sessions.size, stop }
}
