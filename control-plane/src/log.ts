import { type DestinationStream, type Logger, pino } from 'pino'

export type { Logger }

// A field of these names never reaches the log, at the top of a line or up to two levels below it.
const secretFields = [
  'authorization',
  'password',
  'secret',
  'token',
  'key',
  'apiKey',
  'clientSecret',
  'grantCode',
  'refreshToken',
  'accessToken',
  'dataKey',
  'boot',
]

/** JSON lines on standard output, with what must stay secret replaced by `[redacted]`. Events are named `area.thing.happened`. */
export function createLog(level: string, destination?: DestinationStream): Logger {
  return pino(
    {
      level,
      base: undefined,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: label => ({ level: label }) },
      serializers: { error: serializeError, err: serializeError },
      redact: {
        paths: secretFields
          .flatMap(name => [name, `*.${name}`, `*.*.${name}`])
          .concat('headers["x-api-key"]', 'headers.cookie'),
        censor: '[redacted]',
      },
    },
    destination ?? standardOutput(),
  )
}

/**
 * A disk that is full, or a reader that is gone, costs log lines and nothing else: not the process, not its memory, and not
 * its end, where the library would try for ever to write the rest.
 */
function standardOutput(): DestinationStream {
  const output = pino.destination({ sync: false, maxLength: keptUnwrittenBytes })
  const flushSync = output.flushSync.bind(output)
  let failing = false
  output.flushSync = () => {
    if (!failing) flushSync()
  }
  output.on('error', () => {
    failing = true
  })
  output.on('write', () => {
    failing = false
  })
  return output
}

const keptUnwrittenBytes = 1024 * 1024

/** Name, message, code and causes; not the other properties, which may carry requests or connection settings. */
function serializeError(error: unknown): unknown {
  if (!(error instanceof Error)) return String(error)
  const { code } = error as { code?: unknown }
  return {
    name: error.name,
    message: error.message,
    ...(typeof code === 'string' ? { code } : {}),
    stack: error.stack,
    ...(error.cause === undefined ? {} : { cause: serializeError(error.cause) }),
  }
}
