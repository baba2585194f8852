import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { startControlPlane, type TestControlPlane } from './testing/control-plane.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'
import { sendRaw } from './testing/upstream.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
})
afterAll(() => database?.[Symbol.asyncDispose]())

/** Both listeners, asked for something that needs no key to tell refused from let in. */
const listeners = (controlPlane: TestControlPlane) => [
  {
    port: controlPlane.publicPort,
    ask: (headers = {}, from?: string) => controlPlane.ask({ path: '/mcp', headers, ...(from ? { from } : {}) }),
  },
  {
    port: controlPlane.adminPort,
    ask: (headers = {}, from?: string) =>
      controlPlane.admin('GET', '/v1/users', undefined, { headers, ...(from ? { from } : {}) }),
  },
]
const letIn = [401, 200]

describe('network addresses', () => {
  test('without a list everybody comes in', async () => {
    await using controlPlane = await startControlPlane(database)
    for (const { ask } of listeners(controlPlane)) expect(letIn).toContain((await ask({}, '127.0.0.9')).status)
  })

  test('each listener has a list of its own, and who is not on it learns nothing', async () => {
    await using controlPlane = await startControlPlane(database, {
      environment: { SDP_HTTP_ALLOWED_NETWORKS: '127.0.0.8/29', SDP_ADMIN_ALLOWED_NETWORKS: '127.0.0.1,::1' },
    })
    const [open, admin] = listeners(controlPlane)
    expect((await open!.ask({}, '127.0.0.9')).status).toBe(401)
    expect((await admin!.ask({}, '127.0.0.1')).status).toBe(200)
    for (const refused of [await open!.ask({}, '127.0.0.1'), await admin!.ask({}, '127.0.0.9')]) {
      expect(refused.status).toBe(403)
      expect(refused.json).toMatchObject({ code: 'address-refused' })
      expect(refused.headers.connection).toBe('close')
    }
    // what a load balancer asks is answered for everybody, and says nothing
    expect((await controlPlane.ask({ path: '/healthz' })).text).toBe('{"status":"ok"}')
    expect((await controlPlane.ask({ path: '/readyz' })).status).toBe(403)
    expect(controlPlane.logged()).toContain('"address":"127.0.0.9"')
  })

  test('an instance is cut off before a byte is read, on both listeners and for every path; its gateway is not', async () => {
    // the addresses of this machine that no container can have, as if they were a pool
    await using controlPlane = await startControlPlane(database, {
      environment: { SDP_INSTANCE_NETWORK_POOL: '127.0.5.0/24', SDP_TRUSTED_PROXIES: '127.0.0.0/8' },
    })
    for (const port of [controlPlane.publicPort, controlPlane.adminPort])
      for (const path of ['/healthz', '/v1/users', '/metrics', '/mcp', '/connect/callback']) {
        const say = (localAddress: string) =>
          new Promise<string>(done => {
            let heard = ''
            const socket = connect({ port, host: '127.0.0.1', localAddress }, () =>
              socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`),
            )
            socket.setEncoding('latin1').on('data', text => {
              heard += text
            })
            socket.on('error', () => {}).on('close', () => done(heard))
          })
        for (const instance of ['127.0.5.2', '127.0.5.6', '127.0.5.12']) expect(await say(instance)).toBe('')
        for (const other of ['127.0.5.1', '127.0.5.9', '127.0.6.2']) expect(await say(other)).toMatch(/^HTTP\/1\.1 /)
      }
    expect(controlPlane.logged()).toContain('"code":"instance-refused","address":"127.0.5.2"')
  })

  test('X-Forwarded-For of anybody but a trusted proxy changes nothing', async () => {
    await using controlPlane = await startControlPlane(database, {
      environment: { SDP_HTTP_ALLOWED_NETWORKS: '10.9.0.0/16', SDP_TRUSTED_PROXIES: '127.0.0.2,10.0.0.0/24' },
    })
    const [open] = listeners(controlPlane)
    const status = async (from: string, forwarded: string) =>
      (await open!.ask({ 'x-forwarded-for': forwarded }, from)).status
    expect(await status('127.0.0.3', '10.9.1.1')).toBe(403)
    expect(await status('127.0.0.2', '10.9.1.1')).toBe(401)
    expect(await status('127.0.0.2', '::ffff:10.9.1.1')).toBe(401)
    // what the client itself wrote stands to the left of what the proxy added
    expect(await status('127.0.0.2', '10.9.1.1, 192.0.2.1')).toBe(403)
    expect(await status('127.0.0.2', '192.0.2.1, 10.9.1.1')).toBe(401)
    // a chain of trusted proxies is followed
    expect(await status('127.0.0.2', '192.0.2.1, 10.9.1.1, 10.0.0.7')).toBe(401)
    expect(await status('127.0.0.2', '10.9.1.1, 192.0.2.1, 10.0.0.7')).toBe(403)
    for (const nonsense of ['', 'unknown', '10.9.1.1:80, x', '10.9.1', ', ,'])
      expect(await status('127.0.0.2', nonsense)).toBe(403)
  })

  test('a client over IPv6 is measured by its own address, a mapped one by its IPv4 address', async () => {
    await using controlPlane = await startControlPlane(database, {
      environment: { SDP_HTTP_ALLOWED_NETWORKS: '2001:db8:1::/48,192.0.2.0/24', SDP_TRUSTED_PROXIES: '127.0.0.0/8' },
    })
    const [open] = listeners(controlPlane)
    const status = async (address: string) => (await open!.ask({ 'x-forwarded-for': address })).status
    expect(await status('2001:db8:1:2::3')).toBe(401)
    expect(await status('2001:DB8:1:0:0:0:0:1')).toBe(401)
    expect(await status('2001:db8:2::1')).toBe(403)
    expect(await status('::ffff:c000:0201')).toBe(401)
    expect(await status('192.0.3.1')).toBe(403)
  })
})

describe('Host and Origin', () => {
  test('addresses, localhost, the public URL and named hosts are taken, any other name is refused on both listeners', async () => {
    await using controlPlane = await startControlPlane(database, {
      environment: {
        SDP_PUBLIC_URL: 'https://mcp.example.com',
        SDP_ALLOWED_HOSTS: 'desk.example.com,*.corp.example',
        SDP_CONTROL_PLANE_CONTAINER: 'sdp-mcp-control-plane',
      },
    })
    for (const { ask, port } of listeners(controlPlane)) {
      for (const host of [
        ...[`127.0.0.1:${port}`, '10.1.2.3', `[::1]:${port}`, '[2001:db8::1]', 'localhost', `localhost:${port}`],
        ...[
          'mcp.example.com',
          'MCP.example.com:443',
          'desk.example.com',
          'a.corp.example',
          'sdp-mcp-control-plane:3457',
        ],
      ])
        expect(letIn, host).toContain((await ask({ host })).status)
      for (const host of [
        ...[
          'evil.example',
          'mcp.example.com.evil.example',
          'corp.example',
          'evilcorp.example',
          'localhost.evil.example',
        ],
        ...['mcp.example.com@evil.example', 'evil.example:80', '127.0.0.1.evil.example', 'mcp.example.com/', 'x y'],
      ]) {
        const answer = await ask({ host })
        expect([answer.status, answer.json?.code], host).toEqual([403, 'host-refused'])
        expect(answer.json.detail).toContain('SDP_ALLOWED_HOSTS')
      }
      for (const request of ['GET /mcp HTTP/1.0\r\n\r\n', 'GET /mcp HTTP/1.1\r\nHost:\r\n\r\n'])
        expect(await sendRaw(port, request)).toMatch(/^HTTP\/1.1 403 /)
    }
  })

  test('a web page from elsewhere is refused on both listeners; one that was served here is not', async () => {
    await using controlPlane = await startControlPlane(database)
    for (const { ask, port } of listeners(controlPlane)) {
      const host = `localhost:${port}`
      expect(letIn).toContain((await ask({ host, origin: `http://${host}` })).status)
      // a form of our own page that hides its origin, as the browser says itself
      expect(letIn).toContain((await ask({ host, origin: 'null', 'sec-fetch-site': 'same-origin' })).status)
      for (const site of ['cross-site', 'same-site', 'none'])
        expect((await ask({ host, origin: 'null', 'sec-fetch-site': site })).json.code).toBe('origin-refused')
      for (const origin of [
        'https://evil.example',
        'null',
        '',
        'http://localhost:1',
        `ftp://${host}`,
        'file://',
        `http://${host}.evil.example`,
      ]) {
        const answer = await ask({ host, origin })
        expect([answer.status, answer.json?.code], origin).toEqual([403, 'origin-refused'])
        expect(answer.headers['access-control-allow-origin']).toBeUndefined()
      }
    }
  })

  test('no page of another origin is told anything unless it is configured; then the public listener answers it, the admin listener never', async () => {
    await using controlPlane = await startControlPlane(database, {
      environment: { SDP_ALLOWED_ORIGINS: 'http://localhost:6274' },
    })
    const preflight = { origin: 'http://localhost:6274', 'access-control-request-method': 'POST' }
    const asked = await controlPlane.ask({ method: 'OPTIONS', path: '/mcp', headers: preflight })
    expect(asked.status).toBe(204)
    expect(asked.headers['access-control-allow-origin']).toBe('http://localhost:6274')
    expect(asked.headers['access-control-allow-credentials']).toBeUndefined()
    const answer = await controlPlane.ask({ path: '/mcp', headers: { origin: 'http://localhost:6274' } })
    expect([answer.status, answer.headers['access-control-allow-origin']]).toEqual([401, 'http://localhost:6274'])
    expect(answer.headers.vary).toContain('Origin')
    const foreign = await controlPlane.ask({
      method: 'OPTIONS',
      path: '/mcp',
      headers: { ...preflight, origin: 'http://localhost:6275' },
    })
    expect([foreign.status, foreign.headers['access-control-allow-origin']]).toEqual([403, undefined])
    const admin = await controlPlane.admin('OPTIONS', '/v1/users', undefined, { headers: preflight })
    expect(admin.headers['access-control-allow-origin']).toBeUndefined()
    expect(admin.status).toBe(404)
  })
})

describe('senders', () => {
  const sendSlowly = (port: number, first: string, drip: string) =>
    new Promise<{ afterMs: number; answer: string }>(done => {
      const startedAt = performance.now()
      let answer = ''
      const socket = connect(port, '127.0.0.1', () => socket.write(first))
      const timer = setInterval(() => socket.write(drip), 100)
      socket.on('data', chunk => {
        answer += chunk
      })
      socket.on('error', () => {})
      socket.on('close', () => {
        clearInterval(timer)
        done({ afterMs: performance.now() - startedAt, answer })
      })
    })

  test('who drips headers or a body is cut off on both listeners, whatever the credentials', async () => {
    await using controlPlane = await startControlPlane(database, { patience: { headersMs: 400, requestMs: 900 } })
    const { apiKey } = await controlPlane.users.create({ username: 'alice' }, 'admin').then(async created => {
      await controlPlane.directory.refresh(created.userId)
      return created
    })
    const bodyTo = (path: string, authorization: string) =>
      `POST ${path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${authorization}\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{`
    const cut = await Promise.all([
      sendSlowly(controlPlane.publicPort, 'GET /mcp HTTP/1.1\r\nHost: localhost\r\n', 'X-A: b\r\n'),
      sendSlowly(controlPlane.adminPort, 'GET /v1/users HTTP/1.1\r\nHost: localhost\r\n', 'X-A: b\r\n'),
      sendSlowly(controlPlane.publicPort, bodyTo('/mcp', apiKey.key), ' '),
      sendSlowly(controlPlane.adminPort, bodyTo('/v1/users', controlPlane.config.admin.token.reveal()), ' '),
      // nothing at all
      sendSlowly(controlPlane.publicPort, '', ''),
    ])
    for (const { afterMs, answer } of cut) {
      expect(afterMs).toBeLessThan(6_000)
      expect(answer).toMatch(/^(HTTP\/1.1 408 |$)/)
    }
    expect((await controlPlane.ask({ path: '/healthz' })).status).toBe(200)
  }, 20_000)

  test('more than 16 KiB of headers is 431, and a body beyond the limit 413 without reading it', async () => {
    await using controlPlane = await startControlPlane(database)
    for (const { ask } of listeners(controlPlane))
      expect((await ask({ 'x-filler': 'a'.repeat(17_000) })).status).toBe(431)
    const { userId, apiKey } = await controlPlane.users.create({ username: 'bob' }, 'admin')
    await controlPlane.directory.refresh(userId)
    const key = { authorization: `Bearer ${apiKey.key}` }
    const announced = await controlPlane.ask({
      method: 'POST',
      path: '/mcp',
      headers: { ...key, 'content-length': String(5 * 1024 * 1024) },
      body: undefined,
    })
    expect([announced.status, announced.json.code]).toEqual([413, 'body-too-large'])
    const admin = await controlPlane.admin('POST', '/v1/users', { username: 'x', displayName: 'a'.repeat(300_000) })
    expect([admin.status, admin.json.code]).toEqual([413, 'body-too-large'])
  })
})
