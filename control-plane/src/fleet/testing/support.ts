import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import type { Boot } from '@sdp-mcp/instance/contract'
import { freePort } from '@sdp-mcp/migrations/testing'
import { pino } from 'pino'
import { createActivity } from '../../activity.ts'
import type { Db } from '../../db.ts'
import type { FleetOptions } from '../fleet.ts'
import type { InstanceSpec } from '../runtime.ts'

export const testInstanceEntry = fileURLToPath(new URL('test-instance.ts', import.meta.url))
export const silentLog = pino({ level: 'silent' })

/** A host with room for everybody, on which nothing is put to sleep. */
export const unlimited: Pick<FleetOptions['config'], 'capacity' | 'idle'> = {
  capacity: { maxInstances: null, requestMb: 1, reserveMb: 0 },
  idle: { stopAfterMs: null, streamStopAfterMs: null },
}

/** What a fleet needs beside runtime and database, doing nothing. */
export function fleetStandIns(db: Db): Pick<FleetOptions, 'activity' | 'beforeStop' | 'prove'> {
  return {
    activity: createActivity({ db, now: Date.now, log: silentLog }),
    async beforeStop() {},
    async prove() {},
  }
}

/** What no test may find anywhere outside the instance. */
export const bootSecrets = { password: 'role-password-Zq81', dataKey: 'ZGF0YS1rZXktb2YtdGhlLXVzZXItMzItYnl0ZXMhIQ==' }

export function testBoot(part: { userId?: string; username?: string; generation?: number; port: number }): Boot {
  return {
    version: 1,
    user: { id: part.userId ?? randomUUID(), username: part.username ?? 'alice', displayName: 'Alice', email: null },
    generation: part.generation ?? 1,
    listen: { host: '0.0.0.0', port: part.port },
    statementKeys: [{ kty: 'OKP', crv: 'Ed25519', kid: 'test', x: 'AAAA' }],
    database: { host: 'db', port: 5432, database: 'sdp_mcp', user: 'role', password: bootSecrets.password },
    dataKey: bootSecrets.dataKey,
    sdp: { dataCenter: 'US', portal: 'itdesk', baseUrl: 'https://sdp.test', accountsUrl: 'https://accounts.test' },
    toolsets: ['core'],
    readOnly: false,
    consentLinks: false,
    allowInsecureUpstream: true,
    allowedUpstreamHosts: [],
    maxSessions: 100,
    logLevel: 'info',
  }
}

export async function testSpec(
  image: string,
  part: { userId?: string; username?: string; generation?: number; port?: number } = {},
): Promise<InstanceSpec> {
  return {
    boot: testBoot({ ...part, port: part.port ?? (await freePort()) }),
    image,
    limits: { memoryMb: 128, cpus: 1, pids: 64 },
  }
}

/** Polls until `look` gives something, failing with its name when the deadline passes. */
export async function eventually<T>(
  name: string,
  look: () => Promise<T | undefined | false | null> | T | undefined | false | null,
  timeoutMs = 10_000,
): Promise<T> {
  const deadline = Date.now() + timeoutMs
  let last: unknown
  while (Date.now() < deadline) {
    try {
      const found = await look()
      if (found) return found
    } catch (error) {
      last = error
    }
    await new Promise(done => setTimeout(done, 15))
  }
  throw new Error(`not within ${timeoutMs} ms: ${name}`, { cause: last })
}

export async function getJson<T = Record<string, unknown>>(address: string, path: string): Promise<T> {
  const response = await fetch(address + path, { signal: AbortSignal.timeout(5_000), headers: { connection: 'close' } })
  return (await response.json()) as T
}

/** Waits until the process behind an address says that it is this user's generation. */
export function answering(address: string | null, userId: string, generation: number) {
  return eventually(`${address} answers as ${userId} ${generation}`, async () => {
    const body = await getJson<{ audience: string }>(address ?? '', '/healthz')
    return body.audience === `instance:${userId}:${generation}` && body
  })
}

export async function readAll(chunks: AsyncIterable<Uint8Array>): Promise<string> {
  let text = ''
  for await (const chunk of chunks) text += Buffer.from(chunk).toString()
  return text
}
