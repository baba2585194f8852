import { createHash, randomBytes } from 'node:crypto'
import {
  type ClientRequest,
  request as httpRequest,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  type ServerResponse,
} from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, expect, test } from 'vitest'
import type { AppError } from '../errors.ts'
import { eventually } from '../fleet/testing/support.ts'
import { type Seen, startServer, startUpstream, type Upstream } from '../testing/upstream.ts'
import { createBodyRoom, readBody } from './body.ts'
import { type Exchange, type Outcome, pump } from './pump.ts'
import { createUpstream, type Upstream as Pool } from './upstream.ts'

/** Other programs may take the processor away for a moment; three times in a row they do not. */
const timed = { retry: 2 }

const cleanups: (() => PromiseLike<unknown>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

/** A front that carries everything to one upstream. */
async function carry(answer?: Upstream['answer'], options: { upstreamPort?: number; pool?: Pool } = {}) {
  const upstream = await startUpstream(answer)
  const pool = options.pool ?? createUpstream(`http://127.0.0.1:${options.upstreamPort ?? upstream.port}`)
  const outcomes: Outcome[] = []
  const exchanges: Exchange[] = []
  const arrived: string[] = []
  const responses: ServerResponse[] = []
  const front = await startServer(async (request, response) => {
    arrived.push(request.url!)
    responses.push(response)
    const body = await readBody(request, 4 * 1024 * 1024).catch(() => null)
    const target = {
      upstream: pool,
      path: request.url!,
      headers: 'authorization: Bearer statement\r\nx-forwarded-prefix: /u/alice\r\n',
      body,
      meter: { activeAt: 0, bytesOut: 0 },
      now: Date.now,
    }
    exchanges.push(
      pump(request, response, target, outcome => {
        outcomes.push(outcome)
        if (outcome.kind !== 'done' && !response.headersSent) response.writeHead(503).end(outcome.kind)
      }),
    )
  })
  cleanups.push(
    () => front[Symbol.asyncDispose](),
    async () => pool.destroy(),
    () => upstream[Symbol.asyncDispose](),
  )
  return { upstream, front, arrived, responses, outcomes, exchanges, pool }
}

type Answer = {
  status: number
  headers: IncomingMessage['headers']
  rawHeaders: string[]
  body: Buffer
  whole: boolean
}

function open(
  port: number,
  {
    method = 'GET',
    path = '/mcp',
    headers = {},
    body,
  }: { method?: string; path?: string; headers?: OutgoingHttpHeaders; body?: string | Buffer } = {},
): { request: ClientRequest; response: Promise<IncomingMessage> } {
  const request = httpRequest({ port, host: '127.0.0.1', method, path, headers, agent: false })
  const response = new Promise<IncomingMessage>((done, failed) => {
    request.once('response', done)
    request.once('error', failed)
  })
  response.catch(() => {})
  request.end(body)
  return { request, response }
}

async function ask(port: number, options: Parameters<typeof open>[1] = {}): Promise<Answer> {
  return read(await open(port, options).response)
}

async function read(response: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = []
  let whole = true
  try {
    for await (const chunk of response) chunks.push(chunk)
  } catch {
    whole = false
  }
  const { statusCode, headers, rawHeaders } = response
  return { status: statusCode!, headers, rawHeaders, body: Buffer.concat(chunks), whole }
}

const events = ({ response }: Seen) => {
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  response.flushHeaders()
}

test('bodies of every size pass byte for byte in both directions', async () => {
  const { front, upstream } = await carry(({ body, response }) => {
    response.writeHead(201, { 'content-type': 'application/octet-stream', 'x-length': body.length })
    response.end(body)
  })
  for (const size of [0, 1, 2, 1_000, 65_535, 65_536, 65_537, 1_000_000, 4 * 1024 * 1024]) {
    const body = randomBytes(size)
    const answer = await ask(front.port, { method: 'POST', body })
    expect(answer.status).toBe(201)
    expect(answer.headers['x-length']).toBe(String(size))
    expect(createHash('sha256').update(answer.body).digest('hex')).toBe(createHash('sha256').update(body).digest('hex'))
    expect(upstream.seen.at(-1)!.body.equals(body)).toBe(true)
  }
})

test('a body sent in small pieces, without its length being told, arrives whole', async () => {
  const { front, upstream } = await carry()
  const request = httpRequest({ port: front.port, method: 'POST', path: '/mcp', agent: false })
  const answered = new Promise<IncomingMessage>(done => request.once('response', done))
  const pieces = [...Array(20)].map((_, index) => `piece ${index};`)
  for (const piece of pieces) {
    request.write(piece)
    await delay(2)
  }
  request.end()
  await read(await answered)
  expect(upstream.seen[0]!.body.toString()).toBe(pieces.join(''))
  expect(upstream.seen[0]!.headers['transfer-encoding']).toBeUndefined()
  expect(upstream.seen[0]!.headers['content-length']).toBe(String(pieces.join('').length))
})

test('what the large bodies of one user come to is bounded, and free again when they are answered', async () => {
  const room = createBodyRoom(1024 * 1024)
  const held: ServerResponse[] = []
  await using front = await startServer(async (request, response) => {
    const user = request.url!
    try {
      const body = await readBody(request, 4 * 1024 * 1024, room(user, request, response))
      held.push(response)
      if ((body?.length ?? 0) < 1_000) response.end('small')
    } catch (error) {
      response.writeHead((error as AppError).status, { connection: 'close' }).end((error as AppError).code)
    }
  })
  const send = (path: string, size: number, headers: OutgoingHttpHeaders = {}) =>
    open(front.port, { method: 'POST', path, body: Buffer.alloc(size), headers })
  send('/alice', 600_000)
  await eventually('held', () => held.length === 1)
  const chunked = { 'transfer-encoding': 'chunked' }
  for (const headers of [{}, chunked]) {
    const refused = await read(await send('/alice', 600_000, headers).response)
    expect([refused.status, refused.body.toString()]).toEqual([429, 'concurrency-limit-exceeded'])
  }
  // neither small ones nor those of others are concerned
  expect((await ask(front.port, { method: 'POST', path: '/alice', body: 'x' })).status).toBe(200)
  send('/bob', 600_000)
  await eventually('held', () => held.length === 3)
  held[0]!.end()
  const again = send('/alice', 600_000)
  await eventually('held again', () => held.length === 4)
  again.request.destroy()
  for (const response of held) response.destroy()
})

test('events pass byte for byte, each as soon as it is written, however it is cut', async () => {
  const written: Buffer[] = []
  const { front } = await carry(async seen => {
    events(seen)
    for (let round = 0; round < 60; round++) {
      const chunk = Buffer.from(
        `id: ${round}\r\nevent: ü\ndata: ${randomBytes(round * 7).toString('latin1')}\n\n`,
        'latin1',
      )
      written.push(chunk)
      seen.response.write(chunk.subarray(0, round))
      await delay(1)
      seen.response.write(chunk.subarray(round))
    }
    seen.response.end(': last')
    written.push(Buffer.from(': last'))
  })
  const answer = await ask(front.port)
  expect(answer.body.equals(Buffer.concat(written))).toBe(true)
  expect(answer.whole).toBe(true)
})

test('headers reach the client at once while the body stays silent', timed, async () => {
  const { front } = await carry(events)
  const before = performance.now()
  const { request, response } = open(front.port)
  const { headers } = await response
  expect(performance.now() - before).toBeLessThan(100)
  expect(headers).toMatchObject({
    'content-type': 'text/event-stream',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
  })
  expect(headers['content-encoding']).toBeUndefined()
  request.destroy()
})

test('an event reaches the client without waiting for the next one', timed, async () => {
  let write = (_text: string) => {}
  const { front } = await carry(seen => {
    events(seen)
    write = text => seen.response.write(text)
  })
  const { request, response } = open(front.port)
  const stream = await response
  const told: string[] = []
  stream.on('data', chunk => told.push(String(chunk))).on('error', () => {})
  for (const text of ['data: one\n\n', ': keep-alive\n\n', 'data: two\n\n']) {
    const before = performance.now()
    write(text)
    await eventually('told', () => told.at(-1) === text, 1_000)
    expect(performance.now() - before).toBeLessThan(100)
  }
  request.destroy()
})

test.each(['GET', 'POST'])('a client that goes away ends the %s at the instance within 100 ms', timed, async method => {
  const { front, upstream, outcomes } = await carry(seen => {
    if (method === 'GET') events(seen)
  })
  for (let round = 0; round < 10; round++) {
    const { request, response } = open(front.port, { method, ...(method === 'POST' ? { body: '{"id":1}' } : {}) })
    request.on('error', () => {})
    if (method === 'GET') await response
    const seen = await eventually('arrived', () => upstream.seen[round])
    await eventually('body', () => method === 'GET' || seen.body.length > 0)
    const before = performance.now()
    request.destroy()
    await eventually('gone', () => seen.goneAt, 1_000)
    expect(seen.goneAt! - before).toBeLessThan(100)
  }
  await eventually('told', () => outcomes.length === 10)
  expect(outcomes.every(outcome => outcome.kind === 'aborted')).toBe(true)
})

test('a client that goes away while it sends is no failure of the instance', async () => {
  const { front, upstream, outcomes, arrived } = await carry()
  const request = httpRequest({
    port: front.port,
    method: 'POST',
    path: '/mcp',
    agent: false,
    headers: { 'content-length': 1000 },
  })
  request.on('error', () => {})
  request.write('half of it')
  await eventually('taken in', () => arrived.length === 1)
  request.destroy()
  await eventually('told', () => outcomes.length === 1)
  expect(outcomes).toEqual([{ kind: 'aborted' }])
  expect(upstream.seen).toHaveLength(0)
})

test('an instance that dies ends the client’s stream within 100 ms', timed, async () => {
  const { front, upstream, outcomes } = await carry(events)
  const streams = await Promise.all([...Array(10)].map(() => open(front.port).response))
  const ended = streams.map(stream => read(stream).then(answer => ({ answer, at: performance.now() })))
  const before = performance.now()
  await upstream.die()
  for (const { answer, at } of await Promise.all(ended)) {
    expect(at - before).toBeLessThan(100)
    // not a proper end: the client must not take the answer for whole
    expect(answer.whole).toBe(false)
  }
  await eventually('told', () => outcomes.length === 10)
  expect(outcomes.every(outcome => outcome.kind === 'broken')).toBe(true)
})

const wordsOf = (text: string) => Buffer.from(`data: ${text}\n\n`).toString('base64')

test('an instance that dies leaves its last words on the stream, after a cut event was closed', timed, async () => {
  const { front, upstream } = await carry(({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'x-sdp-last-words': wordsOf('gone') })
    response.write('data: {"half":')
  })
  const response = await open(front.port).response
  response.once('data', () => void upstream.die())
  const { body, whole, headers } = await read(response)
  expect(body.toString()).toBe('data: {"half":\n\ndata: gone\n\n')
  expect(whole).toBe(true)
  expect(Object.keys(headers).filter(name => name.startsWith('x-sdp-'))).toEqual([])
})

test(
  'the last words for a named stream are the latest ones, and nobody hears of them while it lives',
  timed,
  async () => {
    const { front, upstream } = await carry(({ url, method, response }) => {
      if (method === 'GET') {
        response.writeHead(200, { 'content-type': 'text/event-stream', 'x-sdp-stream': url })
        response.write('data: open\n\n')
        return
      }
      const words = url === '/two' ? {} : { 'x-sdp-last-words': wordsOf(url) }
      response.writeHead(202, { 'x-sdp-stream': url === '/two' ? '/two' : '/one', ...words }).end()
    })
    const streams = await Promise.all(['/one', '/two', '/three'].map(path => open(front.port, { path }).response))
    await Promise.all(streams.map(one => new Promise(done => one.once('readable', () => done(one.read())))))
    for (const path of ['/first', '/second', '/two']) {
      const { status, headers } = await ask(front.port, { method: 'POST', path, body: '{}' })
      expect([status, headers['x-sdp-stream'], headers['x-sdp-last-words']]).toEqual([202, undefined, undefined])
    }
    void upstream.die()
    const ends = await Promise.all(streams.map(read))
    expect(ends.map(({ body, whole }) => [body.toString(), whole])).toEqual([
      ['\n\ndata: /second\n\n', true],
      ['', false],
      ['', false],
    ])
  },
)

test('an instance cannot put words into the stream of another one', timed, async () => {
  const named = ({ method, response }: Seen) => {
    if (method === 'GET') {
      response.writeHead(200, { 'content-type': 'text/event-stream', 'x-sdp-stream': 'same' })
      response.write('data: open\n\n')
    } else response.writeHead(202, { 'x-sdp-stream': 'same', 'x-sdp-last-words': wordsOf('injected') }).end()
  }
  const [alice, mallory] = [await carry(named), await carry(named)]
  const stream = await open(alice.front.port).response
  await new Promise(done => stream.once('readable', () => done(stream.read())))
  await ask(mallory.front.port, { method: 'POST', body: '{}' })
  void alice.upstream.die()
  expect((await read(stream)).body.toString()).toBe('')
})

test('last words are said only to who reads, and an endless number of them to nobody', timed, async () => {
  const { front, upstream } = await carry(({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'x-sdp-last-words': wordsOf('x'.repeat(9_000)) })
    response.write('data: open\n\n')
  })
  const stream = await open(front.port).response
  stream.once('data', () => void upstream.die())
  expect(await read(stream)).toMatchObject({ whole: false })
})

test('a stream whose client does not read ends all the same when it is cut, with last words', async () => {
  let enough = false
  const { front, exchanges, responses } = await carry(async ({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'x-sdp-last-words': wordsOf('gone') })
    while (!enough && !response.destroyed) {
      response.write(`data: ${'x'.repeat(992)}\n\n`)
      if (responses[0]!.writableLength > 0) await delay(1)
      enough = responses[0]!.writableLength > 4_000
      await new Promise(setImmediate)
    }
  })
  const stream = await open(front.port).response
  stream.on('error', () => {})
  stream.pause()
  await eventually('stuck', () => enough, 20_000)
  // some wait in our process, and not so many that a drain is waited for
  expect(responses[0]!.writableNeedDrain).toBe(false)
  exchanges[0]!.cut()
  await eventually('ended', () => responses[0]!.destroyed, 2_000)
})

test('many small events for a slow reader make it wait once, not once for each of them', async () => {
  const warnings: string[] = []
  const onWarning = (warning: Error) => warnings.push(warning.name)
  process.on('warning', onWarning)
  cleanups.push(async () => void process.off('warning', onWarning))
  const { front, responses } = await carry(({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.flushHeaders()
    const socket = response.socket!
    const go = () => {
      while (socket.write('10\r\ndata: 12345678\n\n\r\n'.repeat(2_000)));
      socket.once('drain', go)
    }
    go()
  })
  const stream = await open(front.port).response
  stream.pause()
  await eventually('stuck', () => responses[0]?.writableNeedDrain, 20_000)
  await delay(200)
  expect(responses[0]!.listenerCount('drain')).toBe(1)
  stream.destroy()
  expect(warnings).toEqual([])
})

test('an instance that dies before it answers is told as broken, with nothing sent to the client', async () => {
  const { front, upstream, outcomes } = await carry(() => {})
  const answer = ask(front.port, { method: 'POST', body: '{}' })
  await eventually('arrived', () => upstream.seen.length === 1)
  await upstream.die()
  expect((await answer).body.toString()).toBe('broken')
  expect(outcomes).toMatchObject([{ kind: 'broken' }])
})

test('an answer that promises more bytes than come is not taken for whole', async () => {
  const { front } = await carry(({ response }) => {
    response.writeHead(200, { 'content-length': 100 })
    response.write('only this')
    setTimeout(() => response.destroy(), 20)
  })
  const answer = await ask(front.port)
  expect(answer).toMatchObject({ status: 200, whole: false })
  expect(answer.body.toString()).toBe('only this')
})

test('cutting ends both sides within 100 ms', timed, async () => {
  const { front, upstream, exchanges, outcomes } = await carry(events)
  const stream = await open(front.port).response
  const ended = read(stream)
  const before = performance.now()
  exchanges[0]!.cut()
  exchanges[0]!.cut()
  expect((await ended).whole).toBe(false)
  await eventually('gone', () => upstream.seen[0]!.goneAt, 1_000)
  expect(upstream.seen[0]!.goneAt! - before).toBeLessThan(100)
  expect(outcomes).toEqual([{ kind: 'aborted' }])
})

test('what is between two hops only, and who the caller is, does not reach the instance', async () => {
  const { front, upstream } = await carry()
  await ask(front.port, {
    method: 'POST',
    body: '{}',
    headers: {
      Connection: 'keep-alive, X-Secret-Option, close',
      'X-Secret-Option': 'hop',
      'Keep-Alive': 'timeout=1000',
      TE: 'trailers',
      Upgrade: 'h2c',
      'Proxy-Authorization': 'Basic eDp5',
      'Proxy-Connection': 'keep-alive',
      Authorization: 'Bearer sdpmcp_client-key',
      'X-API-Key': 'sdpmcp_client-key',
      Cookie: 'session=1',
      Forwarded: 'for=1.2.3.4',
      'X-Forwarded-For': '1.2.3.4',
      'X-Forwarded-Host': 'evil.example',
      'X-Forwarded-Prefix': '/u/bob',
      'X-Real-IP': '1.2.3.4',
      'X-SDP-User': 'bob',
      'Accept-Encoding': 'gzip',
      Host: 'mcp.example.com',
      'Mcp-Session-Id': 'abc',
      'MCP-Protocol-Version': '2025-06-18',
      'Last-Event-ID': '7',
      Accept: 'application/json, text/event-stream',
      'Content-Type': 'application/json',
      'X-Twice': ['one', 'two'],
    },
  })
  const { headers, rawHeaders } = upstream.seen[0]!
  expect(headers).toEqual({
    authorization: 'Bearer statement',
    'x-forwarded-prefix': '/u/alice',
    host: `127.0.0.1:${upstream.port}`,
    'content-length': '2',
    'mcp-session-id': 'abc',
    'mcp-protocol-version': '2025-06-18',
    'last-event-id': '7',
    accept: 'application/json, text/event-stream',
    'content-type': 'application/json',
    'x-twice': 'one, two',
  })
  expect(rawHeaders.filter((_, index) => index % 2 === 0).map(name => name.toLowerCase())).not.toContain(
    'x-secret-option',
  )
})

test('what is between two hops only, and what is ours alone, does not reach the client', async () => {
  const { front } = await carry(({ response }) => {
    response.writeHead(200, {
      Connection: 'close, X-Inner',
      'X-Inner': 'hop',
      'Keep-Alive': 'timeout=7',
      'Proxy-Authenticate': 'Basic',
      Trailer: 'X-Late',
      Upgrade: 'h2c',
      'Set-Cookie': ['a=1', 'b=2'],
      'X-SDP-Inner': 'statement',
      'Mcp-Session-Id': 'abc',
      'Content-Type': 'application/json',
      'X-Twice': ['one', 'two'],
    })
    response.end('{}')
  })
  const { headers } = await ask(front.port)
  expect(headers).toEqual({
    'mcp-session-id': 'abc',
    'content-type': 'application/json',
    'x-twice': 'one, two',
    date: expect.any(String),
    connection: expect.any(String),
    'transfer-encoding': 'chunked',
  })
})

test('an answer of somebody who does not accept our statement never reaches the client', async () => {
  const { front, outcomes } = await carry(({ response }) => {
    response.writeHead(401, { 'www-authenticate': 'Bearer realm="another instance"' })
    response.end('I belong to somebody else')
  })
  const answer = await ask(front.port, { method: 'POST', body: '{}' })
  expect(answer.body.toString()).toBe('stranger')
  expect(answer.headers['www-authenticate']).toBeUndefined()
  expect(outcomes).toMatchObject([{ kind: 'stranger' }])
})

test.each([204, 304, 400, 404, 405, 413, 429, 500, 503])('status %i passes as it is', async status => {
  const { front, outcomes } = await carry(({ response }) => {
    response.writeHead(status, { 'retry-after': '3' })
    response.end(status === 204 || status === 304 ? undefined : 'told by the instance')
  })
  const answer = await ask(front.port, { method: 'DELETE' })
  expect(answer.status).toBe(status)
  expect(answer.headers['retry-after']).toBe('3')
  expect(outcomes).toEqual([{ kind: 'done', status }])
})

test('nobody at the address is told as unreachable, with the body still at hand', async () => {
  const gone = await startUpstream()
  await gone.die()
  const { front, outcomes } = await carry(undefined, { upstreamPort: gone.port })
  for (const method of ['GET', 'POST', 'DELETE'])
    expect((await ask(front.port, { method, ...(method === 'POST' ? { body: '{}' } : {}) })).body.toString()).toBe(
      'unreachable',
    )
  expect(outcomes.map(outcome => outcome.kind)).toEqual(['unreachable', 'unreachable', 'unreachable'])
})

test.each(['retire', 'destroy'] as const)(
  'a pool that was retired (%s) a moment ago is told as unreachable',
  async how => {
    const pool = createUpstream('http://127.0.0.1:9')
    pool[how]()
    const { front } = await carry(undefined, { pool })
    expect((await ask(front.port)).body.toString()).toBe('unreachable')
  },
)

test('an instance that speaks nonsense breaks its own exchange only', async () => {
  const { createServer } = await import('node:net')
  const nonsense = createServer(socket => {
    socket.on('error', () => {})
    socket.end('SSH-2.0-OpenSSH_9.6\r\n')
  })
  await new Promise<void>(done => nonsense.listen(0, '127.0.0.1', done))
  cleanups.push(async () => nonsense.close())
  const { front } = await carry(undefined, { upstreamPort: (nonsense.address() as { port: number }).port })
  for (let round = 0; round < 3; round++) expect((await ask(front.port)).body.toString()).toBe('broken')
})

test('a reader that does not read does not fill our memory, and gets everything in the end', async () => {
  const total = 96 * 1024 * 1024
  const block = Buffer.alloc(64 * 1024, 'x')
  let sent = 0
  const { front } = await carry(({ response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    const more = () => {
      while (sent < total) {
        sent += block.length
        if (!response.write(block)) return void response.once('drain', more)
      }
      response.end()
    }
    more()
  })
  const stream = await open(front.port).response
  stream.pause()
  let stuckAt = 0
  let stuckSince = 0
  await eventually('stuck', () => {
    if (sent !== stuckAt) [stuckAt, stuckSince] = [sent, performance.now()]
    return sent > 0 && performance.now() - stuckSince > 300
  })
  // the instance is made to wait: what lies between is kernel buffers and a few chunks
  expect(stuckAt).toBeLessThan(24 * 1024 * 1024)
  let received = 0
  stream.on('data', chunk => {
    received += chunk.length
  })
  stream.resume()
  await new Promise(done => stream.once('end', done))
  expect(received).toBe(total)
})

test('a slow reader holds up nobody else', timed, async () => {
  const { front } = await carry(({ url, response }) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    if (url === '/slow') {
      const more = () => {
        while (response.write(Buffer.alloc(64 * 1024)));
        response.once('drain', more)
      }
      more()
    } else response.end('quick')
  })
  const slow = open(front.port, { path: '/slow' })
  ;(await slow.response).pause()
  await delay(100)
  for (let round = 0; round < 20; round++) {
    const before = performance.now()
    expect((await ask(front.port)).body.toString()).toBe('quick')
    expect(performance.now() - before).toBeLessThan(500)
  }
  slow.request.destroy()
})

test('five hundred streams at once do not keep a call waiting', async () => {
  const { front } = await carry(seen => {
    if (seen.method === 'GET') events(seen)
    else seen.response.end('answered')
  })
  const streams = [...Array(500)].map(() => open(front.port))
  await Promise.all(streams.map(({ response }) => response))
  expect((await ask(front.port, { method: 'POST', body: '{}' })).body.toString()).toBe('answered')
  for (const { request } of streams) request.destroy()
})
