import { createServer, type Server } from 'node:http'
import { type AddressInfo, connect, createServer as createTcpServer } from 'node:net'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { AppError } from '../errors.ts'
import { silentLog } from '../fleet/testing/support.ts'
import { createEgress, type Egress, type EgressOptions } from './egress.ts'

// Tunnels to loopback only: what a name leads to is made up here.

let upstream: Server
let upstreamPort: number
let egress: Egress
let port: number
const asked: string[] = []
const outcomes: string[] = []
let names: Record<string, string[]>
let reachOf: EgressOptions['reachOf']

beforeAll(async () => {
  upstream = createServer((request, response) => void response.end(`hello ${request.headers.host}`))
  await new Promise<void>(done => upstream.listen(0, '127.0.0.1', done))
  upstreamPort = (upstream.address() as AddressInfo).port
  egress = createEgress({
    holderOf: async token => (token === 'good' ? { userId: 'alice', generation: 1 } : undefined),
    reachOf: holder => reachOf(holder),
    isInstance: address => address === '127.0.7.2',
    privateHosts: ['desk.corp.example', 'metadata.corp.example', 'mixed.corp.example'],
    resolve: async host => {
      asked.push(host)
      return names[host] ?? []
    },
    done: outcome => outcomes.push(outcome),
    log: silentLog,
  })
  port = (await egress.listen({ host: '127.0.0.1', port: 0 })).port
})
afterAll(async () => {
  await egress.close()
  upstream.close()
})
beforeEach(() => {
  asked.length = 0
  outcomes.length = 0
  names = {
    'desk.corp.example': ['127.0.0.1'],
    // a public name that leads into the own network, which nobody allowed
    'accounts.example': ['127.0.0.1'],
    'metadata.corp.example': ['169.254.169.254'],
    'mixed.corp.example': ['127.0.0.1', '169.254.169.254'],
  }
  reachOf = async () => ({
    username: 'alice',
    origins: Object.keys(names).map(name => `http://${name}:${upstreamPort}`),
    hosts: ['silent.example'],
  })
})

/** What comes back for these bytes, until the other side ends it or `until` fits. */
function say(text: string, { from = '127.0.7.2', until }: { from?: string; until?: RegExp } = {}): Promise<string> {
  return new Promise(done => {
    let heard = ''
    const socket = connect({ port, host: '127.0.0.1', localAddress: from }, () => socket.write(text))
    const end = () => {
      socket.destroy()
      done(heard)
    }
    socket.setEncoding('latin1').on('data', chunk => {
      heard += chunk
      if (until?.test(heard)) end()
    })
    socket.on('error', end).on('close', end)
  })
}
const ask = (target: string, { token = 'Bearer good', ...more }: { token?: string; from?: string } = {}) =>
  say(`CONNECT ${target} HTTP/1.1\r\nHost: x\r\n${token ? `Proxy-Authorization: ${token}\r\n` : ''}\r\n`, {
    until: /\r\n\r\n/,
    ...more,
  }).then(heard => Number(/^HTTP\/1\.1 (\d{3})/.exec(heard)?.[1] ?? 0))

test('a tunnel carries bytes both ways to a host of the user, also those sent along with the request', async () => {
  const heard = await say(
    `CONNECT desk.corp.example:${upstreamPort} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer good\r\n\r\n` +
      'GET / HTTP/1.1\r\nHost: through-the-tunnel\r\nConnection: close\r\n\r\n',
  )
  expect(heard).toMatch(/^HTTP\/1\.1 200 Connection established\r\n\r\nHTTP\/1\.1 200 OK/)
  expect(heard).toContain('hello through-the-tunnel')
  expect(outcomes).toEqual(['opened'])
})

test('without a token, with another’s, or in another scheme nothing is asked and nothing opens', async () => {
  for (const token of ['', 'Bearer bad', 'Basic Z29vZA==', 'good', `Bearer ${'x'.repeat(2_001)}`])
    expect([token, await ask(`desk.corp.example:${upstreamPort}`, { token })]).toEqual([token, 407])
  reachOf = async () => undefined
  expect(await ask(`desk.corp.example:${upstreamPort}`)).toBe(407)
  expect(asked).toEqual([])
  expect(new Set(outcomes)).toEqual(new Set(['unauthorized']))
})

test('no other host, port or address opens, and its name is not even resolved', async () => {
  for (const target of [
    `evil.example:${upstreamPort}`,
    'desk.corp.example:22',
    `127.0.0.1:${upstreamPort}`,
    '169.254.169.254:80',
    `[::1]:${upstreamPort}`,
    'silent.example:80',
  ])
    expect([target, await ask(target)]).toEqual([target, 403])
  expect(asked).toEqual([])
  expect(new Set(outcomes)).toEqual(new Set(['refused']))
})

test('a name that leads to an address nobody allowed, or to one more than allowed, does not open', async () => {
  for (const name of ['accounts.example', 'metadata.corp.example', 'mixed.corp.example'])
    expect([name, await ask(`${name}:${upstreamPort}`)]).toEqual([name, 403])
  expect(outcomes).toEqual(['refused', 'refused', 'refused'])
  expect(await ask('silent.example:443')).toBe(502)
})

test('whoever is no instance is cut off before a byte is read', async () => {
  expect(await ask(`desk.corp.example:${upstreamPort}`, { from: '127.0.0.1' })).toBe(0)
  expect(outcomes).toEqual([])
})

test('plain requests, odd targets and endless headers get nothing', async () => {
  expect(await say(`GET http://desk.corp.example:${upstreamPort}/ HTTP/1.1\r\nHost: x\r\n\r\n`)).toMatch(
    /^HTTP\/1\.1 405/,
  )
  for (const target of ['desk.corp.example', `http://desk.corp.example:${upstreamPort}`, 'desk.corp.example:0', '/'])
    expect([400, 403]).toContain(await ask(target))
  expect(
    await say(`CONNECT desk.corp.example:443 HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`),
  ).not.toMatch(/ 200 /)
})

test('a database that does not answer is told as that, and a host that does not as that', async () => {
  reachOf = async () => {
    throw new AppError('database-unavailable', 'The database does not answer.')
  }
  expect(await ask(`desk.corp.example:${upstreamPort}`)).toBe(503)
  const closed = createTcpServer().listen(0, '127.0.0.1')
  await new Promise(done => closed.once('listening', done))
  const { port: closedPort } = closed.address() as AddressInfo
  await new Promise(done => closed.close(done))
  reachOf = async () => ({ username: 'alice', origins: [`http://desk.corp.example:${closedPort}`], hosts: [] })
  expect(await ask(`desk.corp.example:${closedPort}`)).toBe(502)
  expect(outcomes).toEqual(['failed', 'unreachable'])
})

test('one user holds a bounded number of tunnels, and gets room again when they end', async () => {
  const request = `CONNECT desk.corp.example:${upstreamPort} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer good\r\n\r\n`
  const open = () =>
    new Promise<{ status: string; end(): void }>(done => {
      const socket = connect({ port, host: '127.0.0.1', localAddress: '127.0.7.2' }, () => socket.write(request))
      socket.on('error', () => {})
      socket.once('data', data => done({ status: data.toString('latin1').slice(9, 12), end: () => socket.destroy() }))
    })
  const held = []
  for (let count = 0; count < 64; count++) held.push(await open())
  expect(new Set(held.map(one => one.status))).toEqual(new Set(['200']))
  const surplus = await open()
  expect(surplus.status).toBe('429')
  for (const one of [...held, surplus]) one.end()
  for (const deadline = Date.now() + 5_000; (await ask(`desk.corp.example:${upstreamPort}`)) !== 200; )
    expect(Date.now()).toBeLessThan(deadline)
})
