import type { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import type { JSONRPCMessage, RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Logger } from 'pino'

/** One MCP client's conversation: a server and a transport of its own. */
export type Session<T extends Transport = Transport> = {
  readonly id: string
  readonly kind: 'sse' | 'streamable'
  readonly transport: T
  /** calls that were not answered yet */
  readonly inFlight: ReadonlySet<RequestId>
  /** open event streams; a session with one is in use, however quiet */
  openStreams: number
  readonly startedAt: number
  readonly usedAt: number
  /** requests so far */
  readonly calls: number
  bytesIn: number
  bytesOut: number
  /** as the client introduced itself; null before it did */
  client(): { name: string; version: string } | null
  touch(): void
  /** Cancels calls whose client is gone, as if it had sent `notifications/cancelled`. */
  abandon(ids: Iterable<RequestId>): void
  /** Answers what is in flight with an error, because it will not be answered in another way. */
  giveUp(message: string): Promise<void>
  close(): Promise<void>
}

export type Sessions = {
  readonly size: number
  get(id: string | undefined): Session | undefined
  /** Whether one more may begin; makes room by ending a session nobody has used for a while. */
  makeRoom(): boolean
  /** Connects a server to a transport. The session counts once {@link Session} is `add`ed. */
  open<T extends Transport>(id: string, kind: Session['kind'], server: McpServer, transport: T): Promise<Session<T>>
  add(session: Session): void
  all(): Iterable<Session>
  inFlight(): number
  /** Sessions somebody is there for. Clients seldom end a session in words, so those that fell silent do not count. */
  inUse(): number
  close(): Promise<void>
}

/** A cancelled call is never answered by the SDK; its stream is ended this long after. */
const afterCancelMs = 1_000
/** A client that holds no stream may take this long from one call to the next. */
const quietMs = 30_000
/** A session without a stream may be ended for a new one after this long. */
const givesWayAfterMs = 60_000

export function createSessions(options: { max: number; idleMs: number; log: Logger; now?: () => number }): Sessions {
  const { max, idleMs, log, now = Date.now } = options
  type Kept = { -readonly [Field in keyof Session]: Session[Field] }
  const sessions = new Map<string, Kept>()
  const isIdle = (session: Kept, forMs: number) =>
    session.openStreams === 0 && session.inFlight.size === 0 && now() - session.usedAt > forMs

  function end(session: Kept, why: string): void {
    log.info({ session: short(session.id), why }, 'session.ended')
    session.close().catch(error => log.warn({ err: error }, 'session.close.failed'))
  }
  const reaper = setInterval(
    () => {
      for (const session of sessions.values()) if (isIdle(session, idleMs)) end(session, 'idle')
    },
    Math.min(60_000, Math.max(50, idleMs / 4)),
  )
  reaper.unref()

  return {
    get size() {
      return sessions.size
    },
    get: id => (id === undefined ? undefined : sessions.get(id)),
    all: () => sessions.values(),
    inFlight: () => sessions.values().reduce((sum, session) => sum + session.inFlight.size, 0),

    inUse: () => sessions.values().reduce((sum, session) => sum + (isIdle(session, quietMs) ? 0 : 1), 0),

    makeRoom() {
      if (sessions.size < max) return true
      let oldest: Kept | undefined
      for (const session of sessions.values())
        if (isIdle(session, givesWayAfterMs) && (!oldest || session.usedAt < oldest.usedAt)) oldest = session
      if (oldest) end(oldest, 'gave way')
      return oldest !== undefined
    },

    async open(id, kind, server, transport) {
      const inFlight = new Set<RequestId>()
      let closed = false
      await server.connect(transport)
      const deliver = transport.onmessage as NonNullable<Transport['onmessage']>
      const send = transport.send.bind(transport)

      const answerCancelled = (requestId: RequestId) => {
        if (!inFlight.delete(requestId) || closed || kind === 'sse') return
        // without an answer the stream of the call would stay open as long as the session
        const error = { code: -32800, message: 'The request was cancelled.' }
        send({ jsonrpc: '2.0', id: requestId, error }).catch(() => {}) // nobody is there to read it
      }
      transport.onmessage = (message, extra) => {
        session.usedAt = now()
        const id = requestIdOf(message)
        if (id !== undefined) {
          inFlight.add(id)
          session.calls++
        }
        deliver(message, extra)
        if ('method' in message && message.method === 'notifications/cancelled') {
          const requestId = message.params?.requestId as RequestId | undefined
          if (requestId !== undefined) setTimeout(answerCancelled, afterCancelMs, requestId).unref()
        }
      }
      transport.send = async (message: JSONRPCMessage, sendOptions) => {
        try {
          await send(message, sendOptions)
        } finally {
          session.usedAt = now()
          if (!('method' in message) && message.id !== undefined) inFlight.delete(message.id)
        }
      }
      const onclose = transport.onclose
      transport.onclose = () => {
        if (closed) return
        closed = true
        inFlight.clear()
        sessions.delete(id)
        onclose?.()
      }
      const session: Kept & { readonly transport: typeof transport } = {
        id,
        kind,
        transport,
        inFlight,
        openStreams: 0,
        startedAt: now(),
        usedAt: now(),
        calls: 0,
        bytesIn: 0,
        bytesOut: 0,
        client() {
          const told = server.server.getClientVersion()
          return told ? { name: told.name.slice(0, 100), version: told.version.slice(0, 40) } : null
        },
        touch() {
          session.usedAt = now()
        },
        abandon(ids) {
          for (const requestId of ids)
            if (inFlight.has(requestId))
              transport.onmessage?.({
                jsonrpc: '2.0',
                method: 'notifications/cancelled',
                params: { requestId, reason: 'The client went away.' },
              })
        },
        async giveUp(message) {
          const given = [...inFlight]
          inFlight.clear()
          await Promise.allSettled(
            given.map(requestId => send({ jsonrpc: '2.0', id: requestId, error: { code: -32000, message } })),
          )
        },
        close: () => server.close(),
      }
      return session
    },

    add(session) {
      sessions.set(session.id, session as Kept)
      log.info({ session: short(session.id), kind: session.kind, open: sessions.size }, 'session.started')
    },

    async close() {
      clearInterval(reaper)
      await Promise.allSettled([...sessions.values()].map(session => session.close()))
    },
  }
}

/**
 * The id of a request; undefined for notifications, answers and what is no message. The SDK's own tests validate the
 * whole message, which it does once anyway.
 */
export function requestIdOf(message: unknown): RequestId | undefined {
  if (typeof message !== 'object' || message === null || !('method' in message && 'id' in message)) return undefined
  const { id } = message
  return typeof id === 'string' || typeof id === 'number' ? id : undefined
}

/** Session ids are as good as keys within a user; a log needs only enough to tell them apart. */
export function short(id: string): string {
  return id.slice(0, 8)
}
