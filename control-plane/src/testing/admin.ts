import type { ServerResponse } from 'node:http'
import type { ConnectionReport, UsageReport } from '@sdp-mcp/instance/contract'
import type { DatabaseConnection } from '@sdp-mcp/migrations/testing'
import { openControlPlane } from '../control-plane.ts'
import { createFleet } from '../fleet/fleet.ts'
import type { Runtime } from '../fleet/runtime.ts'
import { createMemoryEngine, createMemoryRuntime, type MemoryEngine } from '../fleet/testing/memory-runtime.ts'
import { fixedKeyring } from '../keyring.ts'
import { createRollouts } from '../rollouts.ts'
import { testConfig, testSecrets } from './config.ts'
import { dismissEverybody, openTestDatabase } from './database.ts'
import { recordingLog } from './log.ts'

/** What the control plane asked an instance to do with its connection, and how to answer. */
export type ControlCall = { verb: 'exchange' | 'revoke'; userId: string; response: ServerResponse }

export type Answer = {
  status: number
  headers: Record<string, unknown>
  text: string
  // biome-ignore lint/suspicious/noExplicitAny: tests look at whatever came
  json: any
}

export type Admin = Awaited<ReturnType<typeof openAdmin>>

let nextPorts = 20_000 + Math.floor(Math.random() * 40) * 250

/** The control plane as main.ts opens it, on a database of its own, with instances in this process; nobody listens. */
export async function openAdmin(server: DatabaseConnection, environment: Record<string, string> = {}) {
  const { log, text: logged } = recordingLog()
  const database = await openTestDatabase(server, { onError: error => log.warn({ error }, 'database.connection.lost') })
  const ports = nextPorts
  nextPorts += 50
  const { db, login } = database
  const config = testConfig({
    SDP_INSTANCE_PORT_RANGE: `${ports}-${ports + 49}`,
    SDP_PUBLIC_URL: 'https://mcp.example.com',
    SDP_DB_HOST: login.host,
    SDP_DB_PORT: String(login.port),
    SDP_DB_NAME: login.database,
    ...environment,
  })
  const engine = createMemoryEngine()
  const control: { calls: ControlCall[]; answer: (call: ControlCall) => void | Promise<void> } = {
    calls: [],
    answer: call => reply(call, { state: 'needs-authorization', scopes: [], reasonCode: null, reason: null }),
  }
  /** what instances of an image report as used; nothing without it */
  const counted: { usage: ((image: string) => UsageReport) | undefined } = { usage: undefined }
  const runtime = withConnections(
    createMemoryRuntime(engine),
    engine,
    call => {
      control.calls.push(call)
      void control.answer(call)
    },
    image => counted.usage?.(image),
  )
  const now = Date.now
  const controlPlane = await openControlPlane({
    config,
    version: '1.2.3',
    startedAt: now(),
    db,
    keyring: fixedKeyring(config.masterKey),
    runtime,
    errorPages: { read: async code => `# page about ${code}` },
    log,
    now,
    // these instances speak no MCP
    createFleet: options => createFleet({ ...options, async beforeStop() {}, async prove() {} }),
  })
  await controlPlane.start()
  const { adminApp: app, publicApp, users, vault, fleet, rollouts, routes, proxy, directory, consent } = controlPlane
  const { activity } = controlPlane

  let calls = 0
  /** One call of the admin API, with the admin token unless `headers` has another authorization. */
  async function call(
    method: string,
    url: string,
    body?: unknown,
    headers: Record<string, string | undefined> = {},
  ): Promise<Answer> {
    const all = Object.entries({ authorization: `Bearer ${testSecrets.adminToken}`, ...headers })
    const response = await app.inject({
      method: method as 'GET',
      url,
      // from an address of its own, so that those who are refused do not slow down the next one
      remoteAddress: `10.0.${(calls >> 8) & 255}.${calls++ & 255}`,
      headers: Object.fromEntries(all.filter((header): header is [string, string] => header[1] !== undefined)),
      ...(body === undefined ? {} : typeof body === 'string' ? { payload: body } : { payload: body as object }),
    })
    let json: unknown
    try {
      json = response.json()
    } catch {}
    return { status: response.statusCode, headers: response.headers, text: response.payload, json }
  }

  return {
    app,
    publicApp,
    call,
    db,
    login,
    users,
    vault,
    fleet,
    engine,
    rollouts,
    /** as another control plane of this database would go on with them */
    anotherRollouts: () =>
      createRollouts({ db, fleet, runtime, activity, async collect() {}, image: config.instance.image, log, now }),
    routes,
    proxy,
    directory,
    control,
    counted,
    logged,
    consent,
    async [Symbol.asyncDispose]() {
      engine.down = false
      await controlPlane.close(0)
      for (const id of [...engine.instances.keys()]) await runtime.remove(id)
      await dismissEverybody(db, vault)
      await database[Symbol.asyncDispose]()
    },
  }
}

export function reply({ response }: ControlCall, report: ConnectionReport): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(report))
}

/** Instances of the memory engine that also answer `/control/connection/*` and `/control/usage`. */
function withConnections(
  runtime: Runtime,
  engine: MemoryEngine,
  called: (call: ControlCall) => void,
  usageOf: (image: string) => UsageReport | undefined,
): Runtime {
  return {
    ...runtime,
    async start(spec) {
      const started = await runtime.start(spec)
      const { server } = engine.instances.get(started.id)!
      const [answer] = server.listeners('request')
      if (answer && !answer.name.startsWith('withControl')) {
        server.removeAllListeners('request')
        server.on('request', function withControl(request, response) {
          const verb = /^\/control\/connection\/(exchange|revoke)$/.exec(request.url ?? '')?.[1]
          if (verb && request.method === 'POST')
            called({ verb: verb as ControlCall['verb'], userId: spec.boot.user.id, response })
          else if (request.url === '/control/usage' && usageOf(spec.image))
            response.end(JSON.stringify(usageOf(spec.image)))
          else answer(request, response)
        })
      }
      return started
    },
  }
}

/** Everything the database holds that a refused call must not change. */
export async function dump({ db }: Pick<Admin, 'db'>): Promise<Record<string, unknown>> {
  const tables = [
    'users',
    'api_keys',
    'data_keys',
    'oauth_tokens',
    'oauth_access_tokens',
    'audit_events',
    'signing_keys',
  ]
  const found: Record<string, unknown> = {}
  for (const table of tables) found[table] = await db.query(`select t::text as row from ${table} t order by 1`)
  return found
}
