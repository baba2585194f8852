import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Activity } from '../activity.ts'
import type { Directory, Identity, Revocation } from '../directory.ts'
import type { ClientCredential, DynamicCredentials } from '../dynamic-credentials.ts'
import { AppError } from '../errors.ts'
import type { Fleet } from '../fleet/fleet.ts'
import { apiKeyDigest, looksLikeApiKey, type StatementSigner } from '../identity.ts'
import type { InstanceControl } from '../instance-control.ts'
import type { Logger } from '../log.ts'
import type { ProxyMetrics } from '../metrics.ts'
import { asAppError, writeProblem } from '../problem.ts'
import { createBodyRoom, discardRest, readBody } from './body.ts'
import { createExchanges } from './exchanges.ts'
import type { Limiter } from './limits.ts'
import type { DrainingRoute, Route, Routes, SessionsSeen } from './routes.ts'

/** Carries MCP traffic of users to their instances. */
export interface McpProxy {
  /** Takes the request if it is MCP traffic. @returns false: not ours, nothing was done */
  handle(request: IncomingMessage, response: ServerResponse): boolean
  /** Ends the open exchanges that a revocation concerns. @returns how many */
  cut(revocation: Revocation): number
  /** Open exchanges of each user. */
  open(): ReadonlyMap<string, number>
  /** Takes nothing new, ends the streams, whose clients come back elsewhere, and lets calls finish for `graceMs`. */
  close(graceMs: number): Promise<void>
}

// Only these very paths are MCP traffic. They are compared as sent, without decoding, so that no spelling of a path means
// one thing here and another at an instance.
const mcpPath = /^(\/u\/([a-z][a-z0-9-]{0,30}[a-z0-9]))?\/(sse|messages|mcp)\/?(\?.*)?$/
const methods: Record<string, readonly string[]> = { sse: ['GET'], messages: ['POST'], mcp: ['POST', 'GET', 'DELETE'] }

const bodyLimitBytes = 4 * 1024 * 1024
const readyTimeoutMs = 45_000
/** ids of sessions that a client may have made up */
const mostRemembered = 1_000

/** refusals that a working instance would not have caused */
const instanceFailures = new Set(['instance-failed', 'instance-starting', 'instance-unreachable', 'image-missing'])

const authenticate = 'Bearer realm="sdp-mcp"'

const sessionInQuery = /[?&]sessionId=([^&]*)/
type Aim = { side: Route | DrainingRoute; statement: string }

export function createProxy({
  directory,
  routes,
  fleet,
  signer,
  activity,
  control,
  metrics,
  limiter,
  clients,
  addressOf = request => request.socket.remoteAddress ?? '',
  now,
  log,
}: {
  directory: Pick<Directory, 'find' | 'isFresh' | 'used'>
  routes: Routes
  fleet: Pick<Fleet, 'ensureReady' | 'reconcile'>
  signer: StatementSigner
  activity: Pick<Activity, 'meter'>
  control: Pick<InstanceControl, 'sessions'>
  metrics: ProxyMetrics
  /** without it users have no limits */
  limiter?: Limiter
  /** without it only API keys open the door */
  clients?: DynamicCredentials
  /** address of the client, for what is told to admins */
  addressOf?: (request: IncomingMessage) => string
  now: () => number
  log: Logger
}): McpProxy {
  const exchanges = createExchanges({ metrics, now })
  let closing = false
  /** event streams whose instance is being started */
  const waitingStreams = new Set<AbortController>()
  const bodyRoom = createBodyRoom()

  function keyHash(request: IncomingMessage): string {
    const { authorization } = request.headers
    const key =
      authorization !== undefined
        ? /^Bearer ([^\s]+)$/i.exec(authorization)?.[1]
        : (request.headers['x-api-key'] as string | undefined)
    if (key === undefined)
      throw new AppError(
        'api-key-required',
        'Send your API key as "Authorization: Bearer <key>". An admin makes one with POST /v1/users/<username>/api-keys.',
      )
    if (!looksLikeApiKey(key)) throw invalidKey()
    return apiKeyDigest(key)
  }

  /** What the request shows: the hash of an API key, or, on shared URLs and without a key, an OAuth client. */
  function credentialOf(request: IncomingMessage, isShared: boolean): string | ClientCredential {
    const { authorization, 'x-api-key': apiKey } = request.headers
    const client = isShared && authorization === undefined && apiKey === undefined ? clients?.read(request) : undefined
    return client ?? keyHash(request)
  }

  function identify(credential: string | ClientCredential): Identity {
    const identity = typeof credential === 'string' ? directory.find(credential) : clients!.find(credential)
    if (!identity || (identity.expiresAt !== null && identity.expiresAt <= now())) throw invalidKey()
    if (!directory.isFresh())
      throw new AppError(
        'database-unavailable',
        'The control plane has not been able to check API keys for minutes. Try again shortly.',
        { retryAfterSeconds: 10 },
      )
    return identity
  }

  async function carry(request: IncomingMessage, response: ServerResponse, match: RegExpExecArray): Promise<void> {
    const [, prefix, username, endpoint, query] = match as unknown as [
      string,
      string | undefined,
      string | undefined,
      string,
      string | undefined,
    ]
    const credential = credentialOf(request, username === undefined)
    if (typeof credential !== 'string') await clients!.admit(credential, addressOf(request))
    const identity = identify(credential)
    // a key of another user and an unknown username look the same
    if (username !== undefined && username !== identity.username) throw notFound()
    if (!methods[endpoint]!.includes(request.method ?? '')) {
      response.setHeader('allow', methods[endpoint]!.join(', '))
      throw new AppError('method-not-allowed', `Use ${methods[endpoint]!.join(', ')} on this path.`)
    }
    if (identity.suspended) throw suspended()
    const { userId } = identity
    const { method } = request
    // ending a session must be possible whatever is open
    if (limiter && method !== 'DELETE' && !response.destroyed) {
      limiter.enter(userId, identity.limits)
      response.once('close', () => limiter.leave(userId))
    }
    const body = await readBody(request, bodyLimitBytes, bodyRoom(userId, request, response))
    directory.used(identity.keyId, addressOf(request), request.headers['user-agent'])

    const startedAt = performance.now()
    for (let attempt = 1; !response.destroyed; attempt++) {
      // after a failure the fleet looks whether the instance is still the one that the table names
      const aimed = aim(identity, request, response, query, attempt > 1)
      const { side, statement } =
        aimed instanceof Promise ? await aimed.catch(error => refused(userId, response, attempt, error)) : aimed
      if (response.destroyed) return
      // the key may have been revoked while we waited, when there was nothing to cut yet
      if (identify(credential).suspended) throw suspended()
      // those that were open have been ended, and one that begins now would hold up the end of everything
      if (closing && method === 'GET') throw stopping()
      const meter = activity.meter(userId)
      if (attempt === 1) meter.requests++
      const outcome = await exchanges.begin(request, response, identity, {
        upstream: side.upstream,
        path: `/${endpoint}${query ?? ''}`,
        headers: `authorization: Bearer ${statement}\r\nx-forwarded-prefix: ${prefix ?? ''}\r\n`,
        body,
        meter,
        now,
      })
      const line = { username: identity.username, method, endpoint, outcome: outcome.kind }
      if (outcome.kind === 'done' || outcome.kind === 'aborted') {
        // its own 503 is a limit that it keeps, such as that of sessions
        if (outcome.kind === 'done' && outcome.status >= 500 && outcome.status !== 503) meter.failures++
        const durationMs = Math.round((performance.now() - startedAt) * 10) / 10
        log.debug({ ...line, status: response.statusCode, durationMs }, 'proxy.exchange.done')
        return
      }
      log.warn({ ...line, error: outcome.error }, 'proxy.exchange.failed')
      const untouched = outcome.kind === 'unreachable' || outcome.kind === 'stranger'
      if (untouched && attempt < 3) continue
      meter.failures++
      // the instance just died: look, so that the next request finds it right
      void fleet.reconcile(userId, { asked: 'client' }).catch(error => log.warn({ error }, 'proxy.reconcile.failed'))
      if (response.headersSent || response.destroyed) return
      throw untouched || method === 'GET' ? unreachable(outcome.error) : endedAtWork(outcome.error)
    }
  }

  /** There is no instance to carry it to. That counts as a failure of the instance where it is one. */
  function refused(userId: string, response: ServerResponse, attempt: number, error: unknown): never {
    if (!response.destroyed && error instanceof AppError && instanceFailures.has(error.code)) {
      const meter = activity.meter(userId)
      if (attempt === 1) meter.requests++
      meter.failures++
    }
    throw error
  }

  /** Where the instance is, and a statement for it: at once when both are at hand. */
  function aim(
    identity: Identity,
    request: IncomingMessage,
    response: ServerResponse,
    query: string | undefined,
    wakeFirst: boolean,
  ): Aim | Promise<Aim> {
    const { userId, username } = identity
    const route = wakeFirst ? undefined : routes.get(userId)
    if (route?.draining === null) {
      const statement = signer.statement({ userId, username, generation: route.generation }, 'mcp')
      if (typeof statement === 'string') return { side: route, statement }
    }
    return search(identity, request, response, query, wakeFirst)
  }

  /** Finds both; either may be overtaken while the other is made. */
  async function search(
    { userId, username }: Identity,
    request: IncomingMessage,
    response: ServerResponse,
    query: string | undefined,
    wakeFirst: boolean,
  ): Promise<Aim> {
    for (let ask = wakeFirst; ; ask = false) {
      const known = ask ? undefined : routes.get(userId)
      const route = known ?? (await wake(userId, request.method === 'GET', response))
      const side = route.draining === null ? route : await sideOf(route, route.draining, username, request, query)
      const statement = await signer.statement({ userId, username, generation: side.generation }, 'mcp')
      if (routes.get(userId) === route || response.destroyed) return { side, statement }
    }
  }

  /** During a move: the old instance for sessions that began there, the new one for all others. */
  async function sideOf(
    route: Route,
    draining: DrainingRoute,
    username: string,
    request: IncomingMessage,
    query: string | undefined,
  ): Promise<Route | DrainingRoute> {
    const session = (request.headers['mcp-session-id'] as string | undefined) ?? sessionInQuery.exec(query ?? '')?.[1]
    if (session === undefined || draining.elsewhere.has(session)) return route
    if (draining.sessions.has(session)) return draining
    // A session may have begun there just before the move, when nobody had been asked: so it is asked once for each.
    draining.asking ??= askSides(route, draining, username).finally(() => {
      draining.asking = null
    })
    const seen = await draining.asking
    for (const id of seen.draining ?? []) draining.sessions.add(id)
    if (draining.sessions.has(session)) return draining
    // only what an answer says is remembered: one that did not come in time says nothing
    if (seen.draining || seen.current?.includes(session)) {
      if (draining.elsewhere.size < mostRemembered) draining.elsewhere.add(session)
      return route
    }
    if (seen.current) return draining
    throw new AppError(
      'instance-unreachable',
      'Your instance is being moved and does not say just now where your session is. Repeat the request in a few seconds.',
      { retryAfterSeconds: 2 },
    )
  }

  async function askSides(route: Route, draining: DrainingRoute, username: string): Promise<SessionsSeen> {
    const sessionsOf = async ({ address, generation }: Route | DrainingRoute) => {
      try {
        const { sessions } = await control.sessions({ userId: route.userId, username, address, generation })
        return sessions.map(({ id }) => id)
      } catch (error) {
        log.warn({ error, username, generation }, 'proxy.sessions.unanswered')
        return null
      }
    }
    const there = await sessionsOf(draining)
    return { draining: there, current: there ? null : await sessionsOf(route) }
  }

  async function wake(userId: string, isStream: boolean, response: ServerResponse) {
    const gone = new AbortController()
    const onClose = () => gone.abort()
    response.once('close', onClose)
    if (isStream) waitingStreams.add(gone)
    try {
      await fleet.ensureReady(userId, { timeoutMs: readyTimeoutMs, signal: gone.signal })
    } catch (error) {
      throw closing && isStream ? stopping() : error
    } finally {
      response.off('close', onClose)
      waitingStreams.delete(gone)
    }
    const route = routes.get(userId)
    if (!route)
      throw new AppError(
        'instance-starting',
        'Your instance is just being replaced. Repeat the request in a few seconds.',
        { retryAfterSeconds: 2 },
      )
    return route
  }

  function refuse(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    if (response.destroyed) return
    const problem = asAppError(error)
    if (problem.code === 'internal') log.error({ error }, 'proxy.failed')
    if (problem.status === 401) response.setHeader('www-authenticate', authenticate)
    writeProblem(response, problem)
    discardRest(request)
  }

  return {
    handle(request, response) {
      const match = mcpPath.exec(request.url ?? '')
      if (!match) return false
      if (closing) response.setHeader('connection', 'close')
      const work = closing ? Promise.reject(stopping()) : carry(request, response, match)
      work.catch(error => refuse(request, response, error))
      return true
    },

    cut(revocation) {
      const { userId, reason } = revocation
      const count = exchanges.cut(revocation)
      if (reason === 'user-removed') limiter?.forget(userId)
      if (count > 0) log.info({ userId, reason, count }, 'proxy.exchanges.cut')
      return count
    },

    open: exchanges.open,

    async close(graceMs) {
      closing = true
      // calls have their grace, but a stream would only begin to be ended
      for (const waiting of waitingStreams) waiting.abort()
      await exchanges.close(graceMs)
    },
  }
}

const invalidKey = () =>
  new AppError(
    'api-key-required',
    'This API key is not valid: it is mistyped, expired or revoked. Ask your admin for a new one.',
  )

const stopping = () =>
  new AppError(
    'control-plane-stopping',
    'The control plane is being stopped or restarted. Repeat the request in a few seconds.',
    { retryAfterSeconds: 5 },
  )

const unreachable = (cause: Error) =>
  new AppError(
    'instance-unreachable',
    'Your instance cannot be reached at the moment. Repeat the request in a few seconds.',
    { retryAfterSeconds: 2, cause },
  )

/** Whoever repeats by itself what was answered with 503 would make a ticket twice. */
const endedAtWork = (cause: Error) =>
  new AppError(
    'instance-ended',
    'Your instance ended while it worked on this, and is being started again. Whether it was done is not known: look in ServiceDesk Plus before you repeat it.',
    { cause },
  )

const suspended = () =>
  new AppError('user-suspended', 'Your access is suspended. Ask your admin to lift the suspension.')

const notFound = () =>
  new AppError(
    'not-found',
    'There is nothing at this address. Check the URL your admin gave you, and that the API key belongs to it.',
  )
