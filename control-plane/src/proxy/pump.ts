import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Dispatcher } from 'undici'

/**
 * One HTTP exchange with an instance. Moves bytes and knows nothing of MCP: headers reach the client as soon as the
 * instance has them, chunks as they come, and whoever goes away takes the other side along.
 */
export type Exchange = {
  /** Ends both sides at once; the client sees its stream end. */
  cut(): void
}

export type Outcome =
  /** the answer went through whole */
  | { kind: 'done'; status: number }
  /** the client went away, or {@link Exchange.cut} was called */
  | { kind: 'aborted' }
  /** the instance could not be reached; nothing was sent to the client, nothing of the body was read */
  | { kind: 'unreachable'; error: Error }
  /** the instance died or misbehaved in the middle; the client's stream was ended */
  | { kind: 'broken'; error: Error }

export type Target = {
  dispatcher: Dispatcher
  /** path and query at the instance */
  path: string
  /** what the instance is told beside the client's own headers */
  headers: Record<string, string>
}

// RFC 9110 section 7.6.1
const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])
// the caller's credentials, and what only a proxy may say
const notForInstances = new Set([
  'authorization',
  'x-api-key',
  'cookie',
  'host',
  'forwarded',
  'expect',
  'accept-encoding',
])
const notForInstancesPrefixes = ['x-forwarded-', 'x-sdp-', 'x-real-ip']

const connectErrors = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EHOSTDOWN',
  'UND_ERR_CONNECT_TIMEOUT',
  'ENOTFOUND',
  'UND_ERR_DESTROYED',
  'UND_ERR_CLOSED',
])

/**
 * Carries a request to an instance and the answer back.
 * @param finished - called exactly once
 */
export function pump(
  request: IncomingMessage,
  response: ServerResponse,
  target: Target,
  finished: (outcome: Outcome) => void,
): Exchange {
  let controller: Dispatcher.DispatchController | undefined
  let over = false
  let aborted = false
  let bodyTouched = false

  const finish = (outcome: Outcome) => {
    if (over) return
    over = true
    response.off('close', onClientGone)
    response.off('drain', onDrain)
    finished(outcome)
  }
  const abort = () => {
    if (over || aborted) return
    aborted = true
    // first: aborting reports an error at once, which is not the instance's
    finish({ kind: 'aborted' })
    controller?.abort(new Error('the client went away'))
  }
  const onClientGone = () => {
    if (!response.writableFinished) abort()
  }
  const onDrain = () => controller?.resume()
  response.on('close', onClientGone)
  response.on('drain', onDrain)

  const hasBody =
    request.headers['content-length'] !== undefined
      ? request.headers['content-length'] !== '0'
      : request.headers['transfer-encoding'] !== undefined
  if (hasBody)
    request.once('resume', () => {
      bodyTouched = true
    })

  target.dispatcher.dispatch(
    {
      method: request.method as Dispatcher.HttpMethod,
      path: target.path,
      headers: requestHeaders(request, target.headers),
      body: hasBody ? request : null,
      headersTimeout: 0,
      bodyTimeout: 0,
      blocking: false,
    },
    {
      onRequestStart(started) {
        controller = started
        if (aborted) started.abort(new Error('the client went away'))
      },
      onResponseStart(_controller, status, headers) {
        if (over || response.destroyed || status < 200) return
        response.writeHead(status, responseHeaders(headers))
        // an event stream may stay silent for long, and its headers must not wait for the first event
        response.flushHeaders()
      },
      onResponseData(current, chunk) {
        if (over) return
        if (!response.write(chunk)) current.pause()
      },
      onResponseEnd() {
        if (over) return
        const { statusCode } = response
        response.end()
        finish({ kind: 'done', status: statusCode })
      },
      onResponseError(_controller, error) {
        if (over) return
        if (response.headersSent) {
          // the answer is cut short: ending the connection is the only way to say so
          finish({ kind: 'broken', error })
          response.destroy()
        } else if (!bodyTouched && connectErrors.has((error as NodeJS.ErrnoException).code ?? ''))
          finish({ kind: 'unreachable', error })
        else finish({ kind: 'broken', error })
      },
    },
  )

  return {
    cut() {
      abort()
      response.destroy()
    },
  }
}

function requestHeaders(request: IncomingMessage, own: Record<string, string>): string[] {
  const dropped = connectionOptions(request.headers.connection)
  const { rawHeaders } = request
  const headers: string[] = []
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index]!.toLowerCase()
    if (hopByHop.has(name) || notForInstances.has(name) || dropped?.has(name)) continue
    if (notForInstancesPrefixes.some(prefix => name.startsWith(prefix))) continue
    headers.push(name, rawHeaders[index + 1]!)
  }
  for (const name in own) headers.push(name, own[name]!)
  return headers
}

function responseHeaders(headers: Record<string, string | string[] | undefined>): Record<string, string | string[]> {
  const dropped = connectionOptions(headers.connection as string | undefined)
  const kept: Record<string, string | string[]> = {}
  for (const name in headers) {
    const value = headers[name]
    if (value === undefined || hopByHop.has(name) || dropped?.has(name)) continue
    kept[name] = value
  }
  if (typeof kept['content-type'] === 'string' && kept['content-type'].startsWith('text/event-stream')) {
    // for proxies between us and the client: neither collect nor compress events
    kept['cache-control'] = 'no-cache, no-transform'
    kept['x-accel-buffering'] = 'no'
  }
  return kept
}

/** Further header names that the sender declared to be for this connection only. */
function connectionOptions(value: string | undefined): Set<string> | undefined {
  if (value === undefined || /^(keep-alive|close)$/i.test(value)) return undefined
  return new Set(value.split(',').map(name => name.trim().toLowerCase()))
}
