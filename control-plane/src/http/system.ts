import { z } from 'zod'
import { ConfigError } from '../config.ts'
import type { Db } from '../db.ts'
import { AppError } from '../errors.ts'
import type { Runtime } from '../fleet/runtime.ts'
import type { MasterKey } from '../master-key.ts'
import type { Routes } from '../proxy/routes.ts'
import type { Users } from '../users.ts'
import { actorOf } from './auth.ts'
import type { App } from './server.ts'

type Part = { status: 'ok' | 'failed'; detail: string | null }
const part = z.object({ status: z.enum(['ok', 'failed']), detail: z.string().nullable() })

/** Whether database and runtime answer, each on its own. */
export async function probe({
  db,
  runtime,
}: {
  db: Db
  runtime: Runtime
}): Promise<{ database: Part; runtime: Part; versions: { database?: string; runtime?: string } }> {
  const versions: { database?: string; runtime?: string } = {}
  const check = async (work: () => Promise<void>): Promise<Part> => {
    try {
      await work()
      return { status: 'ok', detail: null }
    } catch (error) {
      return {
        status: 'failed',
        detail: error instanceof AppError || error instanceof Error ? error.message : 'unknown',
      }
    }
  }
  const [database, engine] = await Promise.all([
    check(async () => {
      const [row] = await db.query<{ server_version: string }>('show server_version')
      versions.database = row!.server_version
    }),
    check(async () => {
      versions.runtime = (await runtime.ping()).version
    }),
  ])
  return { database, runtime: engine, versions }
}

export function healthRoutes(app: App, parts: { db: Db; runtime: Runtime }): void {
  const quiet = { quiet: true } as never
  app.get('/healthz', { config: quiet, schema: { hide: true } as never }, async () => ({ status: 'ok' }))
  app.get('/readyz', { config: quiet, schema: { hide: true } as never }, async (_request, reply) => {
    const { database, runtime } = await probe(parts)
    const ready = database.status === 'ok' && runtime.status === 'ok'
    if (!ready) reply.code(503).header('retry-after', '5')
    return { status: ready ? 'ok' : 'failed', database: database.status, runtime: runtime.status }
  })
}

const masterKeyStatus = z.object({
  current: z.string(),
  keys: z.array(
    z.object({
      id: z.string(),
      configured: z.boolean(),
      dataKeys: z.number().int(),
      signingKeys: z.number().int(),
    }),
  ),
  remaining: z.number().int(),
  running: z.boolean(),
  failure: z.string().nullable(),
})

export type SystemRoutes = {
  db: Db
  runtime: Runtime
  users: Users
  routes: Routes
  /** open exchanges of each user, in all workers */
  openExchanges: () => Promise<ReadonlyMap<string, number>>
  masterKey: MasterKey
  version: string
  /** processes that serve */
  workers: number
  startedAt: number
  now: () => number
}

export function systemRoutes(
  app: App,
  { db, runtime, users, routes, openExchanges, masterKey, version, workers, startedAt, now }: SystemRoutes,
): void {
  app.get(
    '/v1/routes',
    {
      schema: {
        summary: 'The route table',
        tags: ['system'],
        response: {
          200: z.object({
            routes: z.array(
              z.object({
                username: z.string(),
                address: z.string(),
                generation: z.number().int(),
                openExchanges: z.number().int(),
              }),
            ),
          }),
        },
      },
    },
    async () => {
      const open = await openExchanges()
      const table = routes.all()
      const names = await db.query<{ id: string; username: string }>(
        'select id, username from users where id = any($1)',
        [table.map(route => route.userId)],
      )
      const nameOf = new Map(names.map(row => [row.id, row.username]))
      return {
        routes: table
          .map(({ userId, address, generation }) => ({
            username: nameOf.get(userId) ?? '',
            address,
            generation,
            openExchanges: open.get(userId) ?? 0,
          }))
          .filter(route => route.username !== '')
          .sort((a, b) => a.username.localeCompare(b.username)),
      }
    },
  )

  app.get(
    '/v1/system',
    {
      schema: {
        summary: 'Versions, health and counts',
        tags: ['system'],
        response: {
          200: z.object({
            version: z.string(),
            node: z.string(),
            workers: z.number().int(),
            uptimeSeconds: z.number().int(),
            runtime: part.extend({ kind: z.string(), version: z.string().nullable() }),
            database: part.extend({ version: z.string().nullable() }),
            counts: z
              .object({
                users: z.number().int(),
                suspended: z.number().int(),
                instances: z.record(z.string(), z.number().int()),
              })
              .nullable(),
            masterKey: masterKeyStatus.nullable(),
          }),
        },
      },
    },
    async () => {
      const health = await probe({ db, runtime })
      return {
        version,
        node: process.version,
        workers,
        uptimeSeconds: Math.floor((now() - startedAt) / 1000),
        runtime: { ...health.runtime, kind: runtime.kind, version: health.versions.runtime ?? null },
        database: { ...health.database, version: health.versions.database ?? null },
        counts: health.database.status === 'ok' ? await users.counts() : null,
        masterKey: health.database.status === 'ok' ? await masterKey.status() : null,
      }
    },
  )

  app.post(
    '/v1/system/master-key/rewrap',
    {
      schema: {
        summary: 'Rotate the master key: wrap every stored key with the current one',
        description:
          'First configure the new key as SDP_MASTER_KEY and the one before in SDP_MASTER_KEYS_OLD; files are read again by this call. Repeatable; when `remaining` is 0 the old key can go. Follow it with GET /v1/system.',
        tags: ['system'],
        response: { 202: masterKeyStatus },
      },
    },
    async (request, reply) => {
      try {
        await masterKey.rewrap(actorOf(request))
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error
        throw new AppError('key-unknown', `The keys could not be read again: ${error.message}`, { cause: error })
      }
      reply.code(202)
      return masterKey.status()
    },
  )
}
