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
  /** the instance could not be reached; nothing was sent to it, nor to the client */
  | { kind: 'unreachable'; error: Error }
  /** whoever answers there does not accept our statement: it is another instance; nothing was sent to the client */
  | { kind: 'stranger'; error: Error }
  /** the instance died or misbehaved in the middle; the client's stream was ended */
  | { kind: 'broken'; error: Error }

export type Target = {
  dispatcher: Dispatcher
  /** path and query at the instance */
  path: string
  /** what the instance is told beside the client's own headers */
  headers: Record<string, string>
  body: Buffer | null
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
  // told anew, of the body that is sent
  'content-length',
])
const notForInstancesPrefixes = ['x-forwarded-', 'x-sdp-', 'x-real-ip']
// clients carry their key with each request, and nothing of ours may stick to them
const notForClients = new Set(['set-cookie', 'www-authenticate'])

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
 * @param finished - called exactly once, perhaps before this returns
 */
export function pump(
  request: IncomingMessage,
  response: ServerResponse,
  target: Target,
  finished: (outcome: Outcome) => void,
): Exchange {
  let controller: Dispatcher.DispatchController | undefined
  let over = false

  const finish = (outcome: Outcome) => {
    over = true
    response.off('close', onClientGone)
    response.off('drain', onDrain)
    finished(outcome)
  }
  const abort = (outcome: Outcome) => {
    if (over) return
    // first: aborting reports an error at once, which is not the instance's
    finish(outcome)
    controller?.abort(new Error('the exchange is over'))
  }
  const onClientGone = () => abort({ kind: 'aborted' })
  const onDrain = () => controller?.resume()
  if (response.destroyed) {
    finish({ kind: 'aborted' })
    return { cut() {} }
  }
  response.on('close', onClientGone)
  response.on('drain', onDrain)

  target.dispatcher.dispatch(
    {
      method: request.method as Dispatcher.HttpMethod,
      path: target.path,
      headers: requestHeaders(request, target.headers),
      body: target.body,
      headersTimeout: 0,
      bodyTimeout: 0,
      blocking: false,
    },
    {
      onRequestStart(started) {
        controller = started
        if (over) started.abort(new Error('the exchange is over'))
      },
      onResponseStart(_controller, status, headers) {
        if (over || status < 200) return
        if (status === 401) {
          abort({ kind: 'stranger', error: new Error('the instance refused our statement') })
          return
        }
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
        const { code } = error as NodeJS.ErrnoException
        if (response.headersSent) {
          finish({ kind: 'broken', error })
          // the answer is cut short: ending the connection is the only way to say so
          response.destroy()
        } else finish({ kind: connectErrors.has(code ?? '') ? 'unreachable' : 'broken', error })
      },
    },
  )

  return {
    cut() {
      abort({ kind: 'aborted' })
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
  const dropped = connectionOptions([headers.connection ?? []].flat().join(','))
  const kept: Record<string, string | string[]> = {}
  for (const name in headers) {
    const value = headers[name]
    if (value === undefined || hopByHop.has(name) || notForClients.has(name) || dropped?.has(name)) continue
    if (name.startsWith('x-sdp-')) continue
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
  if (!value || /^(keep-alive|close)$/i.test(value)) return undefined
  return new Set(value.split(',').map(name => name.trim().toLowerCase()))
}
