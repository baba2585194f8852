import type { Db } from './db.ts'
import type { Logger } from './log.ts'

/**
 * What the proxy sees of one user's traffic. It writes these fields as bytes pass, without timers and without
 * allocating; everybody else reads.
 */
export type Meter = {
  /** last byte in either direction that was not a keep-alive, or last begin or end of an exchange; milliseconds since 1970 */
  activeAt: number
  /** calls under way */
  calls: number
  /** event streams that are open, however silent */
  streams: number
  bytesIn: number
  bytesOut: number
  /** exchanges so far, and those that failed for no fault of the client */
  requests: number
  failures: number
}

/** What all control planes of the database saw together. */
export type Seen = { activeAt: number; streamedAt: number; requests: number; failures: number }

/** Who uses their instance: in memory for the proxy, and in table instance_activity for all control planes. */
export interface Activity {
  meter(userId: string): Meter
  all(): ReadonlyMap<string, Meter>
  /** Writes what changed since the last time; also done every few seconds. */
  flush(): Promise<void>
  /** Own traffic and what others have written, of everybody or one user; flushes before. */
  read(userId?: string): Promise<Map<string, Seen>>
  forget(userId: string): void
  close(): Promise<void>
}

const flushMs = 5_000
/** an open stream is noted this often, and believed for twice as long */
const streamNoteMs = 30_000
export const streamBelievedMs = 2 * streamNoteMs

type Written = { activeAt: number; streamedAt: number; requests: number; failures: number }

export function createActivity({ db, now, log }: { db: Db; now: () => number; log: Logger }): Activity {
  const meters = new Map<string, Meter>()
  const written = new Map<string, Written>()
  let flushing: Promise<void> | undefined

  async function write(): Promise<void> {
    const at = now()
    const changed: { userId: string; before: Written; after: Written }[] = []
    for (const [userId, meter] of meters) {
      const before = written.get(userId) ?? { activeAt: 0, streamedAt: 0, requests: 0, failures: 0 }
      const after = {
        activeAt: meter.calls > 0 ? at : meter.activeAt,
        streamedAt: meter.streams > 0 ? at : before.streamedAt,
        requests: meter.requests,
        failures: meter.failures,
      }
      const streamIsNews = after.streamedAt - before.streamedAt >= streamNoteMs
      if (after.activeAt === before.activeAt && after.requests === before.requests && !streamIsNews) continue
      changed.push({ userId, before, after })
    }
    if (changed.length === 0) return
    // a user who was removed meanwhile has no row to add to
    await db.query(
      `insert into instance_activity as a (user_id, active_at, streamed_at, requests, failures)
       select n.user_id, least(to_timestamp(n.active_at / 1000), now()),
              to_timestamp(nullif(least(n.streamed_at, extract(epoch from now()) * 1000), 0) / 1000), n.requests, n.failures
         from unnest($1::uuid[], $2::float8[], $3::float8[], $4::bigint[], $5::bigint[])
                as n (user_id, active_at, streamed_at, requests, failures)
         join users u on u.id = n.user_id
       on conflict (user_id) do update set active_at = greatest(a.active_at, excluded.active_at),
         streamed_at = greatest(a.streamed_at, excluded.streamed_at),
         requests = a.requests + excluded.requests, failures = a.failures + excluded.failures`,
      [
        changed.map(({ userId }) => userId),
        changed.map(({ after }) => after.activeAt),
        changed.map(({ after }) => after.streamedAt),
        changed.map(({ before, after }) => after.requests - before.requests),
        changed.map(({ before, after }) => after.failures - before.failures),
      ],
    )
    for (const { userId, after } of changed) if (meters.has(userId)) written.set(userId, after)
  }

  const flush = () => {
    flushing ??= write().finally(() => {
      flushing = undefined
    })
    return flushing
  }
  const timer = setInterval(() => flush().catch(error => log.warn({ error }, 'activity.flush.failed')), flushMs)
  timer.unref()

  return {
    meter(userId) {
      let meter = meters.get(userId)
      if (!meter) {
        meter = { activeAt: 0, calls: 0, streams: 0, bytesIn: 0, bytesOut: 0, requests: 0, failures: 0 }
        meters.set(userId, meter)
      }
      return meter
    },
    all: () => meters,
    flush,
    async read(userId) {
      await flush()
      const rows = await db.query<{
        user_id: string
        active_at: Date
        streamed_at: Date | null
        requests: string
        failures: string
      }>(
        'select user_id, active_at, streamed_at, requests, failures from instance_activity where $1::uuid is null or user_id = $1',
        [userId ?? null],
      )
      const at = now()
      // a clock that was ahead leaves times behind that are still to come
      for (const meter of meters.values()) meter.activeAt = Math.min(meter.activeAt, at)
      return new Map(
        rows.map(row => {
          const own = meters.get(row.user_id)
          return [
            row.user_id,
            {
              activeAt: own && own.calls > 0 ? at : Math.max(row.active_at.getTime(), own?.activeAt ?? 0),
              streamedAt: own && own.streams > 0 ? at : (row.streamed_at?.getTime() ?? 0),
              requests: Number(row.requests),
              failures: Number(row.failures),
            },
          ]
        }),
      )
    },
    forget(userId) {
      meters.delete(userId)
      written.delete(userId)
    },
    async close() {
      clearInterval(timer)
      await flush().catch(error => log.warn({ error }, 'activity.flush.failed'))
    },
  }
}
