import { getEventListeners, once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { brotliCompressSync, deflateRawSync, deflateSync, gzipSync } from 'node:zlib'
import { Agent, FormData } from 'undici'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { AnswerTooLargeError, type HttpCall } from './http-client.ts'
import { exchange } from './http-exchange.ts'

let answer: (request: IncomingMessage, response: ServerResponse) => void
/** requests so far, and those whose connection ended before their answer */
let arrived = 0
let cut = 0
const server = createServer((request, response) => {
  arrived++
  response.on('close', () => {
    if (!response.writableFinished) cut++
  })
  answer(request, response)
})
const agent = new Agent({ connections: 1, keepAliveTimeout: 1_000 })
let url: string

beforeAll(async () => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
})
afterAll(async () => {
  await agent.destroy()
  server.closeAllConnections()
  server.close()
})
beforeEach(() => {
  arrived = cut = 0
})

const call = (more: Partial<HttpCall> = {}) =>
  exchange(agent, { method: 'GET', url, headers: {}, timeoutMs: 10_000, maxBytes: 10_000, ...more })
const text = async (more?: Partial<HttpCall>) => (await call(more)).bytes.toString()
const json = JSON.stringify({ subject: 'Caf\u00e9', rows: Array.from({ length: 200 }, (_, id) => ({ id })) })

test.each([
  ['gzip', gzipSync(json)],
  ['x-gzip', gzipSync(json)],
  ['GZIP', gzipSync(json)],
  ['gzip', gzipSync(json).subarray(0, -8)],
  ['deflate', deflateSync(json)],
  ['deflate', deflateRawSync(json)],
  ['br', brotliCompressSync(json)],
  ['gzip, br', brotliCompressSync(gzipSync(json))],
  ['identity-of-ours', Buffer.from(json)],
])('an answer packed with %s is read as it was', async (coding, packed) => {
  answer = (request, response) => {
    expect(request.headers['accept-encoding']).toBe('gzip, deflate, br')
    response.writeHead(200, { 'content-encoding': coding }).write(packed.subarray(0, 30))
    setImmediate(() => response.end(packed.subarray(30)))
  }
  expect(await text()).toBe(json)
})

test('an answer without a body may say that it is packed, and one that is not what it says is a failure', async () => {
  answer = (_request, response) => response.writeHead(204, { 'content-encoding': 'gzip' }).end()
  expect(await call()).toMatchObject({ status: 204, ok: true, bytes: Buffer.alloc(0) })
  answer = (_request, response) => response.writeHead(200, { 'content-encoding': 'gzip' }).end('no gzip at all')
  await expect(call()).rejects.toMatchObject({ code: 'Z_DATA_ERROR' })
  answer = (_request, response) =>
    response.writeHead(200, { 'content-encoding': 'gzip,'.repeat(50).slice(0, -1) }).end('x')
  await expect(call()).rejects.toThrow('packed too many times')
})

test('the bound is of what an answer says, however small it was packed', async () => {
  const packed = gzipSync('x'.repeat(100_000))
  expect(packed.length).toBeLessThan(1_000)
  answer = (_request, response) => response.writeHead(200, { 'content-encoding': 'gzip' }).end(packed)
  await expect(call({ maxBytes: 99_999 })).rejects.toBeInstanceOf(AnswerTooLargeError)
  expect(await text({ maxBytes: 100_000 })).toHaveLength(100_000)
})

test('a longer answer is not read to its end, announced or not, and a failure has a bound of its own', async () => {
  answer = (request, response) => {
    const status = request.url === '/failed' ? 404 : 200
    response.writeHead(status, request.url === '/told' ? { 'content-length': 1_000_000 } : {}).write('x'.repeat(2_000))
  }
  for (const path of ['told', '', 'failed'])
    await expect(call({ url: url + path, maxBytes: 1_999 })).rejects.toMatchObject({ maxBytes: 1_999 })
  await expect(call({ url: `${url}failed`, maxBytes: 10, maxErrorBytes: 1_500 })).rejects.toMatchObject({
    maxBytes: 1_500,
  })
  await expect.poll(() => cut).toBe(4)
  answer = (_request, response) => response.writeHead(404).end('no such file')
  expect(await call({ maxBytes: 3, maxErrorBytes: 100 })).toMatchObject({ status: 404, ok: false })
})

test.each([
  ['no answer', () => {}],
  ['half an answer', (response: ServerResponse) => void response.writeHead(200).write('{"half":')],
])('%s in time is a TimeoutError, and the connection is given up', async (_what, begin) => {
  answer = (_request, response) => begin(response)
  await expect(call({ timeoutMs: 150 })).rejects.toMatchObject({ name: 'TimeoutError' })
  await expect.poll(() => [arrived, cut]).toEqual([1, 1])
})

test('a signal ends a call before it, while it waits for a connection, and in the middle of its answer', async () => {
  const reason = new Error('enough')
  await expect(call({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
  expect(arrived).toBe(0)
  let headIsOut = () => {}
  const head = new Promise<void>(done => (headIsOut = done))
  answer = (_request, response) => {
    response.writeHead(200).write('{"half":')
    headIsOut()
  }
  const [first, second] = [new AbortController(), new AbortController()]
  const statuses: number[] = []
  const begun = call({ signal: first.signal, onStatus: status => statuses.push(status) })
  // there is one connection, and it is taken
  const waiting = call({ signal: second.signal, method: 'POST', body: 'never sent' })
  await head
  await expect.poll(() => statuses).toEqual([200])
  second.abort(reason)
  await expect(waiting).rejects.toBe(reason)
  first.abort(reason)
  await expect(begun).rejects.toBe(reason)
  await expect.poll(() => cut).toBe(1)
  answer = (_request, response) => response.end('here')
  expect(await text()).toBe('here')
  expect(arrived).toBe(2)
})

test('what is over leaves no listener at its signal', async () => {
  const { signal } = new AbortController()
  answer = (_request, response) => response.end('here')
  for (let at = 0; at < 3; at++) expect(await text({ signal })).toBe('here')
  answer = (_request, response) => response.destroy()
  await expect(call({ signal })).rejects.toThrow()
  await expect(call({ signal, timeoutMs: 1, url: 'http://127.0.0.1:1/' })).rejects.toThrow()
  expect(getEventListeners(signal, 'abort')).toHaveLength(0)
})

test('a connection that is refused or lost is told by its code', async () => {
  await expect(call({ url: 'http://127.0.0.1:1/' })).rejects.toMatchObject({ code: 'ECONNREFUSED' })
  answer = (_request, response) => response.destroy()
  await expect(call()).rejects.toMatchObject({ code: 'UND_ERR_SOCKET' })
  answer = (_request, response) => {
    response.writeHead(200, { 'content-length': 100 }).write('half')
    setTimeout(() => response.destroy(), 20)
  }
  await expect(call()).rejects.toMatchObject({ code: 'UND_ERR_SOCKET' })
})

test('a redirect is an answer, and fields that come twice are one', async () => {
  answer = (_request, response) =>
    response.writeHead(302, { location: '/login', 'x-twice': ['1', '2'], 'x-once': 'a' }).end()
  const redirect = await call()
  expect([redirect.status, redirect.ok]).toEqual([302, false])
  expect(['location', 'x-once', 'x-twice', 'x-none'].map(redirect.header)).toEqual(['/login', 'a', '1, 2', undefined])
  expect(arrived).toBe(1)
})

test('texts and forms are sent with their length, and the path as it was written', async () => {
  const seen: unknown[] = []
  answer = async (request, response) => {
    let body = ''
    for await (const chunk of request) body += chunk
    const { 'content-length': length, 'content-type': type = '', 'transfer-encoding': chunked } = request.headers
    seen.push([request.method, request.url, Number(length) === Buffer.byteLength(body), chunked, type.split(';')[0]])
    response.end(body)
  }
  expect(await text({ method: 'POST', url: `${url}a%2Fb?x=%5B1%5D`, body: 'Caf\u00e9' })).toBe('Caf\u00e9')
  const form = new FormData()
  form.append('file', new Blob(['of a file']), 'notes.txt')
  expect(await text({ method: 'PUT', body: form })).toMatch(/filename="notes.txt"[\s\S]*of a file/)
  expect(await text({ method: 'DELETE' })).toBe('')
  expect(seen).toEqual([
    ['POST', '/a%2Fb?x=%5B1%5D', true, undefined, ''],
    ['PUT', '/', true, undefined, 'multipart/form-data'],
    ['DELETE', '/', false, undefined, ''],
  ])
})
