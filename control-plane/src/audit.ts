import type { Db, Queryable } from './db.ts'
import type { Logger } from './log.ts'

/** Owns table audit_events, which only grows. Instances add their tool calls through record_tool_calls (0002_audit.sql). */

export type AuditEvent = {
  /** who did it: `admin`, `system`, or `user:<username>` */
  actor: string
  /** object then verb, e.g. `user.created`, `api-key.revoked` */
  action: string
  username?: string
  userId?: string
  /** what changed; never a secret */
  detail?: Record<string, unknown>
}

/** Records an event. Call it with the transaction of the change, so that neither exists without the other. */
export async function appendAudit(tx: Queryable, event: AuditEvent): Promise<void> {
  await tx.query('insert into audit_events (actor, action, username, user_id, detail) values ($1, $2, $3, $4, $5)', [
    event.actor,
    event.action,
    event.username ?? null,
    event.userId ?? null,
    JSON.stringify(event.detail ?? {}),
  ])
}

/** One event as it is shown. */
export type AuditEntry = {
  /** grows with time of writing; a decimal number, as text */
  id: string
  /** RFC 3339 with microseconds, UTC */
  at: string
  actor: string
  action: string
  username: string | null
  detail: Record<string, unknown>
}

export type AuditFilter = {
  username?: string | undefined
  /** an action, or its beginning with `*` at the end: `tool.called`, `connection.*` */
  action?: string | undefined
  /** first and last moment, ISO 8601; `to` is excluded */
  from?: string | undefined
  to?: string | undefined
}

/** Where a page ends: `<at>/<id>`. */
export type AuditCursor = string
export const auditCursor = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\/\d{1,19}$/

const exportPage = 1_000

/**
 * One page of events.
 * @param order - `newest` first to look at, `oldest` first to hand on
 */
export async function listAudit(
  db: Queryable,
  filter: AuditFilter,
  page: { limit: number; cursor?: AuditCursor | undefined; order: 'newest' | 'oldest' },
): Promise<{ events: AuditEntry[]; nextCursor: AuditCursor | null }> {
  const [at, id] = page.cursor?.split('/') ?? []
  const [than, direction] = page.order === 'newest' ? ['<', 'desc'] : ['>', 'asc']
  const { action } = filter
  // only the conditions that are asked for, so that the planner can choose an index by them
  const values: unknown[] = []
  const bind = (value: unknown) => `$${values.push(value)}`
  const conditions = [
    ...(filter.username === undefined ? [] : [`username = ${bind(filter.username)}`]),
    ...(action === undefined
      ? []
      : [action.endsWith('*') ? `starts_with(action, ${bind(action.slice(0, -1))})` : `action = ${bind(action)}`]),
    ...(filter.from === undefined ? [] : [`at >= ${bind(filter.from)}::timestamptz`]),
    ...(filter.to === undefined ? [] : [`at < ${bind(filter.to)}::timestamptz`]),
    ...(at === undefined ? [] : [`(at, id) ${than} (${bind(at)}::timestamptz, ${bind(id)}::bigint)`]),
  ]
  const rows = await db.query<AuditEntry>(
    `select id::text, to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at, actor, action, username, detail
       from audit_events ${conditions.length > 0 ? `where ${conditions.join(' and ')}` : ''}
      order by audit_events.at ${direction}, audit_events.id ${direction} limit ${bind(page.limit + 1)}`,
    values,
  )
  const events = rows.slice(0, page.limit)
  const last = events.at(-1)
  return { events, nextCursor: rows.length > page.limit && last ? `${last.at}/${last.id}` : null }
}

/**
 * Events from the oldest on, a page in memory at a time and no transaction held between them. What is written while it
 * runs may or may not be in it.
 */
export async function* exportAudit(
  db: Queryable,
  filter: AuditFilter,
  { limit = Number.POSITIVE_INFINITY, cursor }: { limit?: number | undefined; cursor?: AuditCursor | undefined } = {},
): AsyncGenerator<AuditEntry[]> {
  let left = limit
  let from = cursor
  while (left > 0) {
    const page = await listAudit(db, filter, { limit: Math.min(left, exportPage), cursor: from, order: 'oldest' })
    if (page.events.length > 0) yield page.events
    left -= page.events.length
    if (page.nextCursor === null) return
    from = page.nextCursor
  }
}

const lookEveryMs = 60 * 60_000
const forgetAtOnce = 5_000

export type Retention = {
  /** Lets go of what is older than the retention, now. @returns how many events went */
  run(): Promise<number>
  close(): Promise<void>
}

/**
 * Applies the retention every hour, in batches, one control plane at a time. The database does it through a function
 * that refuses to go below 30 days and notes each batch; nobody else may delete an event.
 *
 * @param days - how long events are kept; null: for ever
 */
export function keepRetention({ db, days, log }: { db: Db; days: number | null; log: Logger }): Retention {
  let running: Promise<number> | undefined
  let closed = false
  const forget = () =>
    db.withLock('sdp-mcp audit retention', async () => {
      let gone = 0
      for (;;) {
        const [row] = await db.query<{ gone: number }>('select audit_forget($1, $2) as gone', [days, forgetAtOnce])
        gone += row!.gone
        if (row!.gone < forgetAtOnce || closed) break
      }
      if (gone > 0) log.info({ events: gone, days }, 'audit.forgotten')
      return gone
    })
  const run = () => {
    if (days === null) return Promise.resolve(0)
    running ??= forget().finally(() => {
      running = undefined
    })
    return running
  }
  const look = () => void run().catch(error => log.warn({ error }, 'audit.retention.failed'))
  const first = setTimeout(look, 60_000)
  const timer = setInterval(look, lookEveryMs)
  first.unref()
  timer.unref()
  return {
    run,
    async close() {
      closed = true
      clearTimeout(first)
      clearInterval(timer)
      await running?.catch(() => {})
    },
  }
}
