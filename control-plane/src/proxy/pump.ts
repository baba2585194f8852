import type { IncomingMessage, ServerResponse } from 'node:http'
import { lastWordsHeader, streamHeader } from '@sdp-mcp/instance/contract'
import { type Answer, type Call, readBytes, smallBytes, type Upstream } from './upstream.ts'

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
  upstream: Upstream
  /** path and query at the instance */
  path: string
  /** what the instance is told beside the client's own headers: lines of a head, each ended by CR LF */
  headers: string
  body: Buffer | null
  /** written to as bytes come from the instance */
  meter: { activeAt: number; bytesOut: number }
  now: () => number
}

/** An event stream's keep-alive is a comment of a few bytes by itself: no sign of anybody being there. */
const longestKeepAlive = 32
const colon = 58

// RFC 9110 section 7.6.1
const hopByHop = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]
// the caller's credentials, and what only a proxy may say
const notForInstances = new Set([
  ...hopByHop,
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
const notForClients = new Set([...hopByHop, 'set-cookie', 'www-authenticate'])

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
  const pumping = new Pump(request, response, target, finished)
  pumping.begin(target)
  return pumping
}

/** Streams that an instance has given a name, so that the answers of other calls can speak of them. */
const namedStreams = new WeakMap<Upstream, Map<string, Pump>>()

class Pump implements Exchange, Answer {
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  readonly #upstream: Upstream
  /** what the client is told if the instance dies on this stream; base64 */
  #lastWords: string | undefined
  #streamName: string | undefined
  readonly #finished: (outcome: Outcome) => void
  readonly #meter: Target['meter']
  readonly #now: () => number
  readonly #onClientGone = () => this.#abort({ kind: 'aborted' })
  #call: Call | undefined
  #over = false
  /** whether the headers are on their way to the client, alone or with the bytes that came with them */
  #headSent = false
  #waitsForDrain = false

  constructor(
    request: IncomingMessage,
    response: ServerResponse,
    { upstream, meter, now }: Target,
    finished: (outcome: Outcome) => void,
  ) {
    this.#request = request
    this.#response = response
    this.#upstream = upstream
    this.#meter = meter
    this.#now = now
    this.#finished = finished
  }

  begin({ upstream, path, headers, body }: Target): void {
    const request = this.#request
    if (this.#response.destroyed) {
      this.#finish({ kind: 'aborted' })
      return
    }
    this.#response.on('close', this.#onClientGone)
    const method = request.method as string
    this.#call = upstream.send({ method, path, headers: requestHeaders(request) + headers, body }, this)
  }

  cut(): void {
    const words = this.#over ? undefined : this.#lastWords
    this.#abort({ kind: 'aborted' })
    this.#end(words)
  }

  #abort(outcome: Outcome): void {
    if (this.#over) return
    this.#call?.abort()
    this.#finish(outcome)
  }

  #finish(outcome: Outcome): void {
    this.#over = true
    if (this.#streamName !== undefined) namedStreams.get(this.#upstream)?.delete(this.#streamName)
    this.#response.off('close', this.#onClientGone)
    this.#finished(outcome)
  }

  head(status: number, headers: string[]): void {
    if (status === 401) {
      this.#abort({ kind: 'stranger', error: new Error('the instance refused our statement') })
      return
    }
    try {
      this.#response.writeHead(status, this.#responseHeaders(headers))
      if (this.#request.method === 'GET') forgetHeaders(this.#request)
    } catch (error) {
      // a name or a value that HTTP does not allow
      this.#abort({ kind: 'broken', error: error as Error })
    }
  }

  #responseHeaders(headers: string[]): string[] {
    let options = ''
    let events = false
    let words: string | undefined
    let stream: string | undefined
    for (let index = 0; index < headers.length; index += 2) {
      const value = headers[index + 1]!
      const name = headers[index]
      if (name === 'connection') options += options === '' ? value : `,${value}`
      else if (name === 'content-type') events = value.startsWith('text/event-stream')
      else if (name === lastWordsHeader) words = value
      else if (name === streamHeader) stream = value
    }
    if (words !== undefined || stream !== undefined) this.#heed(words, stream, events)
    const dropped = connectionOptions(options)
    const kept: string[] = []
    for (let index = 0; index < headers.length; index += 2) {
      const name = headers[index]!
      if (notForClients.has(name) || dropped?.has(name) || name.startsWith('x-sdp-')) continue
      if (events && (name === 'cache-control' || name === 'x-accel-buffering')) continue
      kept.push(name, headers[index + 1]!)
    }
    // for proxies between us and the client: neither collect nor compress events
    if (events) kept.push('cache-control', 'no-cache, no-transform', 'x-accel-buffering', 'no')
    return kept
  }

  /** What the instance says to the proxy alone. Names hold within one instance: no other one can speak of its streams. */
  #heed(words: string | undefined, stream: string | undefined, isStream: boolean): void {
    const spoken = words !== undefined && words.length <= lastWordsLimit ? words : undefined
    if (isStream) {
      this.#lastWords = spoken
      if (stream === undefined) return
      const streams = namedStreams.get(this.#upstream) ?? new Map<string, Pump>()
      namedStreams.set(this.#upstream, streams)
      streams.set(stream, this)
      this.#streamName = stream
    } else if (stream !== undefined) {
      const named = namedStreams.get(this.#upstream)?.get(stream)
      if (named) named.#lastWords = spoken
    }
  }

  /** Ends a client's stream before its time: with what the instance had to say in that case, else by the connection's end. */
  #end(words: string | undefined): void {
    const response = this.#response
    if (words === undefined || !response.headersSent || response.writableNeedDrain) {
      response.destroy()
      return
    }
    // the line ends close an event that was cut short
    response.end(`\n\n${Buffer.from(words, 'base64').toString()}`, () => response.destroy())
    // a client that does not read would never hear of its end
    setTimeout(() => response.destroy(), lastWordsMs).unref()
  }

  data(chunk: Buffer): void {
    const response = this.#response
    this.#headSent = true
    this.#meter.bytesOut += chunk.length
    if (chunk[0] !== colon || chunk.length > longestKeepAlive) this.#meter.activeAt = this.#now()
    if (chunk.length <= smallBytes) {
      if (response.write(chunk.toString('latin1'), 'latin1')) return
    } else {
      const copy = copyOf(chunk)
      if (response.write(copy.bytes, copy.release)) return
    }
    // what was read at once may hold many pieces, and more of them come after the first that has to wait
    if (this.#waitsForDrain) return
    this.#waitsForDrain = true
    this.#call?.pause()
    response.once('drain', () => {
      this.#waitsForDrain = false
      if (!this.#over) this.#call?.resume()
    })
  }

  waiting(): void {
    if (this.#headSent) return
    // an event stream may stay silent for long, and its headers must not wait for the first event
    this.#headSent = true
    this.#response.flushHeaders()
  }

  ended(last?: Buffer): void {
    const response = this.#response
    if (last) this.#meter.bytesOut += last.length
    // text joins the head in a single write; a buffer would be gathered with it
    if (last && last.length <= smallBytes) response.end(last.toString('latin1'), 'latin1')
    else if (last) {
      const copy = copyOf(last)
      response.end(copy.bytes, copy.release)
    } else response.end()
    this.#finish({ kind: 'done', status: response.statusCode })
  }

  failed(error: Error, reached: boolean): void {
    const response = this.#response
    if (response.headersSent) {
      this.#finish({ kind: 'broken', error })
      this.#end(this.#lastWords)
    } else this.#finish({ kind: reached ? 'broken' : 'unreachable', error })
  }
}

/** A stream may be held for a day, and nobody will ask for them again. */
function forgetHeaders(request: IncomingMessage): void {
  request.rawHeaders = none
  request.headers = {}
}
const none: string[] = []

/** Base64 of a few short events; an instance that sends more is not one of ours. */
const lastWordsLimit = 8 * 1024
/** How long a client may take to read them. */
const lastWordsMs = 500

/** Buffers for large pieces, used again once their bytes have left: else a large answer fills the memory with used ones. */
const spare: Buffer[] = []
const spareLimit = 64

function copyOf(chunk: Buffer): { bytes: Buffer; release: () => void } {
  const buffer = spare.pop() ?? Buffer.allocUnsafeSlow(readBytes)
  chunk.copy(buffer)
  return {
    bytes: buffer.subarray(0, chunk.length),
    release() {
      if (spare.length < spareLimit) spare.push(buffer)
    },
  }
}

/** What a header is called on its way to an instance; null: it stays here. Clients send few names, again and again. */
const namesForInstances = new Map<string, string | null>()
const namesLimit = 500

function nameForInstances(sent: string): string | null {
  const known = namesForInstances.get(sent)
  if (known !== undefined) return known
  const name = sent.toLowerCase()
  const stays = notForInstances.has(name) || notForInstancesPrefixes.some(prefix => name.startsWith(prefix))
  if (namesForInstances.size < namesLimit) namesForInstances.set(sent, stays ? null : name)
  return stays ? null : name
}

function requestHeaders(request: IncomingMessage): string {
  const dropped = connectionOptions(request.headers.connection)
  const { rawHeaders } = request
  let lines = ''
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = nameForInstances(rawHeaders[index]!)
    if (name === null || dropped?.has(name)) continue
    lines += `${name}: ${rawHeaders[index + 1]}\r\n`
  }
  return lines
}

/** Further header names that the sender declared to be for this connection only. */
function connectionOptions(value: string | undefined): Set<string> | undefined {
  if (!value || /^(keep-alive|close)$/i.test(value)) return undefined
  return new Set(value.split(',').map(name => name.trim().toLowerCase()))
}
