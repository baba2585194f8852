import { setTimeout as delay } from 'node:timers/promises'
import { type Activity, createActivity } from './activity.ts'
import { type App, buildAdminApp, buildPublicApp, type ErrorPages, listenManifold, type Patience } from './app.ts'
import { createAttempts } from './attempts.ts'
import { keepRetention } from './audit.ts'
import { createBoot } from './boot.ts'
import { createClientFingerprints } from './client-fingerprints.ts'
import type { Config } from './config.ts'
import { createConnections } from './connections.ts'
import { type Consent, createConsent } from './consent.ts'
import type { Db } from './db.ts'
import { type Directory, openDirectory } from './directory.ts'
import { createDoors, instanceAddresses } from './door.ts'
import { createDynamicCredentials } from './dynamic-credentials.ts'
import { createEgress } from './egress/egress.ts'
import { createEgressNotes } from './egress/notes.ts'
import { createReach } from './egress/reach.ts'
import { createFaultPoints } from './fault-points.ts'
import { createFleet as createRealFleet, type Fleet, type FleetOptions } from './fleet/fleet.ts'
import type { Runtime } from './fleet/runtime.ts'
import { selfCheck } from './fleet/self-check.ts'
import { createAdminTokens, createStatementSigner } from './identity.ts'
import { controlTargets, createInstanceControl } from './instance-control.ts'
import { watchInstanceTransactions } from './instance-transactions.ts'
import type { Keyring } from './keyring.ts'
import type { Logger } from './log.ts'
import { createMasterKey } from './master-key.ts'
import { createMetrics } from './metrics.ts'
import { createLimiter } from './proxy/limits.ts'
import { createProxy, type McpProxy } from './proxy/proxy.ts'
import { createRoutes, type Routes } from './proxy/routes.ts'
import { createRollouts, type Rollouts } from './rollouts.ts'
import type { Resolve } from './sdp-settings.ts'
import { createUsage } from './usage.ts'
import { createUsers, type Users } from './users.ts'
import { createVault, type Vault } from './vault.ts'
import { noSiblings, type Siblings } from './workers/siblings.ts'

/** What a control plane is made of; whatever it opens itself, it closes, and nothing else. */
export type ControlPlaneOptions = {
  config: Config
  version: string
  /** when this process began, in milliseconds since 1970 */
  startedAt: number
  db: Db
  keyring: Keyring
  runtime: Runtime
  /** the other workers; without them this process serves alone */
  siblings?: Siblings
  errorPages: ErrorPages
  /** asks the DNS about upstreams an admin names; without it only names and addresses themselves are looked at */
  resolve?: Resolve
  log: Logger
  now: () => number
  /** a clock that never jumps, in ms */
  elapsed?: () => number
  /** another fleet than our own, or our own with other options */
  createFleet?: (options: FleetOptions) => Fleet
  /** how long a sender may take */
  patience?: Patience
  /** how soon the keys of the identity provider are read again, see `createAdminTokens` */
  oidcCooldownMs?: number
}

export interface ControlPlane {
  /** Takes over the instances that run, and begins to look after everything. Nobody is served yet. */
  start(): Promise<void>
  /** Opens both listeners where the configuration has them. @throws Error that says what to do about a port that is taken */
  listen(): Promise<void>
  /**
   * Stops taking requests, lets calls end for `callGraceMs` at most, cuts streams, and leaves containers to the next start,
   * which adopts them.
   */
  close(callGraceMs: number): Promise<void>
  /** the listeners, and the parts that tests look into; no part gets another one from here */
  readonly publicApp: App
  readonly adminApp: App
  readonly activity: Activity
  readonly consent: Consent
  readonly directory: Directory
  readonly fleet: Fleet
  readonly proxy: McpProxy
  readonly rollouts: Rollouts
  readonly routes: Routes
  readonly users: Users
  readonly vault: Vault
}

const collectUsageMs = 60_000
const shareUsesMs = 100

/**
 * The composition root: makes every part of a control plane, gives each the parts it needs, and starts and ends them in the
 * one right order. Each worker of a control plane is made by it; what must run once in an installation is done by the leader
 * of the fleet.
 *
 * @throws AppError `key-unknown`, `database-unavailable`
 */
export async function openControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const { config, version, db, keyring, runtime, errorPages, resolve, log, now, patience } = options
  const { siblings = noSiblings, elapsed = () => performance.now(), createFleet = createRealFleet } = options
  const takesClients = config.dynamicCredentials.mode !== 'off'
  const { image } = config.instance

  // secrets and users
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
  await masterKey.check()
  if (takesClients) await fingerprints.catchUp()
  const statementKeys = await signer.publicKeys()
  const nameOf = async (userId: string) => (await users.settings(userId)).username

  // what is counted
  const routes = createRoutes()
  const activity = createActivity({ db, now, log })
  const metrics = createMetrics({ activity, version, others: () => siblings.ask('metrics') })
  siblings.on('metrics', metrics.snapshot)
  const control = createInstanceControl({ signer })
  const usage = createUsage({ db, control, metrics, log })

  // instances
  const reach = createFaultPoints(config.faultPoint)
  const fleet = createFleet({
    db,
    runtime,
    config: {
      image,
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
    beforeStop: async (userId, instance) => usage.collect({ userId, username: await nameOf(userId), ...instance }),
    async prove(userId, { address, generation }, signal) {
      const statement = await signer.statement({ userId, username: await nameOf(userId), generation }, 'mcp')
      return selfCheck(address, statement, signal)
    },
    observe: metrics.fleet,
    reach,
    onFailure: (userId, failure) => rollouts.instanceFailed(userId, failure),
    beforeRemove: (userId, instance) => connections.revoke(userId, instance),
    afterRemove: userId => users.erase(userId),
  })
  metrics.leads(fleet.leading)
  const connections = createConnections({ db, users, vault, fleet, control, log })
  const consent = createConsent({ db, users, connections, config })
  const rollouts = createRollouts({
    db,
    fleet,
    runtime,
    activity,
    collect: async userIds =>
      usage.collectFrom((await controlTargets({ db, routes })).filter(({ userId }) => userIds.includes(userId))),
    image,
    log,
    now,
    reach,
  })

  // who comes in
  const directory = await openDirectory({
    db,
    log,
    now,
    elapsed,
    config,
    takesClients,
    onRevoked: revocation => {
      proxy.cut(revocation)
      if (revocation.reason === 'key-revoked') retireExpiredKeys()
    },
    onChanged: userId =>
      void (userId === null ? fleet.reconcileAll() : fleet.reconcile(userId)).catch(error =>
        log.warn({ error }, 'fleet.reconcile.failed'),
      ),
  })
  siblings.on('directory.refresh', directory.refresh)
  const attempts = createAttempts({ elapsed, tell: event => siblings.tell('attempt', event) })
  siblings.on('attempt', attempts.heard)
  const limiter = createLimiter({ isShared: siblings.count > 1 })
  siblings.on('uses', (uses, by) => limiter.heard(by, uses))
  siblings.onEnded(limiter.left)
  const doors = createDoors(config, log)
  const clients = takesClients
    ? createDynamicCredentials({
        directory,
        fingerprints,
        users,
        checkCapacity: () => fleet.checkCapacity(),
        attempts,
        config,
        elapsed,
        log,
        tellEnrolled: address => siblings.tell('enrolled', address),
      })
    : undefined
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
    clients,
    addressOf: doors.public.addressOf,
    now,
    log,
  })
  siblings.on('exchanges', () => [...proxy.open()])

  // the listeners
  const { publicUrl } = config
  const publicApp = buildPublicApp({
    db,
    runtime,
    proxy,
    consent,
    publicUrl,
    door: doors.public,
    patience,
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
    startedAt: options.startedAt,
    version,
    workers: siblings.count,
    publicUrl,
    adminToken: config.admin.token,
    adminTokens: config.oidc
      ? createAdminTokens({ oidc: config.oidc, now, cooldownMs: options.oidcCooldownMs })
      : undefined,
    attempts,
    addressOf: doors.admin.addressOf,
    door: doors.admin,
    patience,
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

  // what is done from time to time
  const retention = keepRetention({ db, days: config.auditRetentionDays, log })
  const transactions = watchInstanceTransactions({ db, log, leading: fleet.leading, ended: metrics.transactionEnded })
  const sharing = setInterval(() => {
    const uses = siblings.count > 1 ? limiter.share() : []
    if (uses.length > 0) siblings.tell('uses', uses)
  }, shareUsesMs)
  const collecting = setInterval(() => {
    if (fleet.leading())
      void controlTargets({ db, routes })
        .then(targets => usage.collectAll(targets))
        .catch(error => log.warn({ error }, 'usage.collect.failed'))
  }, collectUsageMs)
  for (const timer of [sharing, collecting]) timer.unref()

  function retireExpiredKeys(): void {
    users.retireExpiredKeys().catch(error => log.warn({ error }, 'api-keys.retire.failed'))
  }

  return {
    async start() {
      // what ended while no control plane ran
      retireExpiredKeys()
      const { made, unopened } = await vault.restoreRoles()
      if (made.length > 0) log.warn({ users: made.length }, 'vault.roles.restored')
      for (const userId of unopened) log.error({ userId }, 'vault.role.unopened')
      await egress?.listen({ host: '0.0.0.0', port: config.egress.port })
      await fleet.start()
      rollouts.start()
    },

    async listen() {
      await explained(listenManifold(publicApp, config.http), config.http)
      await explained(adminApp.listen({ host: config.admin.host, port: config.admin.port }), config.admin)
      const { host, port } = config.admin
      log.info({ public: config.http, admin: { host, port } }, 'control-plane.listening')
    },

    async close(callGraceMs) {
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
    },

    publicApp,
    adminApp,
    activity,
    consent,
    directory,
    fleet,
    proxy,
    rollouts,
    routes,
    users,
    vault,
  }
}

function explained(listening: Promise<unknown>, { host, port }: { host: string; port: number }): Promise<unknown> {
  return listening.catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EADDRINUSE') throw error
    throw new Error(
      `port ${port} on ${host} is taken by another program. Free it, or set another port (SDP_HTTP_PORT, SDP_ADMIN_PORT).`,
    )
  })
}
