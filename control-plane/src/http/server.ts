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
}: {
  log: Logger
  errorPages: ErrorPages
  serverFactory?: FastifyServerFactory
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
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, body, done) => {
    if (body === '') done(null, undefined)
    else parseJson(request, body as string, done)
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
    if (request.routeOptions.config && (request.routeOptions.config as { quiet?: boolean }).quiet)
      request.log.debug(line, 'http.request.done')
    else request.log.info(line, 'http.request.done')
  })

  app.get(
    '/errors/:code',
    { schema: { hide: true } as never, config: { quiet: true } as never },
    async (request, reply) => {
      const { code } = request.params as { code: string }
      const page = code in catalogue ? await errorPages.read(code as ErrorCode) : undefined
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
  if (error instanceof SyntaxError || code === 'FST_ERR_CTP_INVALID_JSON_BODY')
    return new AppError(
      'body-malformed',
      `The body is not valid JSON: ${firstLine(error.message)}. Check quotes, commas and brackets.`,
      { cause: error },
    )
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

/** All problems of one part of a request, each with a JSON pointer; never echoes a value, which might be a secret. */
function invalid(error: z.ZodError, root: string): AppError {
  const parts: InvalidPart[] = error.issues.flatMap(issue => {
    const at = `${root}${issue.path.map(step => `/${String(step).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('')}`
    if (issue.code === 'unrecognized_keys')
      return issue.keys.map(key => ({ pointer: `${at}/${key}`, detail: 'is not a field of this object' }))
    return [{ pointer: at, detail: issue.message.replace(/^Invalid input: /, '') }]
  })
  const places = parts.map(part => `${part.pointer} ${part.detail}`).join('; ')
  return new AppError('request-invalid', `Correct the request and send it again: ${places}.`, { invalid: parts })
}
