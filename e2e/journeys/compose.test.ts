import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import Docker from 'dockerode'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, expect, inject, test } from 'vitest'
import { removeInstallation } from '../../control-plane/evaluation/docker-engine.ts'
import { ed25519, jwt, runInside, signingKeyOf } from '../support/attacker.ts'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack } from '../support/stack.ts'

// `docker compose up` as ops run it, with the simulator's overlay in place of Zoho.

const run = promisify(execFile)
const root = dirname(dirname(import.meta.dirname))
// sorts before most names, which once moved the published ports to the first user's network
const installation = '0-e2e-compose'
const project = 'sdp-mcp-e2e'
const files = ['-f', 'compose/compose.yaml', '-f', 'compose/simulator.yaml', '-p', project]
const socketProxy = ['-f', 'compose/socket-proxy.yaml']
const ports = { http: '13456', admin: '13457', database: '15433', simulator: '13460' }
let secrets: string
let environment: NodeJS.ProcessEnv
let compose: (...args: string[]) => Promise<{ stdout: string; stderr: string }>
let docker: Docker
// biome-ignore lint/suspicious/noExplicitAny: answers are read by field
let admin: (method: string, path: string, body?: unknown) => Promise<{ status: number; body: any }>
// of alice
let endpoints: { sse: string; mcp: string }
let apiKey: { key: string }
let adminToken: string

beforeAll(async () => {
  const engine = inject('engine')
  const taken = await new Docker({ socketPath: engine.socket }).listContainers({
    all: true,
    filters: { name: ['sdp-mcp-postgres', 'sdp-mcp-control-plane'] },
  })
  const foreign = taken.filter(container => container.Labels['com.docker.compose.project'] !== project)
  if (foreign.length > 0)
    throw new Error(
      'This engine already runs an installation of sdp-mcp. Run the tests on another engine (DOCKER_HOST), or skip them with SKIP_DOCKER=1.',
    )
  secrets = await mkdtemp(join(tmpdir(), 'sdp-mcp-secrets-'))
  const { stdout: images } = await run(join(root, 'docker/images.sh'), ['--print-env'], {
    env: { ...process.env, DOCKER_HOST: engine.host },
  })
  environment = {
    ...process.env,
    ...Object.fromEntries(
      images
        .trim()
        .split('\n')
        .map(line => line.split('=') as [string, string]),
    ),
    DOCKER_HOST: engine.host,
    DOCKER_SOCKET: engine.socket,
    SDP_SECRETS_DIR: secrets,
    SDP_INSTALLATION: installation,
    SDP_HTTP_HOST: '127.0.0.1',
    SDP_HTTP_PORT: ports.http,
    SDP_ADMIN_PORT: ports.admin,
    SDP_DB_PORT: ports.database,
    SDP_SIMULATOR_PORT: ports.simulator,
    SDP_PUBLIC_URL: `http://127.0.0.1:${ports.http}`,
    SDP_POSTGRES_VOLUME: 'sdp-mcp-e2e-data',
    COMPOSE_HTTP_TIMEOUT: '180',
  }
  const plugin = await run('docker', ['compose', 'version']).then(
    () => true,
    () => false,
  )
  compose = (...args) =>
    run(plugin ? 'docker' : 'docker-compose', [...(plugin ? ['compose'] : []), ...args], {
      cwd: root,
      env: environment,
      maxBuffer: 64 * 1024 * 1024,
    })
  await cleanUp()
})
afterAll(async () => {
  await cleanUp()
  await rm(secrets, { recursive: true, force: true })
})

// what the control plane said explains most failures, and its container is gone afterwards
afterEach(async ({ task }) => {
  if (task.result?.state !== 'fail') return
  const said = await run('docker', ['logs', '--tail', '40', 'sdp-mcp-control-plane'], { env: environment }).catch(
    String,
  )
  const states = await run('docker', ['ps', '-a', '--format', '{{.Names}} {{.Status}}'], { env: environment })
  process.stderr.write(`${states.stdout}\n${typeof said === 'string' ? said : said.stdout + said.stderr}\n`)
})

async function cleanUp() {
  await removeInstallation({ socket: inject('engine').socket, version: '', hostAddress: '' }, installation)
  environment.SDP_SECRETS_DIR = secrets
  await compose(...files, ...socketProxy, 'down', '-v', '--remove-orphans')
}

test('without secrets it refuses to start and says how to make them', async () => {
  const { SDP_SECRETS_DIR: _none, ...without } = environment
  environment = without
  const failure = await compose('-f', 'compose/compose.yaml', '-p', project, 'up', '-d').catch(error => error)
  environment = { ...without, SDP_SECRETS_DIR: secrets }
  expect(String(failure.stderr)).toContain('make-secrets.sh')
  const containers = await new Docker({ socketPath: inject('engine').socket }).listContainers({
    all: true,
    filters: { label: [`com.docker.compose.project=${project}`] },
  })
  expect(containers).toEqual([])
})

test('up from nothing serves the journey of an admin and a technician, and the runbook commands work', async () => {
  await run(join(root, 'compose/make-secrets.sh'), [], { cwd: root, env: environment })
  await compose(...files, 'up', '-d', '--no-build')
  adminToken = (await readFile(join(secrets, 'admin_token'), 'utf8')).trim()
  admin = async (method, path, body) => {
    const response = await fetch(`http://127.0.0.1:${ports.admin}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${adminToken}`,
        prefer: 'wait=60',
        ...(body ? { 'content-type': 'application/json' } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
    })
    const text = await response.text()
    return { status: response.status, body: text ? JSON.parse(text) : undefined }
  }
  await eventually(async () => (await fetch(`http://127.0.0.1:${ports.http}/readyz`)).status === 200, {
    withinMs: 90_000,
    what: 'readiness',
  })

  const grant = (await (
    await fetch(`http://127.0.0.1:${ports.simulator}/_sim/grant-codes`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ user: 'alice' }),
    })
  ).json()) as Record<string, string>
  const added = await admin('POST', '/v1/users', {
    username: 'alice',
    sdp: { clientId: grant.clientId, clientSecret: grant.clientSecret, grantCode: grant.code },
  })
  expect([added.status, added.body?.detail, added.body?.user?.sdp?.connection]).toEqual([201, undefined, 'connected'])
  ;({ endpoints, apiKey } = added.body)
  for (const kind of ['sse', 'mcp'] as const) {
    await using client = await connect(kind, endpoints[kind], apiKey.key)
    const created = await callTool(client, 'create_request', {
      subject: `Docking station dead (${kind})`,
      allow_duplicate: true,
    })
    expect(JSON.stringify(created)).toContain(`Docking station dead (${kind})`)
    const found = await callTool(client, 'search_requests', { text: 'Docking station dead' })
    expect(found.requests.length).toBeGreaterThan(0)
  }

  // the runbook's commands, as they stand there (a test has no terminal, hence no -t)
  const psql = async (sql: string) =>
    (
      await run(
        'docker',
        ['exec', '-i', 'sdp-mcp-postgres', 'psql', '-U', 'sdpmcpservice', '-d', 'sdp_mcp', '-c', sql],
        { env: environment },
      )
    ).stdout
  expect(await psql('SELECT client_id, last_refreshed_at FROM oauth_tokens;')).toContain(grant.clientId)
  const everything = await psql('SELECT * FROM oauth_tokens;')
  for (const secret of [grant.clientSecret!, grant.code!]) expect(everything).not.toContain(secret)
  expect(everything).not.toMatch(/1000\.[0-9a-f]{32}\.[0-9a-f]{32}/)
  expect(await psql('DELETE FROM oauth_access_tokens WHERE expires_at < NOW();')).toContain('DELETE 0')

  // whoever breaks into the control plane is neither superuser nor owner, and the audit holds against it
  const [, , role] = (
    await psql("SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = 'sdpmcp_control';")
  ).split('\n')
  expect(role!.replaceAll(' ', '')).toBe('f|f|t')
  expect(await psql("SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'sdp-mcp%';")).toMatch(
    /sdpmcp_control/,
  )
  expect(
    await psql(
      'SELECT count(*) FROM pg_class WHERE relowner = (SELECT oid FROM pg_roles WHERE rolname = $$sdpmcp_control$$);',
    ),
  ).toMatch(/^\s*0$/m)
  const asControlPlane = async (sql: string) =>
    psql(`SET ROLE sdpmcp_control; ${sql}`).catch(error => String(error.stderr))
  expect(await asControlPlane('DELETE FROM audit_events;')).toContain('permission denied')
  expect(await asControlPlane('TRUNCATE audit_events;')).toContain('permission denied')
  expect(await asControlPlane('SELECT count(*) > 0 AS audited FROM audit_events;')).toMatch(/^\s*t$/m)

  // it still can be the one that leads, although the locks for that are taken from everybody else
  await eventually(
    async () => {
      const metrics = await fetch(`http://127.0.0.1:${ports.admin}/metrics`, {
        headers: { authorization: `Bearer ${adminToken}` },
      })
      return (await metrics.text()).includes('sdp_mcp_leader 1')
    },
    { what: 'a leader' },
  )

  // another master key, as an operator does it
  const rotate = (argument: string) =>
    run(join(root, 'compose/make-secrets.sh'), [argument], { cwd: root, env: environment })
  await rotate('--rotate-master-key')
  expect((await admin('POST', '/v1/system/master-key/rewrap')).status).toBe(202)
  await eventually(
    async () => {
      const { remaining, running, keys } = (await admin('GET', '/v1/system')).body.masterKey
      return remaining === 0 && !running && keys.length === 2
    },
    { what: 'the rotation' },
  )
  await rotate('--forget-old-master-keys')

  // from inside the instance the control plane's container is on the same network, and says nothing on either listener
  const { containerId } = (await admin('GET', '/v1/users/alice')).body.instance
  const heard = await run(
    'docker',
    [
      ...['exec', containerId, 'node', '-e'],
      `const net = require('node:net')
       const hear = ([host, port]) => new Promise(done => {
         let text = 'open '
         const socket = net.connect({ host, port, timeout: 3000 }, () => socket.write('GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'))
         socket.on('data', data => { text += data.toString('latin1').slice(0, 12) }).on('close', () => done(text))
         socket.on('error', error => { if (error.code !== 'ECONNRESET') text = error.code }).on('timeout', () => socket.destroy())
       })
       Promise.all([['sdp-mcp-control-plane', ${ports.http}], ['sdp-mcp-control-plane', ${ports.admin}], ['sdp-mcp-simulator', 8080]].map(hear)).then(all => process.stdout.write(JSON.stringify(all)))`,
    ],
    { env: environment },
  )
  expect(JSON.parse(heard.stdout)).toEqual(['open ', 'open ', expect.stringMatching(/^open HTTP\/1\.1 \d{3}/)])

  // nothing secret in what the engine tells of any container
  docker = new Docker({ socketPath: inject('engine').socket })
  const secretTexts = await Promise.all(
    ['admin_token', 'master_key', 'db_password', 'control_plane_password'].map(async name =>
      (await readFile(join(secrets, name), 'utf8')).trim(),
    ),
  )
  for (const { Id } of await docker.listContainers({ all: true })) {
    const inspected = JSON.stringify(await docker.getContainer(Id).inspect())
    for (const secret of [...secretTexts, apiKey.key, grant.clientSecret!]) expect(inspected).not.toContain(secret)
  }

  // a restart of the control plane's container keeps instances and data
  const before = (
    await docker.listContainers({ filters: { label: [`com.sdp-mcp.installation=${installation}`] } })
  ).map(container => container.Id)
  await compose(...files, 'restart', 'control-plane')
  await eventually(async () => (await fetch(`http://127.0.0.1:${ports.http}/readyz`)).status === 200, {
    withinMs: 60_000,
    what: 'readiness',
  })
  await using client = await connect('mcp', endpoints.mcp, apiKey.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  expect(
    (await docker.listContainers({ filters: { label: [`com.sdp-mcp.installation=${installation}`] } })).map(
      container => container.Id,
    ),
  ).toEqual(before)
})

/** The commands below a heading of compose/README.md, with the overlays of this test. */
async function readmeCommands(heading: string): Promise<string[]> {
  const readme = await readFile(join(root, 'compose/README.md'), 'utf8')
  const section = readme.slice(readme.indexOf(`\n${heading}\n`)).slice(heading.length + 2)
  const end = section.indexOf('\n## ')
  const blocks = section.slice(0, end === -1 ? undefined : end).matchAll(/^```bash\n([\s\S]*?)^```/gm)
  const { stdout: plugin } = await run('bash', ['-c', 'docker compose version >/dev/null 2>&1 && echo yes || true'])
  return [...blocks].map(([, commands]) =>
    commands!
      .replaceAll(
        'docker compose -f compose/compose.yaml',
        `${plugin ? 'docker compose' : 'docker-compose'} ${files.join(' ')}`,
      )
      .replaceAll('compose/secrets/', `${secrets}/`)
      .replaceAll('/somewhere/else', secrets)
      .replaceAll('sdp_mcp.dump', join(secrets, 'sdp_mcp.dump'))
      .replaceAll('localhost:3457', `127.0.0.1:${ports.admin}`),
  )
}
const bash = (commands: string) =>
  run('bash', ['-euo', 'pipefail', '-c', commands], { cwd: root, env: environment, maxBuffer: 64 * 1024 * 1024 })

test('another admin token takes the place of the one before, by the commands of the README', async () => {
  const [replace] = await readmeCommands('## Secrets')
  const before = (await readFile(join(secrets, 'admin_token'), 'utf8')).trim()
  await bash(replace!)
  adminToken = (await readFile(join(secrets, 'admin_token'), 'utf8')).trim()
  expect(adminToken).not.toBe(before)
  await eventually(async () => (await admin('GET', '/v1/users/alice').catch(() => undefined))?.status === 200, {
    withinMs: 90_000,
    what: 'an answer to the new token',
  })
  adminToken = before
  expect((await admin('GET', '/v1/users/alice')).status).toBe(401)
  adminToken = (await readFile(join(secrets, 'admin_token'), 'utf8')).trim()
}, 180_000)

test('a backup restored into a new volume brings everybody back, by the commands of the README', async () => {
  const [backUp, restore] = await readmeCommands('## Back up')
  await bash(backUp!.replace(/^cp .*$/m, ''))
  // only the stand-in of Zoho goes on: it knows the grants
  await compose(...files, 'rm', '-sf', 'control-plane', 'database-setup', 'postgres')
  await run('docker', ['volume', 'rm', 'sdp-mcp-e2e-data'], { env: environment })
  await compose(...files, 'up', '-d', '--no-build')
  await eventually(async () => (await fetch(`http://127.0.0.1:${ports.http}/readyz`)).status === 200, {
    withinMs: 90_000,
    what: 'readiness of an empty installation',
  })
  expect((await admin('GET', '/v1/users')).body.users).toEqual([])
  await bash(restore!)
  await eventually(async () => (await fetch(`http://127.0.0.1:${ports.http}/readyz`)).status === 200, {
    withinMs: 90_000,
    what: 'readiness after the restore',
  })
  // with the key and the grant of before: nobody authorises anew
  await eventually(async () => (await admin('GET', '/v1/users/alice')).body.instance.state === 'ready', {
    withinMs: 90_000,
    what: 'the instance of a user who was restored',
  })
  await using client = await connect('mcp', endpoints.mcp, apiKey.key)
  const created = await callTool(client, 'create_request', { subject: 'Dock is back', allow_duplicate: true })
  expect(JSON.stringify(created)).toContain('Dock is back')
}, 400_000)

test('with the filter in front of the Docker socket nothing changes but who holds the socket', async () => {
  await compose(...files, ...socketProxy, 'up', '-d', '--no-build')
  await eventually(async () => (await fetch(`http://127.0.0.1:${ports.http}/readyz`)).status === 200, {
    withinMs: 90_000,
    what: 'readiness behind the socket proxy',
  })
  const { HostConfig, Config } = await docker.getContainer('sdp-mcp-control-plane').inspect()
  expect(HostConfig.Binds?.join()).not.toContain(inject('engine').socket)
  expect(Config.User).toBe('10001:10001')
  expect((await admin('POST', '/v1/users', { username: 'bob' })).status).toBe(201)
  const bobs = await eventually(
    async () => {
      const { instance } = (await admin('GET', '/v1/users/bob')).body
      return instance.state === 'ready' && instance
    },
    { withinMs: 60_000, what: 'an instance started through the filter' },
  )
  expect(bobs.containerId).toMatch(/^[0-9a-f]{64}$/)
  expect((await admin('POST', '/v1/users/bob/instance/stop')).status).toBe(202)
  await using again = await connect('mcp', endpoints.mcp, apiKey.key)
  expect((await again.listTools()).tools.length).toBeGreaterThan(0)
})

test('with restricted egress an instance works on a network that leads nowhere, through a proxy that leads to its hosts only', async () => {
  environment = { ...environment, SDP_EGRESS: 'restricted' }
  await compose(...files, ...socketProxy, '-f', 'e2e/support/restricted.compose.yaml', 'up', '-d', '--no-build')
  await eventually(async () => (await fetch(`http://127.0.0.1:${ports.http}/readyz`)).status === 200, {
    withinMs: 150_000,
    what: 'readiness with restricted egress',
  })
  // as an operator does who will not wait until nobody uses it
  expect((await admin('POST', '/v1/users/alice/instance/restart')).status).toBe(202)
  const restricted = await eventually(
    async () => {
      const { state, containerId } = (await admin('GET', '/v1/users/alice')).body.instance
      if (state !== 'ready') return undefined
      const { NetworkSettings } = await docker.getContainer(containerId).inspect()
      const [network] = await Promise.all(
        Object.keys(NetworkSettings.Networks).map(name => docker.getNetwork(name).inspect()),
      )
      return network?.Internal
        ? { containerId, gateway: Object.values(NetworkSettings.Networks)[0]!.Gateway }
        : undefined
    },
    { withinMs: 90_000, what: 'an instance on a network of its own that leads nowhere' },
  )
  await using outside = await connect('mcp', endpoints.mcp, apiKey.key)
  expect(
    (await callTool(outside, 'search_requests', { text: 'Docking station dead' })).requests.length,
  ).toBeGreaterThan(0)
  const pool = new pg.Pool({
    host: '127.0.0.1',
    port: Number(ports.database),
    user: 'sdpmcpservice',
    database: 'sdp_mcp',
    password: (await readFile(join(secrets, 'db_password'), 'utf8')).trim(),
  })
  const stolen = {
    sql: async (text: string, values?: unknown[]) => (await pool.query(text, values)).rows,
    masterKey: (await readFile(join(secrets, 'master_key'), 'utf8')).trim(),
  } as unknown as Stack
  const { kid, privateKey } = await signingKeyOf(stolen)
  const [{ id, generation }] = (await pool.query("select id, generation::integer from users where username = 'alice'"))
    .rows as [{ id: string; generation: number }]
  await pool.end()
  const claims = { iss: 'sdp-mcp', aud: 'egress', sub: id, generation }
  const leave = jwt({ alg: 'EdDSA', kid }, claims, ed25519(privateKey))
  const simulatorAddress = (await docker.getContainer('sdp-mcp-simulator').inspect()).NetworkSettings.Networks[
    'sdp-mcp--backend'
  ]!.IPAddress
  const seen = await runInside(
    restricted.containerId,
    `
const { connect } = await import('node:net'); const { lookup } = await import('node:dns/promises')
const reach = ([host, port]) => new Promise(done => {
  const socket = connect({ host, port, timeout: 2500 }, () => { done('open'); socket.destroy() })
  socket.on('error', error => done(error.code)).on('timeout', () => { done('silence'); socket.destroy() })
})
const tunnel = (target, token) => new Promise(done => {
  let heard = ''
  const socket = connect({ host: 'sdp-mcp-control-plane', port: 3458, timeout: 8000 }, () =>
    socket.write('CONNECT ' + target + ' HTTP/1.1\\r\\nHost: x\\r\\n' + (token ? 'Proxy-Authorization: Bearer ' + token + '\\r\\n' : '') + '\\r\\n'))
  socket.on('data', data => { heard += data; socket.destroy() }).on('error', () => {}).on('timeout', () => socket.destroy())
  socket.on('close', () => done([target, heard.slice(9, 12)]))
})
const name = host => lookup(host).then(() => [host, 'found'], () => [host, 'unknown'])
const all = (list, ask) => Promise.all(list.map(ask))
tell({
  near: await all([['sdp-mcp-postgres', 5432], ['sdp-mcp-control-plane', 3458]], reach),
  far: await all(${JSON.stringify([
    [simulatorAddress, 8080],
    [restricted.gateway || '172.17.0.1', 22],
    [inject('engine').hostAddress, Number(ports.database)],
    ['169.254.169.254', 80],
    ['192.0.2.1', 443],
  ])}, reach),
  names: await all(['sdp-mcp-postgres', 'sdp-mcp-simulator', 'desk.example'], name),
  tunnels: await all(['sdp-mcp-simulator:8080', 'sdp-mcp-simulator:443', '${simulatorAddress}:8080', 'sdp-mcp-postgres:5432', 'sdp-mcp-control-plane:${ports.admin}', '169.254.169.254:80', '192.0.2.1:443', 'desk.example:443'], target => tunnel(target, '${leave}')),
  strangers: await all(['sdp-mcp-simulator:8080'], target => tunnel(target)),
})`,
  )
  expect(seen.near).toEqual(['open', 'open'])
  expect(seen.far).not.toContain('open')
  expect(Object.fromEntries(seen.names)).toEqual({
    'sdp-mcp-postgres': 'found',
    'sdp-mcp-simulator': 'unknown',
    'desk.example': 'unknown',
  })
  const [[allowed, answer], ...others] = seen.tunnels
  expect([allowed, answer]).toEqual(['sdp-mcp-simulator:8080', '200'])
  expect(others).toEqual(others.map(([target]: [string]) => [target, '403']))
  expect(seen.strangers).toEqual([['sdp-mcp-simulator:8080', '407']])
  const refused = (await admin('GET', '/v1/audit?user=alice&action=instance.egress-refused')).body.events
  expect(refused[0]).toMatchObject({ actor: 'instance:alice', detail: { outcome: 'refused' } })

  expect((await admin('DELETE', '/v1/users/bob')).status).toBe(204)
  expect((await admin('DELETE', '/v1/users/alice')).status).toBe(204)
  const { stderr: refusals } = await run('docker', ['logs', 'sdp-mcp-socket-proxy'], { env: environment })
  expect(refusals).toContain('listening')
  expect(refusals).not.toContain('refused')
}, 300_000)
