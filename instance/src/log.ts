import { type DestinationStream, type Logger, pino } from 'pino'

/** Paths whose values never reach a log line, wherever somebody logs an object that holds them. */
const secretKeys = [
  'authorization',
  'accessToken',
  'access_token',
  'apiKey',
  'clientSecret',
  'client_secret',
  'dataKey',
  'grantCode',
  'password',
  'refreshToken',
  'refresh_token',
]

/**
 * JSON lines on standard error: standard output belongs to the protocol. Secrets are cut out by the name of their
 * key, and by their shape in messages and stacks of errors.
 */
export function createLog(options: { level: string; username: string; destination?: DestinationStream }): Logger {
  return pino(
    {
      level: options.level,
      base: { username: options.username },
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: {
        paths: secretKeys.flatMap(key => [key, `*.${key}`, `*.*.${key}`]),
        censor: '[redacted]',
      },
      serializers: {
        err: error => {
          const { type, message, stack, ...rest } = pino.stdSerializers.err(error as Error) ?? {}
          return {
            type,
            message: withoutTokens(message),
            stack: withoutTokens(stack),
            code: rest.code,
            kind: rest.kind,
          }
        },
      },
    },
    options.destination ?? pino.destination({ dest: 2, sync: true }),
  )
}

function withoutTokens(text: unknown): string | undefined {
  return typeof text === 'string' ? text.replace(/1000\.[\w.-]{20,}/g, '[redacted]') : undefined
}
