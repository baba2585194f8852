import { createServer, type ServerResponse } from 'node:http'
import { openDoor } from './door.ts'

/**
 * Stands in for an instance in the proxy benchmark: its door is a real instance's (boot line, signed statement, /healthz),
 * its answers are fixed and cheap, so that what is measured is the way to it. Without a boot line (`node fixture.ts <port>`)
 * it serves everybody, for proxies that cannot sign statements.
 *
 *     POST .../mcp            a JSON-RPC answer of about 1 KB: ?as=json (default) or ?as=events
 *     POST .../mcp?as=silence nothing ever; ?as=bytes&bytes=N streams N bytes
 *     GET  .../sse            an event at once, then those of /broadcast, and a comment every 15 s; ?first=never stays silent
 *     POST .../messages       ?broadcast=N sends N timestamped events to every open stream, 20 ms apart
 *     GET  .../mcp?closed=M   when the exchange that carried ?mark=M was closed (µs of the monotonic clock), or null
 */

const door = await openDoor(Number(process.argv[2]))

const text = 'The request was opened by a technician and waits for an answer of the requester. '.repeat(11)
const answer = JSON.stringify({ jsonrpc: '2.0', id: 1, result: { content: [{ type: 'text', text }] } })
const json = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(answer) }
const eventStream = { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' }
const streams = new Set<ServerResponse>()
const closedAt = new Map<string, number>()
const nowMicros = () => Number(process.hrtime.bigint() / 1000n)

const server = createServer((request, response) => {
  const [path = '', search = ''] = request.url!.split('?')
  const query = new URLSearchParams(search)
  if (door.answers(request, response)) return
  // the benchmark's own questions, and what it compares with, take no proxy
  if (!path.startsWith('/direct/') && !door.admits(request)) {
    request.resume()
    response.writeHead(401).end()
    return
  }
  const mark = query.get('mark')
  if (mark) response.once('close', () => closedAt.set(mark, nowMicros()))
  if (path.endsWith('/sse')) return openStream(response, query)
  if (query.has('closed')) return sendJson(response, closedAt.get(query.get('closed')!) ?? null)
  if (query.has('broadcast')) {
    broadcast(Number(query.get('broadcast')))
    request.resume()
    return sendJson(response, streams.size)
  }
  request.resume()
  request.once('end', () => post(response, query))
})
server.keepAliveTimeout = 75_000
server.requestTimeout = 0
server.listen(door.port, door.host, 16_384)
setInterval(keepAlive, 100)

function post(response: ServerResponse, query: URLSearchParams): void {
  switch (query.get('as')) {
    case 'events':
      response.writeHead(200, eventStream)
      response.write(`event: message\ndata: ${answer}\n\n`)
      response.end()
      return
    case 'silence':
      return
    case 'bytes':
      streamBytes(response, Number(query.get('bytes')))
      return
    default:
      response.writeHead(200, json).end(answer)
  }
}

function openStream(response: ServerResponse, query: URLSearchParams): void {
  response.writeHead(200, eventStream)
  response.flushHeaders()
  if (query.get('first') !== 'never') response.write('event: endpoint\ndata: /messages?sessionId=bench\n\n')
  streams.add(response)
  response.once('close', () => streams.delete(response))
}

function broadcast(count: number): void {
  if (count === 0) return
  for (const stream of streams) stream.write(`event: tick\ndata: ${nowMicros()}\n\n`)
  setTimeout(broadcast, 20, count - 1)
}

let turn = 0
/** Every stream gets its comment each 15 s; they take turns, as those of many instances do. */
function keepAlive(): void {
  turn = (turn + 1) % 150
  let index = 0
  for (const stream of streams) if (index++ % 150 === turn) stream.write(': keep-alive\n\n')
}

function streamBytes(response: ServerResponse, bytes: number): void {
  const chunk = Buffer.alloc(64 * 1024, 'x')
  let left = bytes
  const more = () => {
    while (left > 0) {
      const part = left < chunk.length ? chunk.subarray(0, left) : chunk
      left -= part.length
      if (!response.write(part)) return void response.once('drain', more)
    }
    response.end()
  }
  response.writeHead(200, { 'content-type': 'application/octet-stream' })
  more()
}

function sendJson(response: ServerResponse, body: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}
