import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { throttled, userBehind } from './accounts/accounts.ts'
import { accountsRoutes, tokenParameters } from './accounts/routes.ts'
import { sendFailure, serveApi, userOfHeader } from './api/api.ts'
import { ApiFailure, fail } from './api/failure.ts'
import { limitReached, RateLimit } from './api/rate-limit.ts'
import { type Control, controlRoutes } from './control.ts'
import { cutAnswer } from './cut-answer.ts'
import { beginExchange, exchangeOf } from './exchange.ts'
import type { FaultRule } from './faults/faults.ts'
import { loginPage, tomcatPage } from './html.ts'
import type { World } from './world.ts'

const bodyLimitBytes = 64 * 1024 * 1024

const isControl = (path: string) => path.startsWith('/_sim') || path === '/healthz'
const pathOf = (request: FastifyRequest) => request.url.split('?')[0] ?? ''

/** All of the simulator on one port, not yet listening. Read the routes as the table of contents. */
export function buildApp(world: World, control: Control): FastifyInstance {
  const app = Fastify({
    bodyLimit: bodyLimitBytes,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 20_000 },
    exposeHeadRoutes: false,
    // A path that cannot be decoded never reaches a route.
    frameworkErrors: (_error, _request, reply) => {
      reply.hijack()
      reply.raw.writeHead(400, { 'content-type': 'text/html' }).end(tomcatPage(400, 'Bad Request'))
    },
  })
  const limit = new RateLimit()

  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))

  app.addHook('onRequest', async request => {
    beginExchange(request, performance.now())
  })
  app.addHook('preHandler', (request, reply) => applyFaults(world, request, reply))
  app.addHook('onSend', async (request, reply, payload) => {
    log(world, request, reply.statusCode)
    return cutAnswer(request, reply, payload)
  })

  app.setErrorHandler(async (error: Error & { statusCode?: number }, _request, reply) => {
    if (error.statusCode && error.statusCode < 500)
      return reply.status(error.statusCode).type('text/html').send(tomcatPage(error.statusCode, error.message))
    process.stderr.write(`simulator: ${error.stack ?? error.message}\n`)
    return sendFailure(world, reply, fail.internal())
  })

  app.get('/healthz', async () => ({ status: 'ok' }))
  app.register(async scope => controlRoutes(scope, world, control))
  app.register(async scope => accountsRoutes(scope, world))
  app.route({
    method: ['GET', 'POST', 'PUT', 'DELETE', 'PATCH'],
    url: '/*',
    handler: async (request, reply) => {
      if (/^(\/app\/[^/]+)?\/api\/v3(\/|$)/.test(pathOf(request))) return serveApi(world, limit, request, reply)
      return reply.status(404).type('text/html').send(tomcatPage(404, 'Not Found'))
    },
  })
  return app
}

function log(world: World, request: FastifyRequest, status: number): void {
  const exchange = exchangeOf(request)
  const path = pathOf(request)
  if (exchange.logged || isControl(path)) return
  exchange.logged = true
  world.log.add({
    at: world.now(),
    method: request.method,
    path,
    status: exchange.cut ? 0 : status,
    user: exchange.user,
    durationMs: Math.round(performance.now() - exchange.startedAt),
    ...(exchange.input === undefined ? {} : { input: exchange.input }),
    ...(exchange.grantType === undefined ? {} : { grantType: exchange.grantType }),
  })
}

/** Finds out who is calling, then lets the chosen fault spoil the exchange. */
async function applyFaults(world: World, request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
  const path = pathOf(request)
  if (isControl(path)) return undefined
  const exchange = exchangeOf(request)
  exchange.user = userOfHeader(world, request.headers.authorization) ?? userBehind(world, tokenParameters(request))
  const { delayMs, rule } = world.faults.take({ path, method: request.method, user: exchange.user })
  if (delayMs > 0) await sleep(delayMs)
  return rule && spoil(world, rule, request, reply)
}

async function spoil(
  world: World,
  rule: Exclude<FaultRule, { kind: 'delay' }>,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<unknown> {
  const exchange = exchangeOf(request)
  const { switches } = world.faults
  switch (rule.kind) {
    case 'status':
      return sendBroken(world, rule, request, reply)
    case 'not-json':
      return reply.status(200).type('text/html').send(loginPage)
    case 'rate-limit': {
      const seconds =
        rule.retryAfterSeconds ?? (switches.rateLimitRetryAfter ? switches.rateLimitLockSeconds : undefined)
      return sendFailure(world, reply, limitReached(rule.status ?? switches.rateLimitStatus, seconds))
    }
    case 'throttle': {
      const error = throttled(world)
      return reply.status(error.httpStatus).send(error.body)
    }
    case 'drop-after':
      exchange.cut = 'before-answer'
      return undefined
    case 'drop-midway':
      exchange.cut = 'midway'
      return undefined
    case 'drop':
    case 'hang':
      log(world, request, 0)
      reply.hijack()
      if (rule.kind === 'drop') request.raw.socket.destroy()
      return reply
  }
}

function sendBroken(
  world: World,
  { status, body, headers }: Extract<FaultRule, { kind: 'status' }>,
  request: FastifyRequest,
  reply: FastifyReply,
) {
  reply.status(status).headers(headers)
  if (body === 'empty') return reply.send()
  if (body === 'html') return reply.type('text/html').send(tomcatPage(status, 'Error'))
  if (pathOf(request).startsWith('/oauth')) return reply.send({ error: 'general_error' })
  const code = { 401: 4022, 403: 4002, 404: 4007, 429: 4015 }[status] ?? (status >= 500 ? 4004 : 4000)
  const message = status >= 500 ? 'Internal Error' : `Fault ${status}`
  return sendFailure(world, reply, new ApiFailure(status, [{ status_code: code, type: 'failed', message }]))
}
