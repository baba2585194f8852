import { rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Docker from 'dockerode'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { connect } from '../support/mcp-client.ts'
import { testInstallation } from '../support/setup.ts'
import { type Answer, ExitedAtStart, eventually, type Stack, startStack } from '../support/stack.ts'

// Whatever goes wrong: a problem with a code and a next step, and nothing half-made left behind.

let stack: Stack
// below the ports that the system gives to outgoing connections
const firstPort = 20_000 + Math.floor(Math.random() * 2_000) * 2
const ports = [firstPort, firstPort + 1]
beforeAll(async () => {
  stack = await startStack({ environment: { SDP_INSTANCE_PORT_RANGE: ports.join('-') } })
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const docker = () => new Docker({ socketPath: inject('engine').socket })
const ofInstallation = { filters: { label: [`com.sdp-mcp.installation=${testInstallation}`] } }

/** Everything that a user leaves somewhere: rows, roles, containers, networks. */
async function traces() {
  const [counts] = await stack.sql(`
    select (select count(*)::integer from users) as users, (select count(*)::integer from api_keys) as keys,
           (select count(*)::integer from data_keys) as data_keys, (select count(*)::integer from oauth_tokens) as tokens,
           (select count(*)::integer from pg_roles r where rolname like 'sdpmcp\\_u\\_%'
              and exists (select 1 from users u where r.rolname = 'sdpmcp_u_' || replace(u.id::text, '-', ''))) as roles`)
  const containers = await docker().listContainers({ all: true, ...ofInstallation })
  const networks = await docker().listNetworks(ofInstallation)
  return { ...counts, containers: containers.length, networks: networks.length }
}

function expectProblem(answer: Answer, status: number, code: string) {
  expect([answer.status, answer.body?.code, answer.headers.get('content-type')]).toEqual([
    status,
    code,
    'application/problem+json',
  ])
  expect(answer.body.detail.length).toBeGreaterThan(20)
  expect(answer.body.status).toBe(status)
  if (status === 503) expect(answer.headers.get('retry-after')).toMatch(/^\d+$/)
}

/** Another program that holds a port. */
async function occupy(port: number): Promise<{ leave(): Promise<void> }> {
  const server = createServer(socket => socket.destroy())
  await eventually(
    () =>
      new Promise<boolean>((done, failed) => {
        server.once('error', failed)
        server.listen(port, '127.0.0.1', () => done(true))
      }),
    { what: `holding port ${port}` },
  )
  return { leave: () => new Promise(done => server.close(() => done())) }
}

const grant = async (user: string, more: Record<string, unknown> = {}) => {
  const { clientId, clientSecret, code } = await stack.simulator.createGrantCode({ user, ...more })
  return { clientId, clientSecret, grantCode: code }
}

test('bodies that do not fit are refused with every wrong place named, and change nothing', async () => {
  const before = await traces()
  const cases: [body: unknown, code: string, status: number, pointers: string[], headers?: Record<string, string>][] = [
    [{ username: 'Alice' }, 'request-invalid', 400, ['#/username']],
    [{ username: 'a' }, 'request-invalid', 400, ['#/username']],
    [{ username: 'alice-' }, 'request-invalid', 400, ['#/username']],
    [{ username: '../etc' }, 'request-invalid', 400, ['#/username']],
    [
      { username: 'alice', nickname: 'al', sdp: { portal: 'itdesk', secret: 'x' } },
      'request-invalid',
      400,
      ['#/nickname', '#/sdp/secret'],
    ],
    [
      { username: 'alice', readOnly: 'yes', toolsets: 'core', email: 'x' },
      'request-invalid',
      400,
      ['#/email', '#/readOnly', '#/toolsets'],
    ],
    [{ username: 'alice', toolsets: ['everything'] }, 'request-invalid', 400, ['#/toolsets/0']],
    [{ username: 'alice', sdp: { baseUrl: 'ftp://files.example.com' } }, 'request-invalid', 400, ['#/sdp/baseUrl']],
    [{ username: 'alice', sdp: { grantCode: '1000.a.b' } }, 'client-missing', 422, ['#/sdp/clientId']],
    ['{"username": "alice"', 'body-malformed', 400, []],
    ['', 'body-missing', 400, []],
    [undefined, 'body-missing', 400, []],
    ['username=alice', 'content-type-unsupported', 415, [], { 'content-type': 'application/x-www-form-urlencoded' }],
  ]
  for (const [body, code, status, pointers, headers] of cases) {
    const answer = await stack.admin('POST', '/v1/users', body, headers)
    expectProblem(answer, status, code)
    expect((answer.body.errors ?? []).map((error: { pointer: string }) => error.pointer).sort()).toEqual(pointers)
  }
  expect(await traces()).toEqual(before)
})

test.each([
  ['an expired grant code', async () => grant('alice', { expiresInSeconds: -1 }), 'grant-code-rejected'],
  [
    'a made-up grant code',
    async () => ({ ...(await grant('alice')), grantCode: `1000.${'0'.repeat(32)}.${'0'.repeat(32)}` }),
    'grant-code-rejected',
  ],
  [
    'a wrong client secret',
    async () => ({ ...(await grant('alice')), clientSecret: 'f'.repeat(42) }),
    'client-rejected',
  ],
  [
    'a refresh token that Zoho does not know',
    async () => {
      const { grantCode: _code, ...client } = await grant('alice')
      return { ...client, refreshToken: `1000.${'1'.repeat(32)}.${'1'.repeat(32)}` }
    },
    'refresh-token-rejected',
  ],
  ['an unknown portal', async () => ({ ...(await grant('alice')), portal: 'no-such-desk' }), 'portal-unknown'],
])('%s is told at once when the caller waits, and no user is left', async (_what, sdp, code) => {
  const before = await traces()
  const answer = await stack.admin('POST', '/v1/users', { username: 'alice', sdp: await sdp() }, { prefer: 'wait=60' })
  expectProblem(answer, 422, code)
  expect(await traces()).toEqual(before)
})

test('a duplicate user is 409 and the first one is unharmed; a rejected new code leaves the old grant in force', async () => {
  const alice = await stack.addUser('alice')
  const before = await traces()
  expectProblem(
    await stack.admin('POST', '/v1/users', { username: 'alice', sdp: await grant('bob') }),
    409,
    'user-exists',
  )
  expectProblem(
    await stack.admin('POST', '/v1/users/alice/authorization', {
      grantCode: `1000.${'2'.repeat(32)}.${'2'.repeat(32)}`,
    }),
    422,
    'grant-code-rejected',
  )
  expectProblem(
    await stack.admin('POST', '/v1/users/alice/authorization', {
      refreshToken: `1000.${'3'.repeat(32)}.${'3'.repeat(32)}`,
    }),
    422,
    'refresh-token-rejected',
  )
  expectProblem(await stack.admin('POST', '/v1/users/alice/authorization', {}), 400, 'request-invalid')
  expect((await stack.admin('GET', '/v1/users/alice')).body.sdp.connection).toBe('connected')
  const { grantCode } = await grant('alice')
  const accepted = await stack.admin('POST', '/v1/users/alice/authorization', { grantCode })
  expect([accepted.status, accepted.body.connection]).toEqual([200, 'connected'])
  expect(await traces()).toEqual(before)
  await using client = await connect('mcp', alice.mcp, alice.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('when every port is taken, the next user is refused and nothing is left; a removed user makes room', async () => {
  // one port is alice's; another program holds the other
  const [{ port }] = (await stack.sql<{ port: number }>('select port from instances where port is not null')) as [
    { port: number },
  ]
  const other = ports.find(candidate => candidate !== port)!
  const squatter = await occupy(other)
  const before = await traces()
  expectProblem(
    await stack.admin('POST', '/v1/users', { username: 'carol', sdp: await grant('carol') }, { prefer: 'wait=60' }),
    503,
    'port-range-exhausted',
  )
  expect(await traces()).toEqual(before)
  await squatter.leave()
  await stack.addUser('carol')
  const full = await traces()
  expectProblem(
    await stack.admin('POST', '/v1/users', { username: 'dave', sdp: await grant('dave') }),
    503,
    'port-range-exhausted',
  )
  expect(await traces()).toEqual(full)
  expect((await stack.admin('DELETE', '/v1/users/carol')).status).toBe(204)
  await stack.addUser('dave')
  expect((await stack.admin('DELETE', '/v1/users/dave')).status).toBe(204)
})

test('with the image missing or the engine down, a new user is refused with the reason and nothing is left; running users go on', async () => {
  const { body } = await stack.admin('POST', '/v1/users/alice/api-keys')
  const before = await traces()
  for (const [environment, code] of [
    [{ SDP_INSTANCE_IMAGE: 'sdp-mcp/no-such-image:dev' }, 'image-missing'],
    [{ SDP_DOCKER_SOCKET: 'unix:///nonexistent/docker.sock' }, 'engine-unreachable'],
  ] as [Record<string, string>, string][]) {
    await stack.controlPlane().stop()
    await stack.startControlPlane(environment)
    const answer = await stack.admin(
      'POST',
      '/v1/users',
      { username: 'erin', sdp: await grant('carol') },
      { prefer: 'wait=30' },
    )
    expectProblem(answer, 503, code)
    expect((await stack.sql("select 1 from users where username = 'erin'")).length).toBe(0)
    const ready = await fetch(`${stack.publicUrl}/readyz`)
    expect([(await fetch(`${stack.publicUrl}/healthz`)).status, ready.status]).toEqual([
      200,
      code === 'engine-unreachable' ? 503 : 200,
    ])
  }
  await stack.controlPlane().stop()
  await stack.startControlPlane()
  expect(await traces()).toEqual(before)
  await using client = await connect('mcp', `${stack.publicUrl}/u/alice/mcp`, body.apiKey.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('without its database the control plane does not start and says why; when it is lost later, clients go on and admins get 503', async () => {
  const { body } = await stack.admin('POST', '/v1/users/alice/api-keys')
  await using client = await connect('mcp', `${stack.publicUrl}/u/alice/mcp`, body.apiKey.key)
  // lost later: nobody may log in or stay logged in to this database but its superuser
  const { database } = stack.database
  const { default: pg } = await import('pg')
  const owner = new pg.Client({ ...stack.database, database: 'postgres' })
  await owner.connect()
  await owner.query(`alter database ${database} with allow_connections false`)
  await owner.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [database])
  const refused = await stack.admin('POST', '/v1/users', { username: 'frank' })
  expectProblem(refused, 503, 'database-unavailable')
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  expect((await fetch(`${stack.publicUrl}/readyz`)).status).toBe(503)
  await owner.query(`alter database ${database} with allow_connections true`)
  await owner.end()
  await eventually(async () => (await stack.admin('GET', '/v1/users/alice')).status === 200, { what: 'the recovery' })
  expect((await stack.admin('GET', '/v1/users/frank')).status).toBe(404)

  await stack.controlPlane().stop()
  const failure = await stack.startControlPlane({ SDP_DB_PASSWORD: 'not-the-password-at-all' }).catch(error => error)
  expect(failure).toBeInstanceOf(ExitedAtStart)
  expect(failure.output).toMatch(/cannot be used as sdpmcpservice: .*password authentication failed.*SDP_DB_PASSWORD/s)
  expect(failure.output).not.toContain('not-the-password-at-all')
  await stack.startControlPlane()
})

test('missing and weak secrets stop the start, all named at once, none printed', async () => {
  const empty = join(tmpdir(), `sdp-mcp-empty-${process.pid}`)
  await stack.controlPlane().stop()
  const failure = await stack
    .startControlPlane({
      SDP_ADMIN_TOKEN: 'short-admin-token',
      SDP_MASTER_KEY: Buffer.alloc(32, 7).toString('base64'),
      SDP_DB_PASSWORD: '',
      SDP_HTTP_PORT: 'x',
    })
    .catch(error => error)
  expect(failure).toBeInstanceOf(ExitedAtStart)
  for (const name of ['SDP_ADMIN_TOKEN', 'SDP_MASTER_KEY', 'SDP_DB_PASSWORD', 'SDP_HTTP_PORT'])
    expect(failure.output).toContain(name)
  expect(failure.output).not.toContain('short-admin-token')
  expect(failure.code).toBe(78)
  await rm(empty, { force: true })
  await stack.startControlPlane()
})
