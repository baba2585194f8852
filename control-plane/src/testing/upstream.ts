import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from 'node:http'
import { connect } from 'node:net'

/** What an instance was asked. */
export type Seen = {
  method: string
  url: string
  headers: IncomingMessage['headers']
  rawHeaders: string[]
  body: Buffer
  response: ServerResponse
  /** when the other side went away before the answer was whole; undefined while it did not */
  goneAt: number | undefined
}

/** An HTTP server with scripted answers, in the place of an instance. */
export type Upstream = {
  address: string
  port: number
  seen: Seen[]
  server: Server
  /** answers a request once its body is there */
  answer: (seen: Seen) => void
  /** ends as a process that is killed does: every connection is gone */
  die(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

export async function startUpstream(answer: Upstream['answer'] = echo, port = 0): Promise<Upstream> {
  const server = await listening(
    createServer({ keepAliveTimeout: 75_000 }, (request, response) => {
      const chunks: Buffer[] = []
      const seen: Seen = {
        method: request.method!,
        url: request.url!,
        headers: request.headers,
        rawHeaders: request.rawHeaders,
        body: Buffer.alloc(0),
        response,
        goneAt: undefined,
      }
      upstream.seen.push(seen)
      response.on('close', () => {
        if (!response.writableFinished) seen.goneAt = performance.now()
      })
      response.on('error', () => {})
      request.on('error', () => {})
      request.on('data', chunk => chunks.push(chunk))
      request.on('end', () => {
        seen.body = Buffer.concat(chunks)
        upstream.answer(seen)
      })
    }),
    port,
  )
  const upstream: Upstream = {
    server,
    port: portOf(server),
    address: `http://127.0.0.1:${portOf(server)}`,
    seen: [],
    answer,
    die: () => close(server),
    [Symbol.asyncDispose]: () => close(server),
  }
  return upstream
}

/** Answers with what was asked. */
export function echo({ method, url, body, response }: Seen): void {
  response.writeHead(200, { 'content-type': 'application/json' })
  response.end(JSON.stringify({ method, url, body: body.toString('base64') }))
}

export async function startServer(
  listener: RequestListener,
): Promise<{ server: Server; port: number } & AsyncDisposable> {
  const server = await listening(createServer(listener), 0)
  return { server, port: portOf(server), [Symbol.asyncDispose]: () => close(server) }
}

function listening(server: Server, port: number): Promise<Server> {
  return new Promise((done, failed) => {
    server.once('error', failed)
    server.listen(port, '127.0.0.1', () => done(server))
  })
}

const portOf = (server: Server) => (server.address() as { port: number }).port

function close(server: Server): Promise<void> {
  server.closeAllConnections()
  return new Promise(done => server.close(() => done()))
}

/** Sends bytes as they are and returns everything that comes back until the other side ends or `whole` is satisfied. */
export function sendRaw(port: number, bytes: string | Buffer, whole?: (answer: string) => boolean): Promise<string> {
  return new Promise((done, failed) => {
    let answer = ''
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes))
    socket.setTimeout(5_000, () => socket.destroy(new Error(`no end of the answer so far: ${answer}`)))
    socket.on('data', chunk => {
      answer += chunk.toString('latin1')
      if (whole?.(answer)) socket.destroy()
    })
    socket.on('error', failed)
    socket.on('close', () => done(answer))
  })
}
