import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { cloneDatabase, type DatabaseConnection, freePort } from '@sdp-mcp/migrations/testing'
import { type Simulator, startSimulator } from '@sdp-mcp/simulator'
import pg from 'pg'
import { inject } from 'vitest'
import { removeInstallation } from '../../control-plane/evaluation/docker-engine.ts'
import { testInstallation } from './setup.ts'

const root = dirname(dirname(import.meta.dirname))

// biome-ignore lint/suspicious/noExplicitAny: answers are read by field, and a wrong field fails the assertion
export type Answer = { status: number; headers: Headers; body: any }

export type ControlPlane = {
  process: ChildProcess
  /** everything it wrote so far */
  output(): string
  /** ends it; default SIGTERM, waited for */
  stop(signal?: NodeJS.Signals): Promise<number | null>
}

/** The whole product as its users meet it: a control plane process, a database, a simulated Zoho, containers on a real engine. */
export type Stack = AsyncDisposable & {
  simulator: Simulator
  database: DatabaseConnection
  publicUrl: string
  adminUrl: string
  adminToken: string
  masterKey: string
  /** one call of the admin API, with the admin token unless `headers` say otherwise */
  admin(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Answer>
  sql<T = Record<string, unknown>>(text: string, values?: unknown[]): Promise<T[]>
  controlPlane(): ControlPlane
  /** starts the control plane again on the same database, after it was stopped */
  startControlPlane(environment?: Record<string, string>, options?: LaunchOptions): Promise<void>
  /** adds a user with a grant code of the simulator and waits until it is connected */
  addUser(
    username: string,
    more?: Record<string, unknown>,
  ): Promise<{ body: Answer['body']; key: string; sse: string; mcp: string }>
}

export type StackOptions = {
  runtime?: 'docker' | 'process'
  environment?: Record<string, string> | ((simulator: Simulator) => Record<string, string>)
  installation?: string
  /** where the control plane listens; default 127.0.0.1 */
  address?: string
  /** put before the command that starts the control plane, e.g. to enter a namespace */
  command?: string[]
  /** what to run on; in tests the one of the global set-up */
  on?: { engine: { host: string; socket: string; hostAddress: string }; postgres: DatabaseConnection }
}

export async function startStack(options: StackOptions = {}): Promise<Stack> {
  const { engine, postgres } = options.on ?? { engine: inject('engine'), postgres: inject('postgres') }
  const { address = '127.0.0.1', command = [] } = options
  const database = await cloneDatabase(postgres)
  const simulator = await startSimulator({ host: engine.hostAddress })
  const [publicPort, adminPort, firstPort] = [
    await freePort(),
    await freePort(),
    24_000 + Math.floor(Math.random() * 80) * 100,
  ]
  const adminToken = randomBytes(32).toString('base64url')
  const masterKey = randomBytes(32).toString('base64')
  const installation = options.installation ?? testInstallation
  const environment: Record<string, string> = {
    PATH: process.env.PATH ?? '',
    SDP_HTTP_HOST: address,
    SDP_ADMIN_HOST: address,
    SDP_HTTP_PORT: String(publicPort),
    SDP_ADMIN_PORT: String(adminPort),
    SDP_PUBLIC_URL: `http://${address}:${publicPort}`,
    SDP_ADMIN_TOKEN: adminToken,
    SDP_MASTER_KEY: masterKey,
    SDP_DB_HOST: '127.0.0.1',
    SDP_DB_PORT: String(database.port),
    SDP_DB_NAME: database.database,
    SDP_DB_USER: database.user,
    SDP_DB_PASSWORD: database.password,
    SDP_INSTANCE_DB_HOST: engine.hostAddress,
    SDP_RUNTIME: options.runtime ?? 'docker',
    SDP_DOCKER_SOCKET: engine.host,
    SDP_INSTALLATION: installation,
    // several checkouts may share an engine, each with an image of its own; empty: the default
    SDP_INSTANCE_IMAGE: process.env.SDP_INSTANCE_IMAGE ?? '',
    SDP_INSTANCE_PORT_RANGE: `${firstPort}-${firstPort + 99}`,
    SDP_BASE_URL: simulator.url,
    SDP_ACCOUNTS_URL: simulator.url,
    SDP_INSTANCE_NAME: 'itdesk',
    SDP_ALLOW_INSECURE_UPSTREAM: 'true',
    ...(typeof options.environment === 'function' ? options.environment(simulator) : options.environment),
  }
  const adminUrl = `http://${address}:${adminPort}`
  const pool = new pg.Pool({ ...database, max: 2 })
  pool.on('error', () => {})
  let running = await launch(environment, { command })

  const stack: Stack = {
    simulator,
    database,
    publicUrl: `http://${address}:${publicPort}`,
    adminUrl,
    adminToken,
    masterKey,
    admin: (method, path, body, headers = {}) =>
      call(`${adminUrl}${path}`, {
        method,
        headers: {
          ...(headers.authorization === undefined ? { authorization: `Bearer ${adminToken}` } : {}),
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      }),
    sql: async <T>(text: string, values?: unknown[]) => (await pool.query(text, values)).rows as T[],
    controlPlane: () => running,
    async startControlPlane(more = {}, options = {}) {
      running = await launch({ ...environment, ...more }, { command, ...options })
    },
    async addUser(username, more = {}) {
      const grant = await simulator.createGrantCode({ user: username })
      const { sdp, ...rest } = more as { sdp?: Record<string, unknown> }
      const answer = await stack.admin(
        'POST',
        '/v1/users',
        {
          username,
          sdp: { clientId: grant.clientId, clientSecret: grant.clientSecret, grantCode: grant.code, ...sdp },
          ...rest,
        },
        { prefer: 'wait=60' },
      )
      if (answer.status !== 201)
        throw new Error(
          `user ${username} could not be added: ${answer.status} ${JSON.stringify(answer.body)}\n${running.output().slice(-3000)}`,
        )
      return {
        body: answer.body,
        key: answer.body.apiKey.key,
        sse: answer.body.endpoints.sse,
        mcp: answer.body.endpoints.mcp,
      }
    },
    async [Symbol.asyncDispose]() {
      await running.stop()
      await removeInstallation({ socket: engine.socket, version: '', hostAddress: '' }, installation)
      await pool.end()
      await simulator.close()
      await database[Symbol.asyncDispose]()
    },
  }
  return stack
}

/** `stdout`: a file to write the log to, instead of keeping it for {@link ControlPlane.output} */
export type LaunchOptions = { stdout?: number; command?: string[] }

async function launch(
  environment: Record<string, string>,
  { stdout, command = [] }: LaunchOptions = {},
): Promise<ControlPlane> {
  const [program = process.execPath, ...args] = [
    ...command,
    process.execPath,
    join(root, 'control-plane/dist/main.mjs'),
  ]
  const child = spawn(program, args, {
    env: environment,
    stdio: ['ignore', stdout ?? 'pipe', 'pipe', 'ipc'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding('utf8').on('data', chunk => {
      output += chunk
    })
  const exited = new Promise<number | null>(done => child.once('exit', code => done(code)))
  const controlPlane: ControlPlane = {
    process: child,
    output: () => output,
    async stop(signal = 'SIGTERM') {
      if (child.exitCode === null && child.signalCode === null) child.kill(signal)
      return exited
    },
  }
  await Promise.race([
    new Promise(ready => child.once('message', ready)),
    exited.then(code => {
      throw new ExitedAtStart(code, output)
    }),
    delay(60_000, undefined, { ref: false }).then(() => {
      throw new Error(`the control plane was not ready within 60 s:\n${output}`)
    }),
  ])
  return controlPlane
}

/** The control plane ended instead of coming up; `output` is what it said. */
export class ExitedAtStart extends Error {
  readonly code: number | null
  readonly output: string
  constructor(code: number | null, output: string) {
    super(`the control plane ended with code ${code}:\n${output}`)
    this.code = code
    this.output = output
  }
}

async function call(url: string, init: RequestInit): Promise<Answer> {
  const response = await fetch(url, init)
  const text = await response.text()
  let body: unknown = text
  try {
    body = text === '' ? undefined : JSON.parse(text)
  } catch {
    // not JSON: the text itself
  }
  return { status: response.status, headers: response.headers, body }
}

/** Polls until `condition` gives something truthy. */
export async function eventually<T>(
  condition: () => Promise<T> | T,
  { withinMs = 15_000, what = 'the condition' } = {},
): Promise<NonNullable<T>> {
  let last: unknown
  for (const deadline = Date.now() + withinMs; Date.now() < deadline; await delay(50)) {
    try {
      const value = await condition()
      if (value) return value as NonNullable<T>
    } catch (error) {
      last = error
    }
  }
  throw new Error(`${what} did not come true within ${withinMs} ms${last ? `: ${last}` : ''}`)
}
