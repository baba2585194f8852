import type { ServerResponse } from 'node:http'
import type { ConnectionReport, UsageReport } from '@sdp-mcp/instance/contract'
import type { DatabaseConnection } from '@sdp-mcp/migrations/testing'
import { createActivity } from '../activity.ts'
import { buildAdminApp, buildPublicApp } from '../app.ts'
import { createConnections } from '../connections.ts'
import { createConsent } from '../consent.ts'
import { openDirectory } from '../directory.ts'
import { createFleet } from '../fleet/fleet.ts'
import type { Runtime } from '../fleet/runtime.ts'
import { createMemoryEngine, createMemoryRuntime, type MemoryEngine } from '../fleet/testing/memory-runtime.ts'
import { createStatementSigner } from '../identity.ts'
import { controlTargets, createInstanceControl } from '../instance-control.ts'
import { fixedKeyring } from '../keyring.ts'
import { createMasterKey } from '../master-key.ts'
import { createMetrics } from '../metrics.ts'
import { createProxy } from '../proxy/proxy.ts'
import { createRoutes } from '../proxy/routes.ts'
import { createRollouts } from '../rollouts.ts'
import { createUsage } from '../usage.ts'
import { createUsers } from '../users.ts'
import { createVault } from '../vault.ts'
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

/** The control plane as main.ts builds it, on a database of its own, with instances in this process. */
export async function openAdmin(server: DatabaseConnection, environment: Record<string, string> = {}) {
  const { log, text: logged } = recordingLog()
  const database = await openTestDatabase(server, { onError: error => log.warn({ error }, 'database.connection.lost') })
  const ports = nextPorts
  nextPorts += 50
  const config = testConfig({ SDP_INSTANCE_PORT_RANGE: `${ports}-${ports + 49}`, ...environment })
  const { db } = database
  const now = Date.now
  const keyring = fixedKeyring(config.masterKey)
  const vault = createVault({ db, keyring })
  const users = createUsers({ db, vault, config })
  const signer = createStatementSigner({ db, keyring, now })
  const statementKeys = await signer.publicKeys()
  const routes = createRoutes()
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
  const activity = createActivity({ db, now, log })
  const fleet = createFleet({
    db,
    runtime,
    config: { ...config.instance, capacity: config.capacity, idle: config.idle },
    activity,
    async beforeStop() {},
    async prove() {},
    log,
    now,
    async bootFor(userId, { generation, port }) {
      const settings = await users.settings(userId)
      return {
        version: 1,
        user: { id: userId, username: settings.username, displayName: settings.displayName, email: settings.email },
        generation,
        listen: { host: '127.0.0.1', port },
        statementKeys: statementKeys as Record<string, unknown>[],
        database: { ...database.login, ...(await vault.databaseLogin(userId)) },
        dataKey: (await vault.dataKey(userId)).bytes.toString('base64'),
        sdp: { ...settings.sdp, portal: settings.sdp.portal ?? '' },
        consentLinks: config.consent !== null,
        allowInsecureUpstream: false,
        allowedUpstreamHosts: [],
        maxSessions: settings.limits.sessions,
        toolsets: settings.toolsets,
        readOnly: settings.readOnly,
        logLevel: 'info',
      }
    },
    onRoute: (userId, to) => routes.set(userId, to),
    onFailure: (userId, failure) => rollouts.instanceFailed(userId, failure),
    beforeRemove: (userId, instance) => connections.revoke(userId, instance),
    afterRemove: userId => users.erase(userId),
  })
  const instanceControl = createInstanceControl({ signer })
  const metrics = createMetrics({ activity, version: '1.2.3' })
  const usage = createUsage({ db, control: instanceControl, metrics, log })
  const connections = createConnections({ db, users, vault, fleet, control: instanceControl, log })
  const anotherRollouts = () =>
    createRollouts({
      db,
      fleet,
      runtime,
      activity,
      collect: async userIds =>
        usage.collectFrom((await controlTargets({ db, routes })).filter(({ userId }) => userIds.includes(userId))),
      image: config.instance.image,
      log,
      now,
    })
  const rollouts = anotherRollouts()
  const directory = await openDirectory({
    db,
    log,
    now,
    config,
    onRevoked: revocation => proxy.cut(revocation),
    onChanged: userId => void (userId === null ? fleet.reconcileAll() : fleet.reconcile(userId)).catch(() => {}),
  })
  const publicUrl = 'https://mcp.example.com'
  const consent = createConsent({ db, users, connections, config })
  const proxy = createProxy({
    directory,
    routes,
    fleet,
    signer,
    activity,
    control: instanceControl,
    metrics: metrics.proxy,
    now,
    log,
  })
  const errorPages = { read: async (code: string) => `# page about ${code}` }
  const publicApp = buildPublicApp({ db, runtime, proxy, consent, publicUrl, log, errorPages })
  const app = await buildAdminApp({
    users,
    connections,
    consent,
    masterKey: createMasterKey({ db, keyring, vault, signer, log }),
    fleet,
    runtime,
    directory,
    routes,
    openExchanges: async () => proxy.open(),
    control: instanceControl,
    usage,
    metrics,
    rollouts,
    db,
    log,
    errorPages,
    now,
    startedAt: now(),
    version: '1.2.3',
    workers: 1,
    publicUrl,
    adminToken: config.admin.token,
  })
  await fleet.start()

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
    login: database.login,
    users,
    vault,
    fleet,
    engine,
    rollouts,
    /** as another control plane of this database would go on with them */
    anotherRollouts,
    routes,
    proxy,
    directory,
    control,
    counted,
    logged,
    consent,
    async [Symbol.asyncDispose]() {
      engine.down = false
      await Promise.all([app.close(), publicApp.close()])
      await rollouts.close()
      await fleet.close()
      await activity.close()
      await instanceControl.close()
      await routes.close()
      await directory.close()
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
