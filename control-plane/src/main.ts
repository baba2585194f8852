import { promises as dns } from 'node:dns'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Boot } from '@sdp-mcp/instance/contract'
import { migrate } from '@sdp-mcp/migrations'
import manifest from '../package.json' with { type: 'json' }
import { createActivity } from './activity.ts'
import { buildAdminApp, buildPublicApp } from './app.ts'
import { createAttempts } from './attempts.ts'
import { keepRetention } from './audit.ts'
import { createClientFingerprints } from './client-fingerprints.ts'
import { type Config, ConfigError, loadConfig, loadSetup } from './config.ts'
import { createConnections } from './connections.ts'
import { createConsent } from './consent.ts'
import { prepareControlPlaneRole } from './database-setup.ts'
import { createDb } from './db.ts'
import { openDirectory } from './directory.ts'
import { createDoors } from './door.ts'
import { createDynamicCredentials } from './dynamic-credentials.ts'
import { AppError } from './errors.ts'
import { createFaultPoints } from './fault-points.ts'
import { createDockerRuntime } from './fleet/docker-runtime.ts'
import { createFleet } from './fleet/fleet.ts'
import { createProcessRuntime } from './fleet/process-runtime.ts'
import { selfCheck } from './fleet/self-check.ts'
import { createAdminTokens, createStatementSigner } from './identity.ts'
import { controlTargets, createInstanceControl } from './instance-control.ts'
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

/** The program: reads the environment, builds everything, listens, and ends in order. Imported by nobody. */

const { version } = manifest
const collectUsageMs = 60_000
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
log = createLog(config.logLevel)
const now = Date.now
const startedAt = now()
log.info({ version, node: process.version, runtime: config.runtime }, 'control-plane.starting')

const login = { ...config.database, password: config.database.password.reveal() }
await withDatabase(config.database, async () => {
  await migrate(login, { folder: migrations, log: message => log.info(message) })
})
const db = createDb({ ...login, onError: error => log.warn({ error }, 'database.connection.lost') })
const keyring = createKeyring(() => {
  // read again for a rotation: files may hold another key by now
  const { masterKey: current, oldMasterKeys: old } = loadConfig(process.env)
  return { current, old }
})
const vault = createVault({ db, keyring })
const fingerprints = createClientFingerprints({ db, vault, keyring, config })
const users = createUsers({ db, vault, config, resolve, fingerprints })
const signer = createStatementSigner({ db, keyring, now })
const masterKey = createMasterKey({ db, keyring, vault, signer, log })
await masterKey.check().catch(fail)
if (config.dynamicCredentials.mode !== 'off') await fingerprints.catchUp().catch(fail)
const statementKeys = await signer.publicKeys().catch(fail)
const routes = createRoutes()
const activity = createActivity({ db, now, log })
const metrics = createMetrics({ activity, version })
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
  bootFor,
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
const attempts = createAttempts()
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
      })
const proxy = createProxy({
  directory,
  routes,
  fleet,
  signer,
  activity,
  control,
  metrics: metrics.proxy,
  limiter: createLimiter(),
  ...(clients ? { clients } : {}),
  addressOf: doors.public.addressOf,
  now,
  log,
})
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
  directory,
  routes,
  proxy,
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
  publicUrl: config.publicUrl,
  adminToken: config.admin.token,
  ...(config.oidc ? { adminTokens: createAdminTokens({ oidc: config.oidc, now }) } : {}),
  attempts,
  addressOf: doors.admin.addressOf,
  door: doors.admin,
})

const retention = keepRetention({ db, days: config.auditRetentionDays, log })
await fleet.start().catch(fail)
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
    await rolloutsClosed
    await fleet.close()
    await activity.close()
    await control.close()
    await routes.close()
    await directory.close()
    await retention.close()
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

async function bootFor(userId: string, { generation, port }: { generation: number; port: number }): Promise<Boot> {
  const [settings, dataKey, databaseLogin] = await Promise.all([
    users.settings(userId),
    vault.dataKey(userId),
    vault.databaseLogin(userId),
  ])
  if (settings.sdp.portal === null)
    throw new AppError(
      'sdp-settings-missing',
      `"${settings.username}" has no portal: set sdp.portal, or SDP_INSTANCE_NAME for everybody.`,
    )
  const { id, username, displayName, email } = settings
  return {
    version: 1,
    user: { id, username, displayName, email },
    generation,
    listen: { host: config.runtime === 'docker' ? '0.0.0.0' : '127.0.0.1', port },
    statementKeys: statementKeys as Boot['statementKeys'],
    database: {
      host: config.instance.databaseHost,
      port: config.instance.databasePort,
      database: config.database.database,
      ...databaseLogin,
    },
    dataKey: dataKey.bytes.toString('base64'),
    sdp: { ...settings.sdp, portal: settings.sdp.portal },
    allowInsecureUpstream: config.allowInsecureUpstream,
    allowedUpstreamHosts: [...config.allowedUpstreamHosts],
    maxSessions: settings.limits.sessions,
    toolsets: settings.toolsets,
    readOnly: settings.readOnly,
    consentLinks: config.consent !== null,
    logLevel: config.logLevel,
  }
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
  await withDatabase(database, async () => {
    await migrate(owner, { folder: migrations, log: message => log.info(message) })
    const db = createDb(owner)
    try {
      await prepareControlPlaneRole(db, { name: role.name, password: role.password.reveal() })
    } finally {
      await db.close()
    }
  })
  log.info({ role: role.name }, 'database.prepared')
  process.exit(0)
}

/** The database may come up after us; we wait half a minute for it, and say so. */
async function withDatabase(
  { host, port, database, user }: Omit<Config['database'], 'password'>,
  work: () => Promise<void>,
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work()
    } catch (error) {
      const { code, message } = error as { code?: string; message: string }
      const hopeless = code === '28P01' || code === '28000' || code === '3D000' || code === '42501'
      const waiting =
        ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'ETIMEDOUT', 'ECONNRESET', '57P03', '53300'].includes(code ?? '') ||
        /timeout|terminated|not currently accepting/i.test(message)
      if (hopeless || !waiting || attempt >= 15)
        fail(
          new Error(
            `the database ${database} at ${host}:${port} cannot be used as ${user}: ${message}. ${
              hopeless
                ? code === '42501'
                  ? 'The role may not change the schema: run this program with --prepare-database as the owner first.'
                  : 'Check SDP_DB_USER, SDP_DB_PASSWORD and SDP_DB_NAME.'
                : 'Check that PostgreSQL runs there (SDP_DB_HOST, SDP_DB_PORT).'
            }`,
          ),
        )
      log.warn({ host, port, attempt, reason: message }, 'database.waiting')
      await delay(2_000)
    }
  }
}

function fail(error: Error): never {
  log.fatal({ error }, 'control-plane.failed')
  process.stderr.write(`sdp-mcp: ${error.message}\n`)
  process.exit(exitCodes.unavailable)
}
