import { request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import type { Patience } from '../app.ts'
import { openControlPlane } from '../control-plane.ts'
import { createDb } from '../db.ts'
import type { Fleet, FleetOptions } from '../fleet/fleet.ts'
import { createMemoryEngine, createMemoryRuntime } from '../fleet/testing/memory-runtime.ts'
import { createKeyring } from '../keyring.ts'
import type { Resolve } from '../sdp-settings.ts'
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

/** A control plane in this process, as main.ts opens it, with both listeners; only the fleet is played. */
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
  const upstreams = new Map<string, Upstream>()
  let answer: Upstream['answer'] | undefined
  const playFleet = ({ onRoute }: FleetOptions): Fleet => ({
    async ensureReady(userId) {
      const upstream = upstreams.get(userId) ?? (await startUpstream(answer))
      upstreams.set(userId, upstream)
      const route = { address: upstream.address, generation: 1, draining: null }
      onRoute(userId, route)
      return route
    },
    reconcile: async () => {},
    reconcileAll: async () => {},
    checkCapacity: async () => {},
    start: async () => {},
    close: async () => {},
    sleep: async () => false,
    moveTo: async () => 'asleep',
    leading: () => true,
  })
  const controlPlane = await openControlPlane({
    config,
    version: 'test',
    startedAt: now(),
    db,
    keyring: createKeyring(() => ({ current: config.masterKey, old: config.oldMasterKeys })),
    runtime: createMemoryRuntime(createMemoryEngine()),
    errorPages: { read: async () => undefined },
    resolve,
    log,
    now,
    elapsed: now,
    createFleet: playFleet,
    patience,
    oidcCooldownMs: cooldownMs,
  })
  await controlPlane.start()
  const { users, directory, publicApp, adminApp } = controlPlane
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
      await controlPlane.close(0)
      for (const upstream of upstreams.values()) await upstream[Symbol.asyncDispose]()
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
