import cluster from 'node:cluster'
import { promises as dns } from 'node:dns'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { migrate } from '@sdp-mcp/migrations'
import manifest from '../package.json' with { type: 'json' }
import { createActivity } from './activity.ts'
import { buildAdminApp, buildPublicApp } from './app.ts'
import { createAttempts } from './attempts.ts'
import { keepRetention } from './audit.ts'
import { createBoot } from './boot.ts'
import { createClientFingerprints } from './client-fingerprints.ts'
import { ConfigError, loadConfig, loadSetup } from './config.ts'
import { createConnections } from './connections.ts'
import { createConsent } from './consent.ts'
import { awaitDatabase, prepareControlPlaneRole } from './database-setup.ts'
import { createDb, poolSizes } from './db.ts'
import { openDirectory } from './directory.ts'
import { createDoors, instanceAddresses } from './door.ts'
import { createDynamicCredentials } from './dynamic-credentials.ts'
import { createEgress } from './egress/egress.ts'
import { createEgressNotes } from './egress/notes.ts'
import { createReach } from './egress/reach.ts'
import { createFaultPoints } from './fault-points.ts'
import { createDockerRuntime } from './fleet/docker-runtime.ts'
import { createFleet } from './fleet/fleet.ts'
import { createProcessRuntime } from './fleet/process-runtime.ts'
import { selfCheck } from './fleet/self-check.ts'
import { createAdminTokens, createStatementSigner } from './identity.ts'
import { controlTargets, createInstanceControl } from './instance-control.ts'
import { watchInstanceTransactions } from './instance-transactions.ts'
import { createKeyring } from './keyring.ts'
import { createLog } from './log.ts'
import { createMasterKey } from './master-key.ts'
import { createMetrics } from './metrics.ts'
import { createLimiter } from './proxy/limits.ts'
import { createProxy } from './proxy/proxy.ts'
import { createRoutes } from './proxy/routes.ts'
import { createRollouts } from './rollouts.ts'
import { createUsage } from './usage.ts'
import { createUsers } from './users.ts'
import { createVault } from './vault.ts'
import { connectSiblings, noSiblings } from './workers/siblings.ts'
import { supervise } from './workers/supervisor.ts'

/** The program: reads the environment, builds everything, listens, and ends in order. Imported by nobody. */

const { version } = manifest
const collectUsageMs = 60_000
const shareUsesMs = 100
const exitCodes = { config: 78, unavailable: 69, internal: 70 } // sysexits.h

if (process.argv.includes('--version')) {
  process.stdout.write(`${version}\n`)
  process.exit(0)
}

// beside a bundle, or where they are in the source tree
const beside = (bundled: string, source: string) => {
  const path = join(import.meta.dirname, bundled)
  return existsSync(path) ? path : join(import.meta.dirname, source)
}
const migrations = beside('migrations', '../../migrations')

let log = createLog('info')
if (process.argv.includes('--prepare-database')) await prepareDatabase()

const config = read(() => loadConfig(process.env))
const worker = cluster.isWorker ? Number(process.argv[process.argv.indexOf('--worker') + 1]) : undefined
log = createLog(config.logLevel).child(worker === undefined ? {} : { worker })
const now = Date.now
const startedAt = now()
if (worker === undefined) {
  const { runtime, workers } = config
  log.info({ version, node: process.version, runtime, workers }, 'control-plane.starting')
}

const login = { ...config.database, password: config.database.password.reveal() }
// workers find the schema as their primary left it
if (worker === undefined)
  await awaitDatabase(config.database, log, async () => {
    await migrate(login, { folder: migrations, log: message => log.info(message) })
  }).catch(fail)
if (config.workers > 1 && worker === undefined)
  await supervise({
    count: config.workers,
    log,
    onListening: () => process.send?.('listening'),
    giveUpCode: exitCodes.unavailable,
  })
const siblings = worker === undefined ? noSiblings : connectSiblings({ channel: process, count: config.workers, log })

const db = createDb({
  ...login,
  ...poolSizes(config.workers),
  onError: error => log.warn({ error }, 'database.connection.lost'),
})
const keyring = createKeyring(() => {
  // read again for a rotation: files may hold another key by now
  const { masterKey: current, oldMasterKeys: old } = loadConfig(process.env)
  return { current, old }
})
const vault = createVault({ db, keyring })
const fingerprints = createClientFingerprints({ db, vault, keyring, config })
const users = createUsers({ db, vault, config, resolve, fingerprints })
const signer = createStatementSigner({ db, keyring, now })
const masterKey = createMasterKey({
  db,
  keyring,
  vault,
  signer,
  reloadElsewhere: () => siblings.ask('keys.reload'),
  log,
})
siblings.on('keys.reload', () => keyring.reload())
await masterKey.check().catch(fail)
if (config.dynamicCredentials.mode !== 'off') await fingerprints.catchUp().catch(fail)
const statementKeys = await signer.publicKeys().catch(fail)
const routes = createRoutes()
const activity = createActivity({ db, now, log })
const metrics = createMetrics({ activity, version, others: () => siblings.ask('metrics') })
siblings.on('metrics', metrics.snapshot)
const control = createInstanceControl({ signer })
const usage = createUsage({ db, control, metrics, log })
const reach = createFaultPoints(config.faultPoint)

const runtime =
  config.runtime === 'docker'
    ? createDockerRuntime({ ...config.instance, engine: config.dockerSocket, installation: config.installation, log })
    : createProcessRuntime({
        entry: config.instance.entry ?? beside('instance.mjs', '../../instance/src/main.ts'),
        log,
      })

const fleet = createFleet({
  db,
  runtime,
  config: {
    image: config.instance.image,
    portRange: config.instance.portRange,
    limits: config.instance.limits,
    capacity: config.capacity,
    idle: config.idle,
  },
  activity,
  log,
  now,
  bootFor: createBoot({ users, vault, config, signer, statementKeys }),
  onRoute: (userId, to) => routes.set(userId, to),
  beforeStop: async (userId, instance) => usage.collect({ userId, ...(await nameOf(userId)), ...instance }),
  prove: async (userId, instance, signal) => {
    const { username } = await nameOf(userId)
    const statement = await signer.statement({ userId, username, generation: instance.generation }, 'mcp')
    return selfCheck(instance.address, statement, signal)
  },
  observe: metrics.fleet,
  reach,
  onFailure: (userId, failure) => rollouts.instanceFailed(userId, failure),
  beforeRemove: (userId, instance) => connections.revoke(userId, instance),
  afterRemove: userId => users.erase(userId),
})
const connections = createConnections({ db, users, vault, fleet, control, log })
metrics.leads(fleet.leading)
const rollouts = createRollouts({
  db,
  fleet,
  runtime,
  activity,
  collect: async userIds =>
    usage.collectFrom((await controlTargets({ db, routes })).filter(({ userId }) => userIds.includes(userId))),
  image: config.instance.image,
  log,
  now,
  reach,
})
const consent = createConsent({ db, users, connections, config })
const directory = await openDirectory({
  db,
  log,
  now,
  config,
  takesClients: config.dynamicCredentials.mode !== 'off',
  onRevoked: revocation => {
    proxy.cut(revocation)
    if (revocation.reason === 'key-revoked') retireExpiredKeys()
  },
  onChanged: userId =>
    void (userId === null ? fleet.reconcileAll() : fleet.reconcile(userId)).catch(error =>
      log.warn({ error }, 'fleet.reconcile.failed'),
    ),
}).catch(fail)
siblings.on('directory.refresh', directory.refresh)
const attempts = createAttempts({ tell: event => siblings.tell('attempt', event) })
siblings.on('attempt', attempts.heard)
const limiter = createLimiter({ isShared: siblings.count > 1 })
siblings.on('uses', (uses, by) => limiter.heard(by, uses))
siblings.onEnded(limiter.left)
const sharing = setInterval(() => {
  const uses = siblings.count > 1 ? limiter.share() : []
  if (uses.length > 0) siblings.tell('uses', uses)
}, shareUsesMs)
sharing.unref()
const doors = createDoors(config, log)
const clients =
  config.dynamicCredentials.mode === 'off'
    ? undefined
    : createDynamicCredentials({
        directory,
        fingerprints,
        users,
        checkCapacity: () => fleet.checkCapacity(),
        attempts,
        config,
        log,
        tellEnrolled: address => siblings.tell('enrolled', address),
      })
if (clients) siblings.on('enrolled', clients.heardEnrolled)
const proxy = createProxy({
  directory,
  routes,
  fleet,
  signer,
  activity,
  control,
  metrics: metrics.proxy,
  limiter,
  ...(clients ? { clients } : {}),
  addressOf: doors.public.addressOf,
  now,
  log,
})
siblings.on('exchanges', () => [...proxy.open()])
// what ended while no control plane ran
retireExpiredKeys()

const errorPages = {
  read: (code: string) =>
    readFile(join(beside('errors', '../../docs/errors'), `${code}.md`), 'utf8').catch(() => undefined),
}
const publicApp = buildPublicApp({
  db,
  runtime,
  proxy,
  consent,
  publicUrl: config.publicUrl,
  door: doors.public,
  log,
  errorPages,
})
const adminApp = await buildAdminApp({
  users,
  connections,
  consent,
  fleet,
  runtime,
  masterKey,
  // who was just given a key may come in by any worker, and a revoked one by none
  directory: {
    ...directory,
    async refresh(userId) {
      // one that cannot read now will be told by the database, as control planes elsewhere are
      const elsewhere = siblings
        .ask('directory.refresh', userId)
        .catch(error => log.warn({ error }, 'directory.refresh.elsewhere.failed'))
      await Promise.all([directory.refresh(userId), elsewhere])
    },
  },
  routes,
  async openExchanges() {
    const sum = new Map(proxy.open())
    for (const open of await siblings.ask<[string, number][]>('exchanges'))
      for (const [userId, count] of open) sum.set(userId, (sum.get(userId) ?? 0) + count)
    return sum
  },
  control,
  usage,
  metrics,
  rollouts,
  db,
  log,
  errorPages,
  now,
  startedAt,
  version,
  workers: siblings.count,
  publicUrl: config.publicUrl,
  adminToken: config.admin.token,
  ...(config.oidc ? { adminTokens: createAdminTokens({ oidc: config.oidc, now }) } : {}),
  attempts,
  addressOf: doors.admin.addressOf,
  door: doors.admin,
})

const egress =
  config.instance.egress === 'restricted'
    ? createEgress({
        holderOf: signer.egressHolder,
        reachOf: createReach({ db, users, allowedHosts: config.egress.allowedHosts, now }),
        isInstance: instanceAddresses(config),
        privateHosts: config.allowInsecureUpstream ? 'any' : config.allowedUpstreamHosts,
        done: createEgressNotes({ db, metrics, now, log }),
        log,
      })
    : undefined
await egress?.listen({ host: '0.0.0.0', port: config.egress.port }).catch(fail)
const retention = keepRetention({ db, days: config.auditRetentionDays, log })
await fleet.start().catch(fail)
const transactions = watchInstanceTransactions({ db, log, leading: fleet.leading, ended: metrics.transactionEnded })
const collecting = setInterval(() => {
  if (fleet.leading())
    void controlTargets({ db, routes })
      .then(targets => usage.collectAll(targets))
      .catch(error => log.warn({ error }, 'usage.collect.failed'))
}, collectUsageMs)
collecting.unref()
rollouts.start()
for (const [app, at] of [
  [publicApp, config.http],
  [adminApp, config.admin],
] as const)
  await app
    .listen({ ...at })
    .catch((error: NodeJS.ErrnoException) =>
      fail(
        error.code === 'EADDRINUSE'
          ? new Error(
              `port ${at.port} on ${at.host} is taken by another program. Free it, or set another port (SDP_HTTP_PORT, SDP_ADMIN_PORT).`,
            )
          : error,
      ),
    )
log.info(
  { public: config.http, admin: { host: config.admin.host, port: config.admin.port } },
  'control-plane.listening',
)
// a parent that waits over IPC is told, and takes us along when it ends
process.send?.('listening')

const callGraceMs = 8_000
// Compose and systemd kill after 30 s
const endDeadlineMs = 25_000
let ending: Promise<void> | undefined
for (const event of ['SIGTERM', 'SIGINT', 'disconnect'] as const) process.once(event, () => void end(event))

/** Stops taking requests, lets calls end, cuts streams, and leaves containers to the next start, which adopts them. */
function end(why: string): Promise<void> {
  ending ??= (async () => {
    log.info({ why }, 'control-plane.ending')
    const deadline = setTimeout(() => process.exit(exitCodes.internal), endDeadlineMs)
    // moves are given up while calls still have their grace
    const rolloutsClosed = rollouts.close()
    const apps = [publicApp, adminApp]
    const closed = Promise.allSettled(apps.map(app => app.close()))
    // what answers its last request now would be kept open for the next one
    const idle = setInterval(() => apps.forEach(app => void app.server.closeIdleConnections()), 100)
    await Promise.race([Promise.all([closed, proxy.close(callGraceMs)]), delay(callGraceMs)])
    for (const app of apps) app.server.closeAllConnections()
    await closed
    clearInterval(idle)
    clearInterval(collecting)
    clearInterval(sharing)
    await rolloutsClosed
    await fleet.close()
    await activity.close()
    await control.close()
    await routes.close()
    await directory.close()
    await egress?.close()
    await retention.close()
    await transactions.close()
    await masterKey.close()
    await runtime.close()
    await db.close()
    clearTimeout(deadline)
    log.info('control-plane.ended')
    process.exit(0)
  })()
  return ending
}

async function nameOf(userId: string): Promise<{ username: string }> {
  const { username } = await users.settings(userId)
  return { username }
}

/** Addresses of an upstream an admin names. What cannot be told in time is looked at when the instance connects. */
async function resolve(host: string): Promise<string[]> {
  const asked = dns.lookup(host, { all: true }).catch(() => [])
  const found = await Promise.race([asked, delay(3_000, [], { ref: false })])
  return found.map(({ address }) => address)
}

function retireExpiredKeys(): void {
  users.retireExpiredKeys().catch(error => log.warn({ error }, 'api-keys.retire.failed'))
}

function read<T>(load: () => T): T {
  try {
    return load()
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    process.stderr.write(`sdp-mcp: ${error.message}\nAll variables are explained in .env.example.\n`)
    process.exit(exitCodes.config)
  }
}

/** As the owner of the database: brings the schema up to date and makes the control plane's own role; then ends. */
async function prepareDatabase(): Promise<never> {
  const { database, role } = read(() => loadSetup(process.env))
  const owner = { ...database, password: database.password.reveal() }
  await awaitDatabase(database, log, async () => {
    await migrate(owner, { folder: migrations, log: message => log.info(message) })
    const db = createDb(owner)
    try {
      await prepareControlPlaneRole(db, { name: role.name, password: role.password.reveal() })
    } finally {
      await db.close()
    }
  }).catch(fail)
  log.info({ role: role.name }, 'database.prepared')
  process.exit(0)
}

function fail(error: Error): never {
  log.fatal({ error }, 'control-plane.failed')
  process.stderr.write(`sdp-mcp: ${error.message}\n`)
  process.exit(exitCodes.unavailable)
}
