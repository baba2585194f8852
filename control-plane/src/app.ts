import { createServer as createHttpServer, type RequestListener, type Server } from 'node:http'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import { jsonSchemaTransform } from 'fastify-type-provider-zod'
import type { Consent } from './consent.ts'
import type { Door } from './door.ts'
import { AppError } from './errors.ts'
import { watchHalfOpen } from './half-open.ts'
import { type ActivityRoutes, activityRoutes } from './http/activity.ts'
import { auditRoutes } from './http/audit.ts'
import { type AdminGuard, requireAdmin } from './http/auth.ts'
import { connectRoutes } from './http/connect.ts'
import { describeProblems } from './http/openapi.ts'
import { type RolloutRoutes, rolloutRoutes } from './http/rollouts.ts'
import { type App, createServer, type ErrorPages } from './http/server.ts'
import { healthRoutes, type SystemRoutes, systemRoutes } from './http/system.ts'
import { type UserRoutes, userRoutes } from './http/users.ts'
import type { Logger } from './log.ts'
import type { McpProxy } from './proxy/proxy.ts'

export { listenManifold } from './http/acceptors.ts'
export type { App, ErrorPages }

/** The listener of the users: MCP traffic, and what tells a load balancer how we are. */
export function buildPublicApp(
  parts: Pick<SystemRoutes, 'db' | 'runtime'> & {
    proxy: McpProxy
    consent: Consent
    publicUrl: string
    door?: Door
    patience?: Patience
    log: Logger
    errorPages: ErrorPages
  },
): App {
  const app = createServer({
    ...parts,
    // MCP traffic never passes through Fastify: no hook, no parsing, no buffering stands in its way
    serverFactory: handler =>
      listener((request, response) => {
        if (parts.door?.stops(request, response)) return
        if (!parts.proxy.handle(request, response)) handler(request, response)
      }, parts),
  })
  healthRoutes(app, parts)
  connectRoutes(app, parts)
  // clients look for OAuth here first; a clean 404 tells them to use the API key they have
  for (const path of ['/.well-known/*', '/register', '/authorize', '/token'])
    app.all(path, { schema: { hide: true } as never }, async () => {
      throw new AppError(
        'not-found',
        'MCP authorization (OAuth) is not enabled here. Send your API key as "Authorization: Bearer <key>".',
      )
    })
  return app
}

/** The listener of the admins: REST API, its description, and metrics. */
export async function buildAdminApp(
  parts: UserRoutes &
    SystemRoutes &
    ActivityRoutes &
    RolloutRoutes &
    AdminGuard & { door?: Door; patience?: Patience; log: Logger; errorPages: ErrorPages; swaggerAssets?: string },
): Promise<App> {
  const app = createServer({
    ...parts,
    done: parts.metrics.httpDone,
    serverFactory: handler =>
      listener((request, response) => {
        if (!parts.door?.stops(request, response)) handler(request, response)
      }, parts),
  })
  healthRoutes(app, parts)
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'sdp-mcp admin API',
        version: parts.version,
        description:
          'Adds and removes users, each with an MCP server of its own for ServiceDesk Plus Cloud. Failures are problem+json (RFC 9457).',
      },
      components: { securitySchemes: { adminToken: { type: 'http', scheme: 'bearer' } } },
      security: [{ adminToken: [] }],
    },
    transform: jsonSchemaTransform,
    transformObject: describeProblems,
  })
  await app.register(swaggerUi, {
    routePrefix: '/docs',
    ...(parts.swaggerAssets ? { baseDir: parts.swaggerAssets } : {}),
  })
  app.get('/openapi.json', { schema: { hide: true } as never }, async () => app.swagger())
  await app.register(async scope => {
    requireAdmin(scope as App, parts)
    userRoutes(scope as App, parts)
    auditRoutes(scope as App, parts)
    systemRoutes(scope as App, parts)
    activityRoutes(scope as App, parts)
    rolloutRoutes(scope as App, parts)
  })
  return app
}

/** How long a sender may take; tests are less patient. */
export type Patience = { headersMs: number; requestMs: number }
const ourPatience: Patience = { headersMs: 20_000, requestMs: 60_000 }

/**
 * A server that loses patience with slow senders: headers within 20 s, the whole request within a minute (408 after
 * that), at most 16 KiB of headers (431). Answers may take as long as they like. Whom the door does not admit is cut off
 * before anything is read.
 */
function listener(
  handle: RequestListener,
  { log, door, patience = ourPatience }: { log: Logger; door?: Door | undefined; patience?: Patience | undefined },
): Server {
  const { headersMs, requestMs } = patience
  const connectionsCheckingInterval = Math.min(2_000, headersMs)
  const server = createHttpServer({ maxHeaderSize: 16 * 1024, connectionsCheckingInterval }, handle)
  if (door) server.prependListener('connection', socket => void (door.admits(socket) || socket.destroy()))
  server.headersTimeout = headersMs
  server.requestTimeout = requestMs
  server.keepAliveTimeout = 75_000
  server.timeout = 0
  watchHalfOpen(server, log)
  return server
}
