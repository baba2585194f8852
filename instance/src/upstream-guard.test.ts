import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Agent, buildConnector } from 'undici'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import type { HttpClient } from './http-client.ts'
import { exchange } from './http-exchange.ts'
import { createZohoAccounts } from './tokens/zoho-accounts.ts'
import { checkLiteralHost, type GuardOptions, guardedConnector } from './upstream-guard.ts'

let server: Server
let port: number
let connections = 0
/** what the "DNS" answers, one list for each question, the last one from then on */
let answers: string[][] = []
let questions = 0
/** where a connection would have gone; nothing outside of this machine is ever dialled */
let dialled: string[] = []

beforeAll(async () => {
  server = createServer((_request, response) => response.end('here'))
  server.on('connection', () => connections++)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  port = (server.address() as AddressInfo).port
})
afterAll(() => server?.close())
beforeEach(() => {
  connections = questions = 0
  answers = []
  dialled = []
})

const lookup: GuardOptions['lookup'] = (_host, _options, callback) => {
  const found = answers[Math.min(questions++, answers.length - 1)] ?? []
  callback(
    null,
    found.map(address => ({ address, family: address.includes(':') ? 6 : 4 })),
  )
}

function guarded(allowedHosts: string[] = [], build: GuardOptions['build'] = buildConnector) {
  const dispatcher = new Agent({
    keepAliveTimeout: 1,
    connect: guardedConnector({ allowedHosts, connectTimeoutMs: 2_000, lookup, build }),
  })
  const http: HttpClient = call => exchange(dispatcher, call)
  const get = async (url: string, headers: Record<string, string> = {}) =>
    (await http({ method: 'GET', url, headers, timeoutMs: 10_000, maxBytes: 1_000 })).bytes.toString()
  return { http, get, [Symbol.asyncDispose]: () => dispatcher.destroy() }
}
/** Records where it would have connected. */
const recording: GuardOptions['build'] = options => (target, callback) => {
  const { lookup: checked } = options as { lookup: NonNullable<GuardOptions['lookup']> }
  const dial = (address: string) => {
    dialled.push(address)
    callback(new Error('not dialled in this test'), null)
  }
  if (/^[\d.]+$/.test(target.hostname)) return dial(target.hostname)
  checked(target.hostname, { all: true }, (error, found) => (error ? callback(error, null) : dial(found[0]!.address)))
}
const failureOf = (work: Promise<unknown>) =>
  work.then(
    () => undefined,
    (error: { code?: string; message?: string }) => error,
  )

test.each([
  ['loopback', '127.0.0.1'],
  ['private', '10.1.2.3'],
  ['metadata', '169.254.169.254'],
  ['IPv6 loopback', '::1'],
  ['a mapped private address', '::ffff:192.168.0.1'],
  ['metadata behind NAT64', '64:ff9b::a9fe:a9fe'],
])('a name that leads to %s is refused before a connection is made', async (_kind, address) => {
  await using upstream = guarded([], recording)
  answers = [[address]]
  expect(await failureOf(upstream.get('https://helpdesk.example/api'))).toMatchObject({
    code: 'ERR_UPSTREAM_REFUSED',
    message: expect.stringContaining('SDP_ALLOWED_UPSTREAM_HOSTS'),
  })
  expect(questions).toBe(1)
  expect(dialled).toEqual([])
})

test.each(['127.0.0.1', '10.0.0.1', '169.254.169.254', '[::1]', '[::ffff:7f00:1]', '2130706433', '0x7f.1', '0'])(
  'a URL that names the address %s is refused without asking the DNS',
  async host => {
    await using upstream = guarded([], recording)
    expect(await failureOf(upstream.get(`https://${host}/`))).toMatchObject({ code: 'ERR_UPSTREAM_REFUSED' })
    expect([questions, dialled]).toEqual([0, []])
  },
)

test('a public address is connected to, and one forbidden address among public ones refuses the name', async () => {
  await using upstream = guarded([], recording)
  answers = [['8.8.8.8']]
  await failureOf(upstream.get('https://helpdesk.example/'))
  expect(dialled).toEqual(['8.8.8.8'])
  answers = [['8.8.8.8', '10.0.0.9']]
  expect(await failureOf(upstream.get('https://other.example/'))).toMatchObject({ code: 'ERR_UPSTREAM_REFUSED' })
  expect(dialled).toEqual(['8.8.8.8'])
})

test('over the wire: an allowed host is reached at a private address, any other name at the same address is not', async () => {
  await using upstream = guarded(['helpdesk.corp.example'])
  answers = [['127.0.0.1']]
  expect(await upstream.get(`http://helpdesk.corp.example:${port}/`)).toBe('here')
  expect(connections).toBe(1)
  expect(await failureOf(upstream.get(`http://elsewhere.example:${port}/`))).toMatchObject({
    code: 'ERR_UPSTREAM_REFUSED',
  })
  expect(connections).toBe(1)
})

test('over the wire: a name that is moved to a forbidden address later is refused at its next connection', async () => {
  await using upstream = guarded(['helpdesk.corp.example'])
  answers = [['127.0.0.1'], ['169.254.169.254']]
  const first = await upstream.get(`http://helpdesk.corp.example:${port}/`, { connection: 'close' })
  expect(first).toBe('here')
  // the connection that was checked may be used on; a new one is looked at again
  const outcome = await failureOf(
    (async () => {
      for (let attempt = 0; attempt < 50 && questions < 2; attempt++) {
        await new Promise(done => setTimeout(done, 20))
        await upstream.get(`http://helpdesk.corp.example:${port}/`)
      }
    })(),
  )
  expect(outcome).toMatchObject({ code: 'ERR_UPSTREAM_REFUSED' })
  expect(connections).toBeLessThanOrEqual(50)
})

test('what the accounts server is told names the variable to set, and carries no secret', async () => {
  await using upstream = guarded([])
  answers = [['10.0.0.7']]
  const accounts = createZohoAccounts({
    accountsUrl: 'https://accounts.corp.example',
    consoleUrl: 'https://console.example',
    http: upstream.http,
  })
  const error = await accounts
    .refresh({ clientId: '1000.A', clientSecret: 'the-secret' }, 'the-refresh-token')
    .catch(e => e)
  expect(error.message).toContain('SDP_ALLOWED_UPSTREAM_HOSTS')
  expect(error.message).toContain('10.0.0.7')
  expect(`${error.message}${error.nextStep}${error.stack}`).not.toMatch(/the-secret|the-refresh-token/)
})

test('through an HTTP proxy, which resolves names itself, an address in the URL is still refused', () => {
  for (const url of ['https://10.0.0.1/', 'https://[::1]/', 'https://169.254.169.254/'])
    expect(() => checkLiteralHost(new URL(url), [])).toThrow('SDP_ALLOWED_UPSTREAM_HOSTS')
  checkLiteralHost(new URL('https://helpdesk.example/'), [])
  checkLiteralHost(new URL('https://8.8.8.8/'), [])
})
