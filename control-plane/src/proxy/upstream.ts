import { connect, type Socket } from 'node:net'

/**
 * HTTP/1.1 to one instance, over connections that are kept for the next call. It exists because the path of every byte
 * needs less than a general client does, and needs it faster: a head is parsed once, the bytes of a body are handed on as
 * they were read, and a held stream costs a socket and one small object. docs/performance.md has the numbers.
 */
export interface Upstream {
  /** Begins a call; `answer` hears of everything that follows. */
  send(outgoing: Outgoing, answer: Answer): Call
  /** Ends connections that have been idle for too long. Somebody calls this every few seconds. */
  sweep(): void
  /** No more calls are taken: idle connections end now, busy ones with their call. */
  retire(): void
  /** Ends everything at once; calls under way fail. */
  destroy(): void
}

export type Outgoing = {
  method: string
  path: string
  /** further lines of the head, each ended by CR LF; made of what a parser has let through, so no value holds a line end */
  headers: string
  body: Buffer | null
}

/** A call under way; not to be touched once it has ended or failed, because its connection may carry another one then. */
export interface Call {
  pause(): void
  resume(): void
  /** Gives up. The connection ends, by which the instance notices; the answer hears nothing more. */
  abort(): void
}

/**
 * Hears of one call: `head`; `data` and `waiting` in turn; at last `ended` or `failed`. Must not throw. The bytes it hears
 * are those of a buffer that the next read fills again: whoever keeps them copies them.
 */
export interface Answer {
  /** @param headers - names in lower case and values, in turn */
  head(status: number, headers: string[]): void
  data(chunk: Buffer): void
  /** No more bytes have arrived for now. */
  waiting(): void
  /** @param last - the rest of the body, where it came in one piece with its end */
  ended(last?: Buffer): void
  /** @param reached - false: the instance has seen nothing of this call; may be told before `send` returns */
  failed(error: Error, reached: boolean): void
}

const connectTimeoutMs = 2_000
/** Well below the 75 s for which an instance keeps an idle connection, so that we do not write into one it is closing. */
const idleMs = 30_000
/** Of a connection that has carried nothing yet: an instance ends those after 15 s, with words that nobody asked for. */
const spareMs = 10_000
const headLimitBytes = 64 * 1024
const keepAliveProbeMs = 30_000
/** Up to this size, one copy into one write is cheaper than gathering pieces. */
export const smallBytes = 16 * 1024
/** The most that is read at once. */
export const readBytes = 64 * 1024

/** @param address - `http://host:port` */
export function createUpstream(address: string): Upstream {
  const { hostname, port } = new URL(address)
  const connections: Connections = {
    hostname,
    port: Number(port || 80),
    // Whatever address it has: servers built on the official SDK refuse names and addresses but those of their own machine,
    // against web pages that have their name lead there (DNS rebinding).
    host: `127.0.0.1:${port || 80}`,
    idle: [],
    all: new Set(),
    retired: false,
  }
  return {
    send(outgoing, answer) {
      if (connections.retired) {
        answer.failed(new Error('the instance has been replaced'), false)
        return over
      }
      const connection = takeIdle(connections) ?? new Connection(connections)
      connection.begin(outgoing, answer)
      // a stream keeps its connection: whoever comes next, the client's first message as a rule, finds one that is open
      if (outgoing.method === 'GET') setImmediate(openSpare, connections)
      return connection
    },
    sweep() {
      const now = performance.now()
      for (const connection of connections.idle.filter(({ idleUntil }) => idleUntil <= now)) connection.close()
    },
    retire() {
      connections.retired = true
      for (const connection of [...connections.idle]) connection.close()
    },
    destroy() {
      connections.retired = true
      for (const connection of [...connections.all]) connection.fail(new Error('the route was closed'))
    },
  }
}

type Connections = {
  hostname: string
  port: number
  /** what the instance reads as its name */
  host: string
  /** the last one used is the next one used, so that surplus ones grow old */
  idle: Connection[]
  all: Set<Connection>
  retired: boolean
}

function openSpare(connections: Connections): void {
  if (!connections.retired && connections.idle.length === 0) new Connection(connections).waitIdle(spareMs)
}

function takeIdle({ idle }: Connections): Connection | undefined {
  const now = performance.now()
  for (;;) {
    const connection = idle.pop()
    if (!connection || connection.idleUntil > now) return connection
    connection.close()
  }
}

const over: Call = { pause() {}, resume() {}, abort() {} }

/** What has just been read, of whichever connection: taken before the next read, because each read fills it anew. */
const arrivals = Buffer.allocUnsafeSlow(readBytes)

const headEnd = Buffer.from('\r\n\r\n')

/** What the next byte of an answer belongs to. */
const expecting = {
  head: 0,
  /** a body of known length */
  counted: 1,
  /** a body that ends with the connection */
  rest: 2,
  chunkSize: 3,
  chunkExtension: 4,
  chunkSizeEnd: 5,
  chunk: 6,
  chunkEnd: 7,
  trailer: 8,
} as const
type Expecting = (typeof expecting)[keyof typeof expecting]

/**
 * One connection, one call at a time: connecting -> busy -> idle -> busy -> ... -> closed. Whatever an instance sends that
 * HTTP/1.1 does not allow, or sends without being asked, closes it.
 */
class Connection implements Call {
  /** of the clock of `performance.now()` */
  idleUntil = 0
  readonly #siblings: Connections
  readonly #socket: Socket
  #connected = false
  #answer: Answer | undefined
  #outgoing: Outgoing | undefined
  #reusable = true
  #idleMs = idleMs
  #expecting: Expecting = expecting.head
  /** bytes to come of a body or a chunk */
  #left = 0
  /** bytes seen of what has a limit: a chunk's size, the trailers */
  #seen = 0
  /** whether the current line of the trailers has anything on it */
  #lineEmpty = true
  /** the beginning of a head that has not arrived whole */
  #partial: Buffer | undefined

  constructor(siblings: Connections) {
    this.#siblings = siblings
    siblings.all.add(this)
    const socket = connect({
      host: siblings.hostname,
      port: siblings.port,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: keepAliveProbeMs,
      onread: {
        buffer: arrivals,
        callback: bytes => {
          this.#read(arrivals.subarray(0, bytes))
          return true
        },
      },
    })
    this.#socket = socket
    let timer: NodeJS.Timeout | undefined = setTimeout(
      () => this.fail(new Error('the instance did not accept a connection in time')),
      connectTimeoutMs,
    )
    socket.once('connect', () => {
      clearTimeout(timer)
      timer = undefined
      this.#connected = true
      this.#write()
    })
    socket.on('end', () => this.#closedByInstance())
    socket.on('error', error => this.fail(error))
    socket.once('close', () => {
      clearTimeout(timer)
      this.#closedByInstance()
    })
  }

  /** Is there for the next call, connected or not. */
  waitIdle(forMs: number): void {
    this.idleUntil = performance.now() + forMs
    this.#siblings.idle.push(this)
  }

  begin(outgoing: Outgoing, answer: Answer): void {
    this.#outgoing = outgoing
    this.#answer = answer
    this.#reusable = true
    this.#expecting = expecting.head
    if (this.#connected) this.#write()
  }

  #write(): void {
    if (!this.#outgoing) return
    const { method, path, headers, body } = this.#outgoing
    // a held stream has no need of them
    this.#outgoing = undefined
    const head = `${method} ${path} HTTP/1.1\r\nhost: ${this.#siblings.host}\r\n${headers}`
    const socket = this.#socket
    if (body === null) socket.write(`${head}\r\n`, 'latin1')
    else if (body.length <= smallBytes)
      socket.write(`${head}content-length: ${body.length}\r\n\r\n${body.toString('latin1')}`, 'latin1')
    else {
      socket.cork()
      socket.write(`${head}content-length: ${body.length}\r\n\r\n`, 'latin1')
      socket.write(body)
      socket.uncork()
    }
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  abort(): void {
    this.#answer = undefined
    this.close()
  }

  close(): void {
    const { all, idle } = this.#siblings
    all.delete(this)
    const at = idle.indexOf(this)
    if (at !== -1) idle.splice(at, 1)
    this.#socket.destroy()
  }

  fail(error: Error): void {
    const answer = this.#answer
    this.#answer = undefined
    this.close()
    answer?.failed(error, this.#connected)
  }

  #closedByInstance(): void {
    if (this.#answer && this.#expecting === expecting.rest) this.#complete(0)
    else this.fail(new Error('the instance closed the connection'))
  }

  /** @param surplus - bytes that came after the end, for which nobody asked */
  #complete(surplus: number, last?: Buffer): void {
    const answer = this.#answer!
    this.#answer = undefined
    if (this.#reusable && surplus === 0 && this.#socket.writableLength === 0 && !this.#siblings.retired) {
      this.#socket.resume()
      this.waitIdle(this.#idleMs)
    } else this.close()
    answer.ended(last)
  }

  #read(chunk: Buffer): void {
    const wrong = this.#answer ? this.#take(chunk, this.#answer) : 'the instance spoke without being asked'
    if (wrong !== undefined) this.fail(new Error(wrong))
  }

  /** @returns what is wrong with it, if anything */
  #take(chunk: Buffer, answer: Answer): string | undefined {
    let at = 0
    while (at < chunk.length) {
      switch (this.#expecting) {
        case expecting.head: {
          if (this.#partial) {
            chunk = Buffer.concat([this.#partial, chunk])
            this.#partial = undefined
          }
          const end = chunk.indexOf(headEnd, at)
          if ((end === -1 ? chunk.length : end) - at > headLimitBytes) return 'the head of the answer is too long'
          if (end === -1) {
            this.#partial = Buffer.from(chunk.subarray(at))
            return undefined
          }
          const wrong = this.#readHead(chunk.toString('latin1', at, end), answer)
          if (wrong !== undefined) return wrong
          at = end + headEnd.length
          break
        }
        case expecting.counted:
        case expecting.chunk: {
          const end = Math.min(at + this.#left, chunk.length)
          const part = end - at === chunk.length ? chunk : chunk.subarray(at, end)
          this.#left -= part.length
          at = end
          if (this.#left > 0) answer.data(part)
          else if (this.#expecting === expecting.chunk) {
            this.#expecting = expecting.chunkEnd
            answer.data(part)
          } else {
            this.#complete(chunk.length - at, part)
            return undefined
          }
          break
        }
        case expecting.rest:
          answer.data(at === 0 ? chunk : chunk.subarray(at))
          at = chunk.length
          break
        default: {
          const framing = this.#readFraming(chunk[at++]!)
          if (framing === 'wrong') return 'the answer is not framed as HTTP/1.1 says'
          if (framing === 'end') {
            this.#complete(chunk.length - at)
            return undefined
          }
        }
      }
      // who heard of it may have given up
      if (this.#answer !== answer) return undefined
      if (this.#expecting === expecting.counted && this.#left === 0) {
        this.#complete(chunk.length - at)
        return undefined
      }
    }
    answer.waiting()
    return undefined
  }

  /** @returns what is wrong with it, if anything */
  #readHead(head: string, answer: Answer): string | undefined {
    const line = /^HTTP\/1\.([01]) ([1-5]\d\d)(?: |\r|$)/.exec(head)
    if (!line) return 'the answer is not one of HTTP/1.1'
    const status = Number(line[2])
    if (status === 101) return 'the instance wants to leave HTTP'
    if (status < 200) return undefined
    const headers: string[] = []
    let length: number | undefined
    let chunked = false
    this.#idleMs = idleMs
    if (line[1] === '0') this.#reusable = false
    for (let from = head.indexOf('\r\n'); from !== -1; ) {
      const next = head.indexOf('\r\n', from + 2)
      const end = next === -1 ? head.length : next
      const colon = head.indexOf(':', from + 2)
      if (colon <= from + 2 || colon >= end) return 'a header of the answer has no name'
      const name = head.slice(from + 2, colon).toLowerCase()
      const value = head.slice(colon + 1, end).trim()
      if (name === 'content-length') {
        if (length !== undefined || !/^\d{1,15}$/.test(value)) return 'the length of the answer is not clear'
        length = Number(value)
      } else if (name === 'transfer-encoding') {
        if (chunked || value.toLowerCase() !== 'chunked') return 'the encoding of the answer is not known'
        chunked = true
      } else if (name === 'connection') {
        if (/\bclose\b/i.test(value)) this.#reusable = false
      } else if (name === 'keep-alive') {
        const seconds = /timeout=(\d+)/i.exec(value)?.[1]
        // a second earlier than the instance
        if (seconds) this.#idleMs = Math.min(idleMs, (Number(seconds) - 1) * 1000)
      }
      headers.push(name, value)
      from = next
    }
    if (chunked && length !== undefined) return 'the length of the answer is not clear'
    this.#left = 0
    this.#seen = 0
    if (status === 204 || status === 304) this.#expecting = expecting.counted
    else if (chunked) this.#expecting = expecting.chunkSize
    else if (length !== undefined) {
      this.#expecting = expecting.counted
      this.#left = length
    } else {
      this.#expecting = expecting.rest
      this.#reusable = false
    }
    answer.head(status, headers)
    return undefined
  }

  /** A byte of what stands around chunks (RFC 9112 section 7.1). */
  #readFraming(byte: number): 'more' | 'end' | 'wrong' {
    let allowed = true
    switch (this.#expecting) {
      case expecting.chunkSize: {
        const digit = hexDigit(byte)
        if (digit !== -1) {
          this.#left = this.#left * 16 + digit
          allowed = ++this.#seen <= 12
          break
        }
        allowed = this.#seen > 0 && (byte === carriageReturn || byte === semicolon)
        this.#seen = 0
        this.#expecting = byte === carriageReturn ? expecting.chunkSizeEnd : expecting.chunkExtension
        break
      }
      case expecting.chunkExtension:
        allowed = byte !== lineFeed && ++this.#seen <= 256
        if (byte === carriageReturn) this.#expecting = expecting.chunkSizeEnd
        break
      case expecting.chunkSizeEnd:
        allowed = byte === lineFeed
        this.#seen = 0
        this.#lineEmpty = true
        this.#expecting = this.#left > 0 ? expecting.chunk : expecting.trailer
        break
      case expecting.chunkEnd:
        allowed = byte === (this.#seen === 0 ? carriageReturn : lineFeed)
        this.#seen++
        if (byte !== lineFeed) break
        this.#seen = 0
        this.#expecting = expecting.chunkSize
        break
      case expecting.trailer:
        // read to their end and left out: nobody was promised any
        if (byte === lineFeed && this.#lineEmpty) return 'end'
        allowed = ++this.#seen <= headLimitBytes
        if (byte !== carriageReturn) this.#lineEmpty = byte === lineFeed
        break
    }
    return allowed ? 'more' : 'wrong'
  }
}

const lineFeed = 10
const carriageReturn = 13
const semicolon = 59

function hexDigit(byte: number): number {
  if (byte >= 48 && byte <= 57) return byte - 48
  const letter = byte | 32
  return letter >= 97 && letter <= 102 ? letter - 87 : -1
}
