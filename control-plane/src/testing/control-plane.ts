import { request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import { createActivity } from '../activity.ts'
import { buildAdminApp, buildPublicApp, type Patience } from '../app.ts'
import { createAttempts } from '../attempts.ts'
import { createClientFingerprints } from '../client-fingerprints.ts'
import { createConnections } from '../connections.ts'
import { createConsent } from '../consent.ts'
import { createDb } from '../db.ts'
import { openDirectory } from '../directory.ts'
import { createDoors } from '../door.ts'
import { createDynamicCredentials } from '../dynamic-credentials.ts'
import { createMemoryEngine, createMemoryRuntime } from '../fleet/testing/memory-runtime.ts'
import { createAdminTokens, createStatementSigner } from '../identity.ts'
import { createInstanceControl } from '../instance-control.ts'
import { createKeyring } from '../keyring.ts'
import { createMasterKey } from '../master-key.ts'
import { createMetrics } from '../metrics.ts'
import { createLimiter } from '../proxy/limits.ts'
import { createProxy } from '../proxy/proxy.ts'
import { createRoutes } from '../proxy/routes.ts'
import { createRollouts } from '../rollouts.ts'
import type { Resolve } from '../sdp-settings.ts'
import { createUsage } from '../usage.ts'
import { createUsers } from '../users.ts'
import { createVault } from '../vault.ts'
import { testConfig, testSecrets } from './config.ts'
import type { TestDatabase } from './database.ts'
import { recordingLog } from './log.ts'
import { startUpstream, type Upstream } from './upstream.ts'

export type Answer = {
  status: number
  headers: IncomingMessage['headers']
  text: string
  // biome-ignore lint/suspicious/noExplicitAny: answers are read by field
  json: any
}
export type Ask = {
  method?: string
  path: string
  headers?: OutgoingHttpHeaders
  body?: unknown
  /** local address to connect from; 127.0.0.0/8 is all ours */
  from?: string
}

/** A control plane in this process, assembled as main.ts does it, with both listeners; only the fleet is played. */
export type TestControlPlane = Awaited<ReturnType<typeof startControlPlane>>

export async function startControlPlane(
  database: TestDatabase,
  {
    environment = {},
    now = Date.now,
    resolve,
    patience,
    cooldownMs,
  }: {
    environment?: Record<string, string>
    now?: () => number
    resolve?: Resolve
    patience?: Patience
    /** of the keys of the identity provider */
    cooldownMs?: number
  } = {},
) {
  const config = testConfig(environment)
  const { log, text: logged } = recordingLog()
  // a connection of its own, as another process has it
  const db = createDb({ ...database.login })
  const keyring = createKeyring(() => ({ current: config.masterKey, old: config.oldMasterKeys }))
  const vault = createVault({ db, keyring })
  const fingerprints = createClientFingerprints({ db, vault, keyring, config })
  const users = createUsers({ db, vault, config, fingerprints, ...(resolve ? { resolve } : {}) })
  const signer = createStatementSigner({ db, keyring, now })
  const routes = createRoutes()
  const runtime = createMemoryRuntime(createMemoryEngine())
  const upstreams = new Map<string, Upstream>()
  let answer: Upstream['answer'] | undefined
  const fleet = {
    async ensureReady(userId: string) {
      const upstream = upstreams.get(userId) ?? (await startUpstream(answer))
      upstreams.set(userId, upstream)
      const route = { address: upstream.address, generation: 1, draining: null }
      routes.set(userId, route)
      return route
    },
    reconcile: async () => {},
    reconcileAll: async () => {},
    checkCapacity: async () => {},
    start: async () => {},
    close: async () => {},
    sleep: async () => false,
    moveTo: async () => 'asleep' as const,
    leading: () => true,
  }
  if (config.dynamicCredentials.mode !== 'off') await fingerprints.catchUp()
  const retire = () => void users.retireExpiredKeys().catch(error => log.warn({ error }, 'api-keys.retire.failed'))
  const directory = await openDirectory({
    db,
    log,
    now,
    config,
    takesClients: config.dynamicCredentials.mode !== 'off',
    onRevoked: revocation => {
      proxy.cut(revocation)
      if (revocation.reason === 'key-revoked') retire()
    },
    onChanged: () => {},
  })
  const activity = createActivity({ db, now, log })
  const control = createInstanceControl({ signer })
  const metrics = createMetrics({ activity, version: 'test' })
  const attempts = createAttempts({ elapsed: now })
  const doors = createDoors(config, log)
  const { checkCapacity } = fleet
  const clients =
    config.dynamicCredentials.mode === 'off'
      ? {}
      : {
          clients: createDynamicCredentials({
            directory,
            fingerprints,
            users,
            checkCapacity,
            attempts,
            config,
            elapsed: now,
            log,
          }),
        }
  const proxy = createProxy({
    directory,
    routes,
    fleet,
    signer,
    activity,
    control,
    metrics: metrics.proxy,
    limiter: createLimiter(),
    ...clients,
    addressOf: doors.public.addressOf,
    now,
    log,
  })
  const errorPages = { read: async () => undefined }
  const wait = patience ? { patience } : {}
  const connections = createConnections({ db, users, vault, fleet, control, log })
  const rollouts = createRollouts({
    db,
    fleet,
    runtime,
    activity,
    collect: async () => {},
    image: config.instance.image,
    log,
    now,
  })
  const usage = createUsage({ db, control, metrics, log })
  const consent = createConsent({ db, users, connections, config })
  const { publicUrl } = config
  const publicApp = buildPublicApp({
    db,
    runtime,
    proxy,
    consent,
    publicUrl,
    door: doors.public,
    log,
    errorPages,
    ...wait,
  })
  const adminApp = await buildAdminApp({
    users,
    connections,
    consent,
    masterKey: createMasterKey({ db, keyring, vault, signer, log }),
    fleet,
    runtime,
    directory,
    routes,
    openExchanges: async () => proxy.open(),
    control,
    usage,
    metrics,
    rollouts,
    db,
    log,
    errorPages,
    now,
    startedAt: now(),
    version: 'test',
    workers: 1,
    publicUrl,
    adminToken: config.admin.token,
    ...(config.oidc
      ? {
          adminTokens: createAdminTokens({
            oidc: config.oidc,
            now,
            ...(cooldownMs === undefined ? {} : { cooldownMs }),
          }),
        }
      : {}),
    attempts,
    addressOf: doors.admin.addressOf,
    door: doors.admin,
    ...wait,
  })
  const port = async (app: typeof publicApp) => {
    await app.listen({ port: 0, host: '127.0.0.1' })
    return (app.server.address() as { port: number }).port
  }
  const [publicPort, adminPort] = [await port(publicApp), await port(adminApp)]
  const ask = (to: number) => (request: Ask) => readAnswer(openRequest(to, request))

  return {
    config,
    users,
    directory,
    db,
    publicPort,
    adminPort,
    logged,
    /** what all instances answer that start from now on */
    answerWith(scripted: Upstream['answer']) {
      answer = scripted
    },
    /** the instance of a user, if anybody asked for it */
    upstreamOf: (userId: string) => upstreams.get(userId),
    ask: ask(publicPort),
    open: (request: Ask) => openRequest(publicPort, request),
    admin: (method: string, path: string, body?: unknown, more: Partial<Ask> = {}) =>
      ask(adminPort)({
        method,
        path,
        body,
        ...more,
        headers: { authorization: `Bearer ${testSecrets.adminToken}`, ...more.headers },
      }),
    async [Symbol.asyncDispose]() {
      await proxy.close(0)
      for (const app of [publicApp, adminApp]) {
        app.server.closeAllConnections()
        await app.close()
      }
      await routes.close()
      await directory.close()
      for (const upstream of upstreams.values()) await upstream[Symbol.asyncDispose]()
      await activity.close()
      await control.close()
      await db.close()
    },
  }
}

/** One request on a connection of its own, and its answer as it begins. */
export function openRequest(port: number, { method = 'GET', path, headers = {}, body, from }: Ask) {
  const text = body === undefined || typeof body === 'string' ? body : JSON.stringify(body)
  const request = httpRequest({
    port,
    host: '127.0.0.1',
    method,
    path,
    agent: false,
    ...(from ? { localAddress: from } : {}),
    headers: { ...(text === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
  })
  const response = new Promise<IncomingMessage>((done, failed) => {
    request.once('response', done)
    request.once('error', failed)
  })
  response.catch(() => {})
  request.end(text as string | undefined)
  return { request, response }
}

async function readAnswer({ response }: { response: Promise<IncomingMessage> }): Promise<Answer> {
  const incoming = await response
  const chunks: Buffer[] = []
  for await (const chunk of incoming) chunks.push(chunk)
  const text = Buffer.concat(chunks).toString()
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {}
  return { status: incoming.statusCode!, headers: incoming.headers, text, json }
}
