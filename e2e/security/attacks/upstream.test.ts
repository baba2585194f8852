import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { type Stack, startStack } from '../../support/stack.ts'

// Settings of an admin, and answers of servers, that want to send an instance and its tokens somewhere else.

let stack: Stack
const servers: Server[] = []

beforeAll(async () => {
  stack = await startStack()
})
afterAll(async () => {
  for (const server of servers) {
    server.closeAllConnections()
    server.close()
  }
  await stack?.[Symbol.asyncDispose]()
})

type Listener = { url: string; requests: { path: string; body: string }[]; connections(): number }

/** A server of the attacker, where containers can reach it. */
async function listen(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Listener> {
  const requests: Listener['requests'] = []
  let connections = 0
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', chunk => {
      body += chunk
    })
    request.on('end', () => {
      requests.push({ path: request.url!, body })
      answer(request, response)
    })
  }).on('connection', () => {
    connections++
  })
  servers.push(server)
  const { hostAddress } = inject('engine')
  await new Promise<void>(done => server.listen(0, hostAddress, done))
  const url = `http://${hostAddress}:${(server.address() as AddressInfo).port}`
  return { url, requests, connections: () => connections }
}

const material = async () => {
  const { clientId, clientSecret, code } = await stack.simulator.createGrantCode({ user: 'alice' })
  return { clientId, clientSecret, grantCode: code }
}

test('attack: an accounts server that redirects does not get the grant code carried to another server', async () => {
  const trap = await listen((_request, response) => response.end('{}'))
  const redirecting = await listen((_request, response) =>
    response.writeHead(307, { location: `${trap.url}/oauth/v2/token` }).end(),
  )
  const answer = await stack.admin(
    'POST',
    '/v1/users',
    { username: 'mallory', sdp: { ...(await material()), accountsUrl: redirecting.url } },
    { prefer: 'wait=30' },
  )
  expect(answer.status).toBeGreaterThanOrEqual(201)
  // it was asked, so the absence of a packet below means something
  expect(redirecting.requests.length).toBeGreaterThan(0)
  expect(trap.connections()).toBe(0)
  await stack.admin('DELETE', '/v1/users/mallory')
})

test('attack: an api_domain or location in the answer of the accounts server moves no call of the API', async () => {
  const trap = await listen((_request, response) => response.end('{}'))
  const lying = await listen((_request, response) => {
    response.setHeader('content-type', 'application/json')
    response.end(
      JSON.stringify({
        access_token: `1000.${'a'.repeat(32)}.${'b'.repeat(32)}`,
        refresh_token: `1000.${'c'.repeat(32)}.${'d'.repeat(32)}`,
        api_domain: trap.url,
        location: trap.url,
        accounts_server: trap.url,
        'accounts-server': trap.url,
        token_type: 'Bearer',
        scope: 'SDPOnDemand.requests.ALL',
        expires_in: 3600,
      }),
    )
  })
  await stack.admin(
    'POST',
    '/v1/users',
    { username: 'mallory', sdp: { ...(await material()), accountsUrl: lying.url } },
    { prefer: 'wait=30' },
  )
  expect(lying.requests.some(({ path }) => path.startsWith('/oauth/v2/token'))).toBe(true)
  expect(trap.connections()).toBe(0)
  await stack.admin('DELETE', '/v1/users/mallory')
})

test('attack: a desk that redirects does not get the access token carried to another server', async () => {
  const trap = await listen((_request, response) => response.end('{}'))
  const redirecting = await listen((_request, response) =>
    response.writeHead(302, { location: `${trap.url}/app/itdesk/api/v3/requests` }).end(),
  )
  await stack.admin(
    'POST',
    '/v1/users',
    { username: 'mallory', sdp: { ...(await material()), baseUrl: redirecting.url } },
    { prefer: 'wait=30' },
  )
  expect(redirecting.requests.length).toBeGreaterThan(0)
  expect(trap.connections()).toBe(0)
  await stack.admin('DELETE', '/v1/users/mallory')
})

test('attack: in production no address but https is taken, and the refusal sends no packet', async () => {
  const trap = await listen((_request, response) => response.end('{}'))
  await stack.controlPlane().stop()
  await stack.startControlPlane({ SDP_ALLOW_INSECURE_UPSTREAM: 'false', SDP_BASE_URL: '', SDP_ACCOUNTS_URL: '' })
  for (const url of [
    trap.url,
    'http://127.0.0.1',
    'http://localhost:3457',
    'http://[::1]/',
    'http://[::ffff:127.0.0.1]/',
    'http://2130706433/',
    'http://0x7f.1/',
    'http://169.254.169.254/latest/meta-data/',
    'http://metadata.google.internal/',
    'http://10.0.0.1/',
    'ftp://files.example.com/',
    'file:///etc/passwd',
    'gopher://127.0.0.1:6379/_INFO',
    'unix:///var/run/docker.sock',
    'javascript:alert(1)',
    'data:text/plain,x',
    '//evil.example',
    'evil.example',
    '',
  ])
    for (const field of ['baseUrl', 'accountsUrl']) {
      const answer = await stack.admin('POST', '/v1/users', { username: 'mallory', sdp: { [field]: url } })
      expect([field, url, [400, 422].includes(answer.status)]).toEqual([field, url, true])
    }
  expect(trap.connections()).toBe(0)
  expect((await stack.admin('GET', '/v1/users/mallory')).status).toBe(404)
})

test('attack: a user name or password before the host, which makes one host look like another, is refused', async () => {
  const password = 'hidden-in-the-address'
  for (const url of [
    'https://helpdesk.example.com@evil.example',
    'https://helpdesk.example.com:443@evil.example/',
    `https://user:${password}@helpdesk.example.com`,
    'https://:x@helpdesk.example.com',
  ])
    for (const field of ['baseUrl', 'accountsUrl']) {
      const answer = await stack.admin('POST', '/v1/users', { username: 'mallory', sdp: { [field]: url } })
      expect([url, [400, 422].includes(answer.status)]).toEqual([url, true])
      expect(JSON.stringify(answer.body)).not.toContain(password)
    }
})

test('attack: a portal that climbs out of its place in the path is refused', async () => {
  for (const portal of [
    '../admin',
    'itdesk/../../x',
    'itdesk?x=',
    'itdesk#',
    'it desk',
    'itdesk%2f..',
    '..',
    'itdesk\r\nHost: evil',
    '@evil.example',
    'a'.repeat(200),
  ]) {
    const answer = await stack.admin('POST', '/v1/users', { username: 'mallory', sdp: { portal } })
    expect([portal, answer.status]).toEqual([portal, 400])
  }
})

test('attack: path, query and line breaks behind the host of an address do not travel along', async () => {
  const url = 'https://helpdesk.example.com/evil/../path?query=1#fragment'
  const answer = await stack.admin('POST', '/v1/users', {
    username: 'mallory',
    sdp: { portal: 'itdesk', baseUrl: url },
  })
  expect(answer.status).toBe(201)
  expect(answer.body.user.sdp.baseUrl).toBe('https://helpdesk.example.com')
  const broken = await stack.admin('PATCH', '/v1/users/mallory', {
    sdp: { baseUrl: 'https://helpdesk.example.com\r\nHost: evil.example' },
  })
  expect(JSON.stringify(broken.body)).not.toContain('evil.example')
  expect((await stack.admin('GET', '/v1/users/mallory')).body.sdp.baseUrl).toBe('https://helpdesk.example.com')
  await stack.admin('DELETE', '/v1/users/mallory')
})

test('attack: addresses of the own network, of this machine and of metadata services are refused in every spelling, without a packet', async () => {
  const before = stack.simulator.log.list().length
  for (const host of [
    '127.0.0.1',
    '127.1',
    '2130706433',
    '0x7f000001',
    '0177.0.0.1',
    '[::1]',
    '[::ffff:127.0.0.1]',
    '[::ffff:7f00:1]',
    '[64:ff9b::7f00:1]',
    '[2002:7f00:1::]',
    '0.0.0.0',
    '10.0.0.1',
    '172.17.0.1',
    '192.168.1.1',
    '100.64.0.1',
    '169.254.169.254',
    '2852039166',
    '[fd00:ec2::254]',
    '[fe80::1]',
    '100.100.100.200',
    '224.0.0.1',
    inject('engine').hostAddress,
  ])
    for (const field of ['baseUrl', 'accountsUrl']) {
      const url = `https://${host}:${stack.simulator.port}`
      const answer = await stack.admin('POST', '/v1/users', { username: 'mallory', sdp: { [field]: url } })
      expect([url, [400, 422].includes(answer.status)]).toEqual([url, true])
    }
  expect((await stack.admin('GET', '/v1/users/mallory')).status).toBe(404)
  expect(stack.simulator.log.list().length).toBe(before)
  // a public name is taken
  const taken = await stack.admin('POST', '/v1/users', {
    username: 'mallory',
    sdp: { baseUrl: 'https://helpdesk.example.com' },
  })
  expect(taken.status).toBe(201)
  await stack.admin('DELETE', '/v1/users/mallory')
})
