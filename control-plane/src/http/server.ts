import { STATUS_CODES } from 'node:http'
import Fastify, {
  type FastifyBaseLogger,
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerFactory,
  LogController,
  type RawReplyDefaultExpression,
  type RawRequestDefaultExpression,
  type RawServerDefault,
} from 'fastify'
import { serializerCompiler, type ZodTypeProvider } from 'fastify-type-provider-zod'
import type { z } from 'zod'
import { AppError, catalogue, type ErrorCode, type InvalidPart } from '../errors.ts'
import type { Logger } from '../log.ts'
import { asAppError, problemType, toProblem } from '../problem.ts'

export type App = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  ZodTypeProvider
>

export type ErrorPages = { read(code: ErrorCode): Promise<string | undefined> }

const bodyLimitBytes = 256 * 1024

/** A Fastify server with our manners: zod schemas, problem+json for every failure, one log line a request. */
export function createServer({
  log,
  errorPages,
  serverFactory,
  done,
}: {
  log: Logger
  errorPages: ErrorPages
  serverFactory?: FastifyServerFactory
  /** told of each answered request, by route pattern */
  done?: (method: string, route: string, status: number, durationMs: number) => void
}): App {
  const app = Fastify({
    loggerInstance: log as unknown as FastifyBaseLogger,
    // our own line, below
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: bodyLimitBytes,
    // a slow sender may not hold a request open; answers have no limit here
    requestTimeout: 60_000,
    keepAliveTimeout: 75_000,
    routerOptions: { ignoreTrailingSlash: true },
    frameworkErrors: (error, request, reply) =>
      sendProblem(error, request as unknown as FastifyRequest, reply as unknown as FastifyReply),
    ...(serverFactory ? { serverFactory } : {}),
  }).withTypeProvider<ZodTypeProvider>() as App

  app.setSerializerCompiler(serializerCompiler)
  app.setValidatorCompiler<z.ZodType>(({ schema, httpPart }) => data => {
    if (httpPart === 'body' && (data === undefined || data === null))
      return {
        error: new AppError('body-missing', 'Send a JSON object as the body, with content-type: application/json.'),
      }
    const parsed = schema.safeParse(data)
    if (parsed.success) return { value: parsed.data }
    return {
      error: invalid(parsed.error, httpPart === 'body' ? '#' : `#/${httpPart === 'querystring' ? 'query' : httpPart}`),
    }
  })

  // "no body" is what clients mean by an empty one; an own __proto__ or constructor key is refused
  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, body, done) => {
    if (body === '') done(null, undefined)
    else parseJson(request, body as string, (error, value) => done(error && malformed(body as string), value))
  })

  app.setErrorHandler((error: FastifyError, request, reply) =>
    sendProblem(error, request as unknown as FastifyRequest, reply as unknown as FastifyReply),
  )
  app.setNotFoundHandler(() => {
    throw nothingHere()
  })

  app.addHook('onResponse', async (request, reply) => {
    const line = {
      requestId: request.id,
      method: request.method,
      route: request.routeOptions.url ?? 'none',
      status: reply.statusCode,
      durationMs: Math.round(reply.elapsedTime * 10) / 10,
    }
    done?.(line.method, line.route, line.status, reply.elapsedTime)
    if (request.routeOptions.config && (request.routeOptions.config as { quiet?: boolean }).quiet)
      request.log.debug(line, 'http.request.done')
    else request.log.info(line, 'http.request.done')
  })

  app.get(
    '/errors/:code',
    { schema: { hide: true } as never, config: { quiet: true } as never },
    async (request, reply) => {
      const { code } = request.params as { code: string }
      const page = Object.hasOwn(catalogue, code) ? await errorPages.read(code as ErrorCode) : undefined
      if (page === undefined) throw new AppError('not-found', 'There is no page about such an error code.')
      return reply.type('text/markdown; charset=utf-8').send(page)
    },
  )
  return app
}

function sendProblem(
  error: FastifyError | AppError | Error,
  request: FastifyRequest,
  reply: FastifyReply,
): FastifyReply {
  const problem = fromFastify(error) ?? asAppError(error)
  if (problem.status >= 500) request.log.error({ error: problem, requestId: request.id }, 'http.request.failed')
  if (problem.status === 401) reply.header('www-authenticate', 'Bearer realm="sdp-mcp-admin"')
  if (problem.retryAfterSeconds !== undefined) reply.header('retry-after', String(problem.retryAfterSeconds))
  return reply
    .code(problem.status)
    .header('content-type', problemType)
    .header('cache-control', 'no-store')
    .serializer(JSON.stringify)
    .send(toProblem(problem))
}

function fromFastify(error: FastifyError | Error): AppError | undefined {
  const code = (error as FastifyError).code ?? ''
  const status = (error as FastifyError).statusCode ?? 500
  if (error instanceof AppError) return error
  // an address that cannot be decoded is none
  if (code === 'FST_ERR_BAD_URL') return nothingHere()
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE')
    return new AppError('content-type-unsupported', 'Send the body as content-type: application/json.', {
      cause: error,
    })
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE')
    return new AppError('body-too-large', `The body may have at most ${bodyLimitBytes} bytes.`, { cause: error })
  if (status >= 400 && status < 500)
    return new AppError('request-invalid', `${firstLine(error.message)} (${STATUS_CODES[status]}).`, { cause: error })
  return undefined
}

const nothingHere = () =>
  new AppError(
    'not-found',
    'There is nothing at this address for this method. Check both; the admin API is described at /docs of its listener.',
  )

const firstLine = (text: string) => text.split('\n')[0]!.slice(0, 200).replace(/\.$/, '')

/** Where a body stops being JSON. Never what stands there, which might be a secret. */
function malformed(body: string): AppError {
  let why = 'a key of it is named __proto__ or constructor, which is not allowed'
  try {
    JSON.parse(body)
  } catch (error) {
    const at = /at position \d+( \(line \d+ column \d+\))?/.exec((error as Error).message)?.[0]
    why = at ? `reading stopped ${at}` : 'check quotes, commas and brackets'
  }
  return new AppError(
    'body-malformed',
    `The body is not valid JSON: ${why}. Send it from a file if a shell is in the way.`,
  )
}

const mostPlaces = 20

/** All problems of one part of a request, each with a JSON pointer; never echoes a value, which might be a secret. */
function invalid(error: z.ZodError, root: string): AppError {
  const told = new Map<string, InvalidPart>()
  for (const issue of error.issues) {
    const at = `${root}${issue.path.map(pointerStep).join('')}`
    const found =
      issue.code === 'unrecognized_keys'
        ? issue.keys.map(key => ({ pointer: `${at}${pointerStep(key)}`, detail: 'is not a field of this object' }))
        : [{ pointer: at, detail: issue.message.replace(/^Invalid (input|option): /, '') }]
    // one reason a place is enough
    for (const part of found) if (!told.has(part.pointer)) told.set(part.pointer, part)
  }
  // what is wrong with the whole may follow from what is wrong with its parts
  if (told.size > 1) told.delete(root)
  const parts = [...told.values()].slice(0, mostPlaces)
  const places = parts.map(part => `${part.pointer} ${part.detail}`).join('; ')
  return new AppError('request-invalid', `Correct the request and send it again: ${places}.`, { invalid: parts })
}

/** RFC 6901; a field of absurd length is the sender's own, and not repeated in full. */
function pointerStep(step: PropertyKey): string {
  return `/${String(step).slice(0, 64).replaceAll('~', '~0').replaceAll('/', '~1')}`
}
