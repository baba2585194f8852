import { type ChildProcess, spawn } from 'node:child_process'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { generateSealingKey } from '@sdp-mcp/instance/seal'
import { cloneDatabase, type DatabaseConnection, freePort } from '@sdp-mcp/migrations/testing'
import { afterAll, afterEach, beforeAll, expect, inject, test } from 'vitest'
import { createDb } from './db.ts'
import { eventually } from './fleet/testing/support.ts'
import { fixedKeyring } from './keyring.ts'
import { testConfig, testSecrets } from './testing/config.ts'
import { dismissEverybody } from './testing/database.ts'
import { createUsers } from './users.ts'
import { createVault } from './vault.ts'

let database: DatabaseConnection & AsyncDisposable
let admin: { host: string; port: number }
const running: ChildProcess[] = []
beforeAll(async () => {
  database = await cloneDatabase(inject('postgres'))
})
afterEach(async () => {
  for (const child of running.splice(0)) if (child.exitCode === null) child.kill('SIGKILL')
})
afterAll(async () => {
  if (!database) return
  const db = createDb({ ...database })
  const vault = createVault({ db, keyring: fixedKeyring(testConfig().masterKey) })
  await dismissEverybody(db, vault)
  await db.close()
  await database[Symbol.asyncDispose]()
})

type Started = { child: ChildProcess; output(): string; exit: Promise<number | null>; publicPort: number }

async function start(environment: Record<string, string> = {}): Promise<Started> {
  const [publicPort, adminPort] = [await freePort(), await freePort()]
  admin = { host: '127.0.0.1', port: adminPort }
  const child = spawn(process.execPath, [join(import.meta.dirname, 'main.ts')], {
    env: {
      PATH: process.env.PATH,
      SDP_ADMIN_TOKEN: testSecrets.adminToken,
      SDP_MASTER_KEY: testSecrets.masterKey,
      SDP_DB_HOST: database.host,
      SDP_DB_PORT: String(database.port),
      SDP_DB_NAME: database.database,
      SDP_DB_USER: database.user,
      SDP_DB_PASSWORD: database.password,
      SDP_HTTP_HOST: '127.0.0.1',
      SDP_HTTP_PORT: String(publicPort),
      SDP_ADMIN_PORT: String(adminPort),
      SDP_RUNTIME: 'process',
      SDP_INSTANCE_ENTRY: join(import.meta.dirname, 'testing', 'slow-instance.ts'),
      SDP_INSTANCE_PORT_RANGE: '31000-31099',
      SDP_INSTANCE_NAME: 'itdesk',
      ...environment,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  running.push(child)
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', chunk => {
      output += chunk
    })
  const exit = new Promise<number | null>(done => child.once('close', code => done(code)))
  return { child, output: () => output, exit, publicPort }
}

const listening = (started: Started) =>
  eventually('listening', () => started.output().includes('control-plane.listening'), 15_000).catch(error => {
    throw new Error(started.output(), { cause: error })
  })

function ask(
  port: number,
  method: string,
  path: string,
  { token, body, agent }: { token?: string; body?: unknown; agent?: Agent } = {},
): Promise<IncomingMessage> {
  return new Promise((done, failed) => {
    const request = httpRequest({
      port,
      host: '127.0.0.1',
      method,
      path,
      agent: agent ?? false,
      headers: {
        ...(token ? { authorization: `Bearer ${token}` } : {}),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
    })
    request.once('response', done).once('error', failed)
    request.end(body === undefined ? undefined : JSON.stringify(body))
  })
}
async function json(response: IncomingMessage) {
  let text = ''
  for await (const chunk of response) text += chunk
  return text === '' ? undefined : JSON.parse(text)
}

test('what is wrong with the configuration is told at once, in full, and without a secret', async () => {
  const { output, exit } = await start({ SDP_ADMIN_TOKEN: 'short-Wd39', SDP_MASTER_KEY: '', SDP_HTTP_PORT: 'x' })
  expect(await exit).toBe(78)
  expect(output()).toContain('sdp-mcp: the configuration has 3 problems:')
  expect(output()).toContain('openssl rand -base64 32')
  expect(output()).toContain('.env.example')
  expect(output()).not.toContain('Wd39')
})

test('a database that refuses the password is told with what to check, without waiting', async () => {
  const before = Date.now()
  const { output, exit } = await start({ SDP_DB_PASSWORD: 'not-the-password-Wd39' })
  expect(await exit).toBe(69)
  expect(Date.now() - before).toBeLessThan(10_000)
  expect(output()).toContain('Check SDP_DB_USER, SDP_DB_PASSWORD and SDP_DB_NAME.')
  expect(output()).not.toContain('Wd39')
})

test('a port that is taken is named', async () => {
  const port = await freePort()
  const taken = createServer()
  await new Promise<void>(done => taken.listen(port, '127.0.0.1', done))
  const { output, exit } = await start({ SDP_HTTP_PORT: String(port) })
  expect(await exit).toBe(69)
  expect(output()).toContain(`port ${port} on 127.0.0.1 is taken by another program`)
  taken.close()
})

test('with several workers, what keeps one from starting is told once, and all end', async () => {
  const port = await freePort()
  const taken = createServer()
  await new Promise<void>(done => taken.listen(port, '127.0.0.1', done))
  const { output, exit } = await start({
    SDP_WORKERS: '3',
    SDP_RUNTIME: 'docker',
    SDP_DOCKER_SOCKET: 'unix:///nowhere/docker.sock',
    SDP_HTTP_PORT: String(port),
  })
  expect(await exit).toBe(69)
  expect(output().match(/^sdp-mcp: port .* is taken by another program/gm)).toHaveLength(1)
  taken.close()
})

test('with another master key it does not start, and says which one it needs', async () => {
  const first = await start()
  await listening(first)
  const asked = Date.now()
  first.child.kill('SIGTERM')
  expect(await first.exit).toBe(0)
  expect(Date.now() - asked, first.output()).toBeLessThan(7_500)
  const { output, exit } = await start({ SDP_MASTER_KEY: generateSealingKey().bytes.toString('base64') })
  expect(await exit).toBe(69)
  expect(output()).toMatch(/sealed with the master key [0-9a-f]{12}, which is not configured/)
})

test('it starts while a user is suspended and another is being removed', async () => {
  const db = createDb({ ...database })
  const config = testConfig()
  const users = createUsers({ db, vault: createVault({ db, keyring: fixedKeyring(config.masterKey) }), config })
  await users.create({ username: 'suspended' }, 'admin')
  await users.change('suspended', { suspended: true }, 'admin')
  await users.create({ username: 'removed' }, 'admin')
  await users.remove('removed', 'admin')
  const started = await start()
  await listening(started)
  await eventually(
    'removed',
    async () => (await db.query("select 1 from users where username = 'removed'")).length === 0,
  )
  await db.close()
  started.child.kill('SIGTERM')
  expect(await started.exit, started.output()).toBe(0)
})

test('V8 knows what it is asked for', async () => {
  const started = await start()
  await listening(started)
  // it tells of a flag that it does not know, and goes on without it
  expect(started.output()).not.toMatch(/unrecognized flag|Try --help/i)
  started.child.kill('SIGTERM')
  expect(await started.exit).toBe(0)
})

test('asked to end, it ends streams, lets a call finish, closes what is kept open for the next request, and exits with 0', async () => {
  const started = await start()
  await listening(started)
  const { apiKey } = await json(
    await ask(admin.port, 'POST', '/v1/users', { token: testSecrets.adminToken, body: { username: 'alice' } }),
  )
  const { key } = apiKey
  const keepAlive = new Agent({ keepAlive: true })
  for (const port of [started.publicPort, admin.port])
    await json(await ask(port, 'GET', '/healthz', { agent: keepAlive }))

  const stream = await ask(started.publicPort, 'GET', '/mcp', { token: key })
  expect(stream.headers['content-type']).toBe('text/event-stream')
  let streamEnded = 0
  stream.on('error', () => {}).on('data', () => {})
  stream.on('close', () => {
    streamEnded = Date.now()
  })
  const call = ask(started.publicPort, 'POST', '/u/alice/mcp', { token: key, body: { id: 1 }, agent: keepAlive })
  await new Promise(done => setTimeout(done, 300))

  const asked = Date.now()
  started.child.kill('SIGTERM')
  let text = ''
  for await (const chunk of await call) text += chunk
  expect(text).toBe('finished')
  // at once, and not with the call
  expect(streamEnded).toBeGreaterThan(0)
  expect(streamEnded).toBeLessThan(Date.now() - 200)
  expect(await started.exit, started.output()).toBe(0)
  // it did not wait for the connections that are kept open
  expect(Date.now() - asked).toBeLessThan(7_500)
  keepAlive.destroy()

  // what a day of work left in its log
  for (const secret of [key.slice(11), testSecrets.adminToken, testSecrets.masterKey, database.password])
    expect(started.output()).not.toContain(secret)
  for (const line of started.output().split('\n').filter(Boolean)) expect(() => JSON.parse(line)).not.toThrow()
})
