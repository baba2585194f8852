import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Directory, Identity, Revocation } from '../directory.ts'
import { AppError } from '../errors.ts'
import type { Fleet } from '../fleet/fleet.ts'
import { hashApiKey, looksLikeApiKey, type StatementSigner } from '../identity.ts'
import type { Logger } from '../log.ts'
import { writeProblem } from '../problem.ts'
import { type Exchange, type Outcome, pump } from './pump.ts'
import type { Routes } from './routes.ts'

/** Carries MCP traffic of users to their instances. */
export interface McpProxy {
  /** Takes the request if it is MCP traffic. @returns false: not ours, nothing was done */
  handle(request: IncomingMessage, response: ServerResponse): boolean
  /** Ends the open exchanges that a revocation concerns. @returns how many */
  cut(revocation: Revocation): number
  /** Open exchanges of each user. */
  open(): ReadonlyMap<string, number>
  /** Ends every open exchange. */
  close(): void
}

// Only these very paths are MCP traffic. They are compared as sent, without decoding, so that no spelling of a path means
// one thing here and another at an instance.
const mcpPath = /^(\/u\/([a-z][a-z0-9-]{0,30}[a-z0-9]))?\/(sse|messages|mcp)\/?(\?.*)?$/
const methods: Record<string, readonly string[]> = { sse: ['GET'], messages: ['POST'], mcp: ['POST', 'GET', 'DELETE'] }

const bodyLimitBytes = 4 * 1024 * 1024
const readyTimeoutMs = 45_000

const authenticate = 'Bearer realm="sdp-mcp"'

type Open = Exchange & { userId: string; keyId: string }

export function createProxy({
  directory,
  routes,
  fleet,
  signer,
  now,
  log,
}: {
  directory: Pick<Directory, 'find' | 'isFresh' | 'used'>
  routes: Routes
  fleet: Pick<Fleet, 'ensureReady' | 'reconcile'>
  signer: StatementSigner
  now: () => number
  log: Logger
}): McpProxy {
  const exchanges = new Map<string, Set<Open>>()

  function identify(request: IncomingMessage): Identity {
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
    const identity = looksLikeApiKey(key) ? directory.find(hashApiKey(key)) : undefined
    if (!identity || (identity.expiresAt !== null && identity.expiresAt <= now()))
      throw new AppError(
        'api-key-required',
        'This API key is not valid: it is mistyped, expired or revoked. Ask your admin for a new one.',
      )
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
    const identity = identify(request)
    // a key of another user and an unknown username look the same
    if (username !== undefined && username !== identity.username) throw notFound()
    if (!methods[endpoint]!.includes(request.method ?? '')) {
      response.setHeader('allow', methods[endpoint]!.join(', '))
      throw new AppError('method-not-allowed', `Use ${methods[endpoint]!.join(', ')} on this path.`)
    }
    if (identity.suspended) throw suspended()
    if (Number(request.headers['content-length'] ?? 0) > bodyLimitBytes)
      throw new AppError('body-too-large', `A message may have at most ${bodyLimitBytes} bytes.`)
    directory.used(identity.keyId)

    const { userId } = identity
    for (let attempt = 1; ; attempt++) {
      // after a failure the fleet looks whether the instance is still the one that the table names
      const known = attempt === 1 ? routes.get(userId) : undefined
      const instance = known ?? (await wake(userId, response))
      const statement = await signer.statement(
        { userId, username: identity.username, generation: instance.generation },
        'mcp',
      )
      if (response.destroyed) return
      // the key may have been revoked while we waited, when there was nothing to cut yet
      if (identify(request).suspended) throw suspended()
      const outcome = await exchange(request, response, identity, {
        dispatcher: instance.pool,
        path: `/${endpoint}${query ?? ''}`,
        headers: { authorization: `Bearer ${statement}`, 'x-forwarded-prefix': prefix ?? '' },
      })
      if (outcome.kind === 'done' || outcome.kind === 'aborted') return
      log.warn(
        { username: identity.username, endpoint, outcome: outcome.kind, error: outcome.error },
        'proxy.exchange.failed',
      )
      if (outcome.kind === 'unreachable' && attempt < 3 && !response.destroyed) continue
      // the instance just died: look, so that the next request finds it right
      void fleet.reconcile(userId, { asked: 'client' }).catch(error => log.warn({ error }, 'proxy.reconcile.failed'))
      if (!response.headersSent && !response.destroyed)
        throw new AppError(
          'instance-unreachable',
          'Your instance ended while it worked on this. It is being started again; repeat the request in a few seconds.',
          {
            retryAfterSeconds: 2,
            cause: outcome.error,
          },
        )
      return
    }
  }

  async function wake(userId: string, response: ServerResponse) {
    const gone = new AbortController()
    const onClose = () => gone.abort()
    response.once('close', onClose)
    try {
      await fleet.ensureReady(userId, { timeoutMs: readyTimeoutMs, signal: gone.signal })
    } finally {
      response.off('close', onClose)
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

  function exchange(
    request: IncomingMessage,
    response: ServerResponse,
    identity: Identity,
    target: Parameters<typeof pump>[2],
  ): Promise<Outcome> {
    return new Promise(resolve => {
      const { userId, keyId } = identity
      const open: Open = {
        userId,
        keyId,
        ...pump(request, response, target, outcome => {
          const ofUser = exchanges.get(userId)
          ofUser?.delete(open)
          if (ofUser?.size === 0) exchanges.delete(userId)
          resolve(outcome)
        }),
      }
      const ofUser = exchanges.get(userId)
      if (ofUser) ofUser.add(open)
      else exchanges.set(userId, new Set([open]))
    })
  }

  return {
    handle(request, response) {
      const match = mcpPath.exec(request.url ?? '')
      if (!match) return false
      carry(request, response, match).catch(error => {
        if (response.destroyed) return
        if (!(error instanceof AppError)) log.error({ error }, 'proxy.failed')
        const problem =
          error instanceof AppError
            ? error
            : new AppError('internal', 'Something went wrong here. Try again; if it stays, tell your admin.', {
                cause: error,
              })
        if (problem.status === 401) response.setHeader('www-authenticate', authenticate)
        writeProblem(response, problem)
        // an unread body would be taken for the next request
        if (!request.readableEnded) request.resume()
      })
      return true
    },

    cut({ userId, keyIds, reason }) {
      const revoked = new Set(keyIds)
      let count = 0
      for (const open of [...(exchanges.get(userId) ?? [])]) {
        if (reason === 'key-revoked' && !revoked.has(open.keyId)) continue
        open.cut()
        count++
      }
      if (count > 0) log.info({ userId, reason, count }, 'proxy.exchanges.cut')
      return count
    },

    open: () => new Map([...exchanges].map(([userId, set]) => [userId, set.size])),

    close() {
      for (const set of [...exchanges.values()]) for (const open of [...set]) open.cut()
    },
  }
}

function suspended(): AppError {
  return new AppError('user-suspended', 'Your access is suspended. Ask your admin to lift the suspension.')
}

function notFound(): AppError {
  return new AppError(
    'not-found',
    'There is nothing at this address. Check the URL your admin gave you, and that the API key belongs to it.',
  )
}
