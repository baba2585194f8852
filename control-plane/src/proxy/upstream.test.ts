import { createServer, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, expect, test, vi } from 'vitest'
import { eventually } from '../fleet/testing/support.ts'
import { createUpstream, type Outgoing, type Upstream } from './upstream.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  vi.restoreAllMocks()
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

/** An instance made of bytes: `speak` is called for each request, with how many came before it. */
async function instance(speak: (socket: Socket, nth: number) => void) {
  const seen: string[] = []
  const sockets: Socket[] = []
  const server = createServer({ noDelay: true }, socket => {
    sockets.push(socket)
    let text = ''
    socket.on('error', () => {})
    socket.on('data', chunk => {
      text += chunk.toString('latin1')
      for (;;) {
        const end = text.indexOf('\r\n\r\n')
        const length = Number(/content-length: (\d+)/.exec(text)?.[1] ?? 0)
        if (end === -1 || text.length < end + 4 + length) return
        seen.push(text.slice(0, end + 4 + length))
        text = text.slice(end + 4 + length)
        speak(socket, seen.length - 1)
      }
    })
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as { port: number }
  const upstream = createUpstream(`http://127.0.0.1:${port}`)
  cleanups.push(
    () => server.close(),
    () => {
      for (const socket of sockets) socket.destroy()
    },
    () => upstream.destroy(),
  )
  return { upstream, seen, sockets, port }
}

type Heard = {
  status?: number
  headers?: string[]
  body: string
  waits: number
  end: 'ended' | 'reached' | 'unreached' | undefined
  error?: string
}

/** Sends a call and notes what its answer hears. */
function send(upstream: Upstream, outgoing: Partial<Outgoing> = {}) {
  const heard: Heard = { body: '', waits: 0, end: undefined }
  let told = () => {}
  const over = new Promise<void>(done => {
    told = done
  })
  const end = (how: Heard['end']) => {
    expect(heard.end).toBeUndefined()
    heard.end = how
    told()
  }
  const call = upstream.send(
    { method: 'POST', path: '/mcp', headers: '', body: null, ...outgoing },
    {
      head: (status, headers) => Object.assign(heard, { status, headers }),
      data(chunk) {
        heard.body += chunk.toString('latin1')
      },
      waiting() {
        heard.waits++
      },
      ended(last) {
        heard.body += last?.toString('latin1') ?? ''
        end('ended')
      },
      failed(error, reached) {
        heard.error = error.message
        end(reached ? 'reached' : 'unreached')
      },
    },
  )
  return { heard, call, over: () => over }
}

const json = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}'

/** Every way in which an answer may be framed, and what must be heard of it. */
const answers: [name: string, bytes: string, body: string][] = [
  ['of known length', json, '{}'],
  ['without a body', 'HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n', ''],
  ['that may have no body', 'HTTP/1.1 204 No Content\r\n\r\n', ''],
  [
    'in chunks',
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n',
    'abc0123456789',
  ],
  [
    'in chunks with extensions and trailers',
    'HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n2;a="b"\r\n\r\n\r\n0;x\r\nDate: now\r\nX: y\r\n\r\n',
    '\r\n',
  ],
  ['after interim ones', `HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n${json}`, '{}'],
]

test.each(answers)('an answer %s is heard the same however it is cut', async (_name, bytes, body) => {
  const { upstream, sockets } = await instance((socket, nth) => {
    const at = nth % bytes.length
    socket.write(bytes.slice(0, at), 'latin1')
    setTimeout(() => socket.write(bytes.slice(at), 'latin1'), at === 0 ? 0 : 3)
  })
  for (let at = 0; at < bytes.length; at++) {
    const { heard, over } = send(upstream)
    await over()
    expect({ at, end: heard.end, body: heard.body }).toEqual({ at, end: 'ended', body })
  }
  expect(sockets).toHaveLength(1)
})

test('an instance is asked as its own machine, whatever address it has', async () => {
  const seen: string[] = []
  const server = createServer(socket => {
    socket.on('error', () => {})
    socket.once('data', chunk => {
      seen.push(chunk.toString('latin1'))
      socket.end('HTTP/1.1 204 No Content\r\n\r\n')
    })
  })
  // all of 127.0.0.0/8 is this machine
  await new Promise<void>(done => server.listen(0, '127.0.0.2', done))
  const { port } = server.address() as { port: number }
  const upstream = createUpstream(`http://127.0.0.2:${port}`)
  cleanups.push(
    () => server.close(),
    () => upstream.destroy(),
  )
  const { heard, over } = send(upstream)
  await over()
  expect([heard.status, seen[0]]).toEqual([204, expect.stringContaining(`\r\nhost: 127.0.0.1:${port}\r\n`)])
})

test('an answer is heard the same when every byte comes alone', async () => {
  const { upstream } = await instance(async (socket, nth) => {
    for (const byte of answers[nth]![1]) {
      socket.write(byte, 'latin1')
      await delay(0)
    }
  })
  for (const [name, , body] of answers) {
    const { heard, over } = send(upstream)
    await over()
    expect({ name, end: heard.end, body: heard.body }).toEqual({ name, end: 'ended', body })
  }
})

test('headers are heard as sent, names in lower case, repeated ones each', async () => {
  const { upstream } = await instance(socket =>
    socket.write(
      'HTTP/1.1 200 OK\r\nX-Twice: one\r\nX-TWICE:two \r\nEmpty:\r\nContent-Length: 0\r\nÜ: \xfc\r\n\r\n',
      'latin1',
    ),
  )
  const { heard, over } = send(upstream)
  await over()
  expect(heard.headers).toEqual(['x-twice', 'one', 'x-twice', 'two', 'empty', '', 'content-length', '0', 'ü', 'ü'])
})

test('the head of a silent stream is heard at once, and each event as it comes', async () => {
  const { upstream, sockets } = await instance(socket =>
    socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n'),
  )
  const { heard, call } = send(upstream)
  await eventually('the head', () => heard.waits === 1)
  expect(heard).toMatchObject({ status: 200, body: '', end: undefined })
  sockets[0]!.write('9\r\ndata: 1\n\n\r\n')
  await eventually('the event', () => heard.waits === 2)
  expect(heard.body).toBe('data: 1\n\n')
  call.abort()
})

test('a call is one write: its head, what is added to it, and its body', async () => {
  const { upstream, seen, port } = await instance(socket => socket.write(json))
  for (const body of ['{"ü":1}', 'x'.repeat(100_000)]) {
    const { over } = send(upstream, {
      method: 'POST',
      path: '/mcp?a=b',
      headers: 'a: 1\r\nb: 2\r\n',
      body: Buffer.from(body),
    })
    await over()
    const bytes = Buffer.from(body)
    expect(seen.at(-1)).toBe(
      `POST /mcp?a=b HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\na: 1\r\nb: 2\r\ncontent-length: ${bytes.length}\r\n\r\n${bytes.toString('latin1')}`,
    )
  }
})

test.each([
  ['what is no HTTP', 'SSH-2.0-OpenSSH_9.6\r\n\r\n'],
  ['another version', 'HTTP/2 200 OK\r\n\r\n'],
  ['a status that is none', 'HTTP/1.1 2e2 OK\r\n\r\n'],
  ['a change of protocol', 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n'],
  ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab'],
  ['a length and chunks', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
  ['a length that is no number', 'HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na'],
  ['an encoding that we do not know', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n'],
  ['a header without a name', 'HTTP/1.1 200 OK\r\n: x\r\n\r\n'],
  ['a line that is no header', 'HTTP/1.1 200 OK\r\nnothing\r\nContent-Length: 0\r\n\r\n'],
  ['a head without end', `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(70_000)}`],
  ['a chunk without a size', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n'],
  ['a chunk whose size is no number', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n'],
  ['a chunk whose size has no end', `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${'0'.repeat(20)}`],
  ['a chunk longer than it said', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n'],
  ['a line end that is none', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n'],
  ['an end in the middle of the head', 'HTTP/1.1 200'],
  ['an end in the middle of the body', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc'],
  ['an end in the middle of a chunk', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab'],
  ['an end before the last chunk', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n'],
  ['nothing at all', ''],
])('%s fails the call, and the connection is not used again', async (_name, bytes) => {
  const { upstream, sockets } = await instance((socket, nth) => {
    if (nth === 0) socket.end(bytes, 'latin1')
    else socket.write(json)
  })
  const first = send(upstream)
  await first.over()
  expect(first.heard.end).toBe('reached')
  const second = send(upstream)
  await second.over()
  expect(second.heard.end).toBe('ended')
  expect(sockets).toHaveLength(2)
})

test('an answer without a length ends with its connection', async () => {
  const { upstream, sockets } = await instance(socket => socket.end('HTTP/1.0 200 OK\r\n\r\nuntil the end'))
  for (let round = 1; round <= 2; round++) {
    const { heard, over } = send(upstream)
    await over()
    expect(heard).toMatchObject({ end: 'ended', body: 'until the end' })
    expect(sockets).toHaveLength(round)
  }
})

test.each([
  ['says that it closes', json.replace('Content-Type', 'Connection: close\r\nContent-Type')],
  ['sends more than it said', `${json}HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npoisoned!`],
])('an instance that %s gets the next call on another connection', async (_name, bytes) => {
  const { upstream, sockets } = await instance((socket, nth) => socket.write(nth === 0 ? bytes : json))
  for (let round = 1; round <= 2; round++) {
    const { heard, over } = send(upstream)
    await over()
    expect(heard).toMatchObject({ end: 'ended', body: '{}' })
  }
  expect(sockets).toHaveLength(2)
})

test('an instance that speaks without being asked is never believed', async () => {
  const { upstream, sockets } = await instance(socket => socket.write(json))
  const first = send(upstream)
  await first.over()
  sockets[0]!.write('HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned')
  await eventually('closed', () => sockets[0]!.destroyed || sockets[0]!.readableEnded)
  const second = send(upstream)
  await second.over()
  expect(second.heard.body).toBe('{}')
  expect(sockets).toHaveLength(2)
})

test('connections are as many as calls at once, kept for the next ones, and ended when idle for too long', async () => {
  const { upstream, sockets } = await instance(socket => setTimeout(() => socket.write(json), 20))
  for (let round = 0; round < 3; round++) await Promise.all([...Array(5)].map(() => send(upstream).over()))
  expect(sockets).toHaveLength(5)
  const now = performance.now()
  vi.spyOn(performance, 'now').mockReturnValue(now + 29_000)
  upstream.sweep()
  await delay(20)
  expect(sockets.filter(socket => socket.readableEnded)).toHaveLength(0)
  vi.spyOn(performance, 'now').mockReturnValue(now + 31_000)
  upstream.sweep()
  await eventually('closed', () => sockets.every(socket => socket.readableEnded))
})

test('a stream leaves an open connection for whoever comes next, which does not wait for long', async () => {
  const { upstream, sockets, seen } = await instance((socket, nth) => {
    socket.write(nth % 2 === 0 ? 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n' : json)
  })
  const stream = send(upstream, { method: 'GET' })
  await eventually('the head', () => stream.heard.status)
  await eventually('a second connection', () => sockets.length === 2)
  await send(upstream).over()
  expect([sockets.length, seen.length]).toEqual([2, 2])
  // one that waits is enough for the next stream, too
  send(upstream, { method: 'GET' })
  await eventually('the third request', () => seen.length === 3)
  await eventually('a third connection', () => sockets.length === 3)
  const now = performance.now()
  vi.spyOn(performance, 'now').mockReturnValue(now + 10_001)
  // an instance may be about to end one that nobody has used
  await send(upstream).over()
  expect(sockets).toHaveLength(4)
  await eventually('closed', () => sockets[2]!.readableEnded)
})

test('a connection is given up before the instance said it would close it', async () => {
  const kept = json.replace('Content-Type', 'Keep-Alive: timeout=5, max=100\r\nContent-Type')
  const { upstream, sockets } = await instance(socket => socket.write(kept))
  await send(upstream).over()
  const now = performance.now()
  vi.spyOn(performance, 'now').mockReturnValue(now + 4_100)
  upstream.sweep()
  await eventually('closed', () => sockets[0]!.readableEnded)
})

test('retiring ends idle connections at once and busy ones with their call', async () => {
  const { upstream, sockets } = await instance((socket, nth) => {
    if (nth < 2) setTimeout(() => socket.write(json), 10)
    else socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n')
  })
  await Promise.all([send(upstream).over(), send(upstream).over()])
  const busy = send(upstream)
  await eventually('the head', () => busy.heard.status)
  upstream.retire()
  await eventually('closed', () => sockets.filter(socket => socket.readableEnded).length === 1)
  const late = send(upstream)
  expect(late.heard.end).toBe('unreached')
  sockets.find(socket => !socket.readableEnded)!.write('ok')
  await busy.over()
  expect(busy.heard).toMatchObject({ end: 'ended', body: 'ok' })
  await eventually('closed', () => sockets.every(socket => socket.readableEnded))
})

test('destroying fails the calls under way', async () => {
  const { upstream, seen } = await instance(() => {})
  const calls = [...Array(3)].map(() => send(upstream))
  await eventually('under way', () => seen.length === 3)
  upstream.destroy()
  expect(calls.map(({ heard }) => heard.end)).toEqual(['reached', 'reached', 'reached'])
})

test('a call that is given up hears nothing more, connected or not', async () => {
  const { upstream, seen } = await instance(socket => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc'))
  const early = send(upstream)
  early.call.abort()
  const late = send(upstream)
  await eventually('the beginning', () => late.heard.body === 'abc')
  late.call.abort()
  await delay(50)
  expect(early.heard).toEqual({ body: '', waits: 0, end: undefined })
  expect(late.heard).toMatchObject({ end: undefined, body: 'abc' })
  expect(seen).toHaveLength(1)
})

test('nobody at the address is told as not reached', async () => {
  const { upstream, port } = await instance(() => {})
  upstream.destroy()
  const gone = createUpstream(`http://127.0.0.1:${port === 1 ? 2 : 1}`)
  const { heard, over } = send(gone)
  await over()
  expect(heard).toMatchObject({ end: 'unreached', error: expect.stringContaining('ECONNREFUSED') })
})
