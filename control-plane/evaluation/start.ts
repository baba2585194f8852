import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { createWriteStream, existsSync } from 'node:fs'
import { chmod, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { everybodyReaches, startEmbeddedPostgres } from '@sdp-mcp/migrations/embedded'
import { type Engine, findEngine, hasImage, removeInstallation } from './docker-engine.ts'

/**
 * `npm start`: the whole product on one machine, to look at. Starts PostgreSQL, the simulator (unless .env names a real
 * ServiceDesk Plus) and the control plane, adds a demo user, prints how to connect, and takes all of it away on Ctrl-C.
 * Data and secrets stay in the data folder for the next start.
 */

const root = dirname(dirname(import.meta.dirname))
const demoUser = 'alice'
const installation = process.env.SDP_INSTALLATION ?? 'evaluation'
const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'

const say = (text: string) => process.stdout.write(`${text}\n`)
const stops: (() => Promise<void>)[] = []
let stopping: Promise<void> | undefined

if (existsSync(join(root, '.env'))) process.loadEnvFile(join(root, '.env'))
const real = Boolean(process.env.SDP_INSTANCE_NAME)
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => void stop(0))

try {
  await start()
} catch (error) {
  process.stderr.write(`\nsdp-mcp could not start: ${error instanceof Error ? error.message : String(error)}\n`)
  await stop(1)
}

async function start(): Promise<void> {
  const data = await dataFolder()
  await claim(data)
  const secrets = await loadSecrets(data)
  const logs = join(data, 'logs')
  await mkdir(logs, { recursive: true })
  say(`sdp-mcp: starting${real ? '' : ' an evaluation with a simulated ServiceDesk Plus'}; data in ${data}`)

  const { runtime, engine } = await chooseRuntime()
  const database = {
    port: await freePort(Number(process.env.SDP_DB_PORT ?? 5433)),
    user: 'sdpmcpservice',
    password: secrets.databasePassword,
  }
  await step(`PostgreSQL on port ${database.port}`, async () => {
    const server = await startEmbeddedPostgres({
      folder: join(data, 'postgres'),
      ...database,
      listen: engine ? [engine.hostAddress] : [],
      log: logTo(join(logs, 'postgres.log')),
    })
    stops.push(() => server.stop())
    await server.ensureDatabase('sdp_mcp')
  })

  let simulator: string | undefined
  if (!real) {
    const host = engine?.hostAddress ?? '127.0.0.1'
    const port = await freePort(Number(process.env.SDP_SIMULATOR_PORT ?? 3458), host)
    simulator = `http://${host}:${port}`
    await step(`simulator of Zoho and ServiceDesk Plus on ${simulator}`, () =>
      startProgram('simulator', 'simulator/src/main.ts', {
        SDP_SIMULATOR_HOST: host,
        SDP_SIMULATOR_PORT: String(port),
        SDP_SIMULATOR_STATE_FILE: join(data, 'simulator.json'),
      }),
    )
    await untilOk(`${simulator}/healthz`, 'the simulator')
  }

  const publicPort = await portOrSay('SDP_HTTP_PORT', 3456)
  const adminPort = await portOrSay('SDP_ADMIN_PORT', 3457)
  const admin = `http://127.0.0.1:${adminPort}`
  if (engine) {
    const removeContainers = () => removeInstallation(engine, installation).then(() => {})
    await removeContainers()
    stops.push(removeContainers)
  }
  await step(`control plane on http://localhost:${publicPort}`, () =>
    startProgram('control-plane', 'control-plane/src/main.ts', {
      SDP_HTTP_HOST: process.env.SDP_HTTP_HOST ?? '127.0.0.1',
      SDP_HTTP_PORT: String(publicPort),
      SDP_ADMIN_HOST: '127.0.0.1',
      SDP_ADMIN_PORT: String(adminPort),
      SDP_ADMIN_TOKEN: secrets.adminToken,
      SDP_MASTER_KEY: secrets.masterKey,
      SDP_DB_HOST: '127.0.0.1',
      SDP_DB_PORT: String(database.port),
      SDP_DB_NAME: 'sdp_mcp',
      SDP_DB_USER: database.user,
      SDP_DB_PASSWORD: database.password,
      SDP_RUNTIME: runtime,
      SDP_INSTALLATION: installation,
      SDP_INSTANCE_IMAGE: image,
      ...(engine ? { SDP_DOCKER_SOCKET: `unix://${engine.socket}`, SDP_INSTANCE_DB_HOST: engine.hostAddress } : {}),
      ...(simulator
        ? {
            SDP_BASE_URL: simulator,
            SDP_ACCOUNTS_URL: simulator,
            SDP_INSTANCE_NAME: 'itdesk',
            SDP_DATA_CENTER: 'US',
            SDP_ALLOW_INSECURE_UPSTREAM: 'true',
          }
        : {}),
    }),
  )

  const call = adminClient(admin, secrets.adminToken)
  let setup: DemoUser | undefined
  await step(`demo user ${demoUser}`, async () => {
    setup = await ensureDemoUser(call, join(data, 'demo-user.json'), simulator)
  })
  say('')
  say(`Admin API    ${admin}   (description: ${admin}/docs)`)
  say(`             curl -H "Authorization: Bearer ${secrets.adminToken}" ${admin}/v1/users`)
  const sse = `${process.env.SDP_PUBLIC_URL ?? `http://localhost:${publicPort}`}/u/${demoUser}/sse`
  say(`SSE URL      ${sse}`)
  say('Claude Code  paste this line:')
  say('')
  say(`  claude mcp add --transport sse sdp ${sse} --header "Authorization: Bearer ${setup!.key}"`)
  say('')
  if (setup!.connection !== 'connected') {
    say(`${demoUser} is not authorized at Zoho yet. Make a grant code in the Zoho API console, then:`)
    say(
      `  curl -X POST -H "Authorization: Bearer ${secrets.adminToken}" -H 'content-type: application/json' -d '{"grantCode": "..."}' ${admin}/v1/users/${demoUser}/authorization`,
    )
  }
  say(`Logs in ${logs}. Ctrl-C stops everything; the data stays.`)
}

// ---- steps -------------------------------------------------------------------------------------------------------

async function chooseRuntime(): Promise<{ runtime: 'docker' | 'process'; engine?: Engine }> {
  const wanted = process.env.SDP_RUNTIME
  if (wanted === 'process') {
    say(
      '  runtime: process, because SDP_RUNTIME says so. Instances are plain processes without isolation: for evaluation only.',
    )
    return { runtime: 'process' }
  }
  const engine = await findEngine()
  if (!engine) {
    if (wanted === 'docker')
      throw new Error('SDP_RUNTIME=docker, but no Docker engine answers. Start it, or set DOCKER_HOST.')
    say(
      '  runtime: process, because no Docker engine answers. Instances are plain processes without isolation: for evaluation only.',
    )
    return { runtime: 'process' }
  }
  try {
    // an image that the environment names is somebody else's to build; ours follows the sources
    if (!process.env.SDP_INSTANCE_IMAGE)
      await step(`image ${image} (minutes the first time)`, () => runScript('docker/images.sh', ['instance']))
    else if (!(await hasImage(engine, image)))
      throw new Error(`this engine has no image ${image}, which SDP_INSTANCE_IMAGE names`)
  } catch (error) {
    if (wanted === 'docker') throw error
    say(`\n  ${error instanceof Error ? error.message : String(error)}`)
    say(`  runtime: process, because there is no image for instances (the reason stands above). For evaluation only.`)
    return { runtime: 'process' }
  }
  say(`  runtime: docker ${engine.version}; each user gets a hardened container`)
  return { runtime: 'docker', engine }
}

type DemoUser = { key: string; connection: string }
// biome-ignore lint/suspicious/noExplicitAny: answers of our own API, read by field
type Answer = any
type Call = (
  method: string,
  path: string,
  body?: unknown,
  headers?: Record<string, string>,
) => Promise<{ status: number; body: Answer }>

/** The demo user and a key of it; the key is kept in a file of ours, because the control plane stores its hash only. */
async function ensureDemoUser(call: Call, file: string, simulator: string | undefined): Promise<DemoUser> {
  const found = await call('GET', `/v1/users/${demoUser}`)
  if (found.status === 200) {
    const { connection } = found.body.sdp
    const kept = await readFile(file, 'utf8').then(
      text => JSON.parse(text) as { id: string; key: string },
      () => undefined,
    )
    const keys = await call('GET', `/v1/users/${demoUser}/api-keys`)
    if (kept && keys.body.apiKeys.some((key: { id: string }) => key.id === kept.id))
      return { key: kept.key, connection }
    const issued = await call('POST', `/v1/users/${demoUser}/api-keys`, { name: 'npm start' })
    return remember(issued.body.apiKey, connection)
  }
  let sdp: Record<string, unknown> | undefined
  if (simulator) {
    const response = await fetch(`${simulator}/_sim/grant-codes`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ user: demoUser }),
    })
    const { code, clientId, clientSecret } = (await response.json()) as Record<string, string>
    sdp = { clientId, clientSecret, grantCode: code }
  }
  const user = { username: demoUser, displayName: 'Alice', ...(sdp ? { sdp } : {}) }
  const created = await call('POST', '/v1/users', user, { prefer: 'wait=60' })
  if (created.status !== 201)
    throw new Error(`the demo user could not be added: ${created.body?.detail ?? created.status}`)
  return remember(created.body.apiKey, created.body.user.sdp.connection)

  async function remember({ id, key }: { id: string; key: string }, connection: string): Promise<DemoUser> {
    await writeFile(file, JSON.stringify({ id, key }), { mode: 0o600 })
    return { key, connection }
  }
}

function adminClient(origin: string, token: string): Call {
  return async (method, path, body, headers = {}) => {
    const response = await fetch(`${origin}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    const text = await response.text()
    return { status: response.status, body: text ? JSON.parse(text) : undefined }
  }
}

// ---- processes ---------------------------------------------------------------------------------------------------

/** Starts one of our programs as a child that ends with us; its output goes to a log file. */
async function startProgram(name: string, script: string, environment: Record<string, string>): Promise<void> {
  const log = createWriteStream(join(await dataFolder(), 'logs', `${name}.log`), { flags: 'a', mode: 0o600 })
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', join(root, script)], {
    cwd: root,
    env: { ...process.env, ...environment },
    // its own group: Ctrl-C reaches us alone, and we stop the parts in order
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  child.stdout?.pipe(log, { end: false })
  let lastWords = ''
  child.stderr?.on('data', (chunk: Buffer) => {
    log.write(chunk)
    lastWords = (lastWords + chunk.toString()).slice(-2_000)
  })
  stops.push(() => endChild(child))
  await new Promise<void>((ready, failed) => {
    const deadline = setTimeout(() => failed(new Error(`${name} was not ready within 60 s; see its log`)), 60_000)
    child.once('message', () => {
      clearTimeout(deadline)
      ready()
    })
    child.once('exit', code => {
      clearTimeout(deadline)
      failed(new Error(`${name} ended with code ${code}. ${lastWords.trim()}`))
    })
  })
  child.removeAllListeners('exit')
  child.once('exit', code => {
    if (stopping) return
    process.stderr.write(`\n${name} ended by itself with code ${code}. ${lastWords.trim()}\n`)
    void stop(1)
  })
}

function endChild(child: ChildProcess): Promise<void> {
  return new Promise(done => {
    if (child.exitCode !== null || child.signalCode !== null) return done()
    const force = setTimeout(() => child.kill('SIGKILL'), 20_000)
    child.once('exit', () => {
      clearTimeout(force)
      done()
    })
    child.kill('SIGTERM')
  })
}

function runScript(script: string, args: string[]): Promise<void> {
  return new Promise((done, failed) => {
    const child = spawn(join(root, script), args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
    child.on('error', failed)
    child.on('exit', code => (code === 0 ? done() : failed(new Error(`${script} ended with code ${code}`))))
  })
}

function stop(code: number): Promise<void> {
  stopping ??= (async () => {
    if (stops.length > 0) say('\nsdp-mcp: stopping ...')
    for (const each of stops.reverse()) await each().catch(error => process.stderr.write(`${error.message}\n`))
    say('sdp-mcp: stopped')
    process.exit(code)
  })()
  return stopping
}

async function step(title: string, work: () => Promise<void>): Promise<void> {
  const started = Date.now()
  process.stdout.write(`  ${title} ...`)
  await work()
  process.stdout.write(` ${((Date.now() - started) / 1000).toFixed(1)} s\n`)
}

// ---- folder, secrets, ports --------------------------------------------------------------------------------------

async function dataFolder(): Promise<string> {
  const folder = process.env.SDP_DATA_DIR ?? join(root, '.data')
  // as root PostgreSQL runs as another user, which must be able to reach its folder; a home folder of root is closed to it
  if (process.getuid?.() === 0 && !process.env.SDP_DATA_DIR && !(await everybodyReaches(root)))
    return join('/var/lib/sdp-mcp', createHash('sha256').update(root).digest('hex').slice(0, 12))
  return folder
}

/** One evaluation per data folder: two would share a database folder. */
async function claim(data: string): Promise<void> {
  await mkdir(data, { recursive: true })
  // as root PostgreSQL runs as another user, who has to pass through; what is secret in here has mode 0600
  if (process.getuid?.() === 0) await chmod(data, 0o711)
  const file = join(data, 'start.pid')
  const other = Number(await readFile(file, 'utf8').catch(() => ''))
  if (other && other !== process.pid && isAlive(other))
    throw new Error(
      `it already runs here as process ${other}. Stop that one with Ctrl-C, or set SDP_DATA_DIR to another folder.`,
    )
  await writeFile(file, String(process.pid))
  stops.push(() => rm(file, { force: true }))
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

async function loadSecrets(data: string): Promise<{ adminToken: string; masterKey: string; databasePassword: string }> {
  const file = join(data, 'secrets.json')
  const kept = await readFile(file, 'utf8').catch(() => undefined)
  if (kept) return JSON.parse(kept)
  const made = {
    adminToken: randomBytes(32).toString('base64url'),
    masterKey: randomBytes(32).toString('base64'),
    databasePassword: randomBytes(24).toString('hex'),
  }
  await writeFile(file, JSON.stringify(made), { mode: 0o600 })
  return made
}

/** The preferred port, or the next free one after it. */
async function freePort(preferred: number, host = '127.0.0.1'): Promise<number> {
  for (let port = preferred; port < preferred + 50; port++) if (await isFree(port, host)) return port
  throw new Error(`no port from ${preferred} to ${preferred + 49} is free on ${host}`)
}

/** Ports that people put into their clients do not move by themselves. */
async function portOrSay(name: string, fallback: number): Promise<number> {
  const port = Number(process.env[name] ?? fallback)
  if (await isFree(port, '127.0.0.1')) return port
  throw new Error(
    `port ${port} is taken by another program. Free it, or choose another: ${name}=${port + 1000} npm start`,
  )
}

function isFree(port: number, host: string): Promise<boolean> {
  return new Promise(done => {
    const probe = createServer()
    probe.once('error', () => done(false))
    probe.listen(port, host, () => probe.close(() => done(true)))
  })
}

async function untilOk(url: string, what: string): Promise<void> {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; ) {
    if (
      await fetch(url).then(
        response => response.ok,
        () => false,
      )
    )
      return
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new Error(`${what} does not answer at ${url}`)
}

function logTo(file: string): (line: string) => void {
  const stream = createWriteStream(file, { flags: 'a', mode: 0o600 })
  return line => stream.write(`${line}\n`)
}
