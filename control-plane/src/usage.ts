import { latencyBoundsMs, type UsageReport } from '@sdp-mcp/instance/contract'
import type { Db } from './db.ts'
import type { ControlTarget, InstanceControl } from './instance-control.ts'
import type { Logger } from './log.ts'
import type { Metrics } from './metrics.ts'

/** Owns table tool_usage: what the instances counted, kept beyond their life. No arguments, no answers. */
export type Usage = ReturnType<typeof createUsage>

export type UsageRow = {
  username: string
  day: string
  tool: string
  calls: number
  errors: number
  meanMs: number
  maxMs: number
  p50Ms: number
  p95Ms: number
  p99Ms: number
}

const keptDays = 400
const concurrentQuestions = 16

export function createUsage({
  db,
  control,
  metrics,
  log,
}: {
  db: Db
  control: Pick<InstanceControl, 'usage'>
  metrics: Pick<Metrics, 'reported' | 'settle'>
  log: Logger
}) {
  async function store(userId: string, { epoch, tools }: UsageReport): Promise<void> {
    if (tools.length === 0) return
    // The newest report of an epoch holds all earlier ones; the larger number wins should two arrive in the wrong order.
    await db.query(
      `insert into tool_usage as t (user_id, epoch, day, tool, calls, errors, total_ms, max_ms, buckets)
       select u.id, $2, n.day::date, n.tool, n.calls, n.errors, n."totalMs", n."maxMs", n.buckets
         from users u, json_to_recordset($3::json)
                as n (day text, tool text, calls bigint, errors bigint, "totalMs" float8, "maxMs" float8, buckets bigint[])
        where u.id = $1
       on conflict (user_id, epoch, day, tool) do update set calls = excluded.calls, errors = excluded.errors,
         total_ms = excluded.total_ms, max_ms = excluded.max_ms, buckets = excluded.buckets
       where t.calls < excluded.calls`,
      [userId, epoch, JSON.stringify(tools)],
    )
  }

  async function collect(target: ControlTarget): Promise<void> {
    const report = await control.usage(target)
    metrics.reported(report)
    await store(target.userId, report)
  }

  return {
    /** Asks one instance, e.g. before it is stopped, and keeps what it says. */
    collect,

    /** Asks every instance; one that does not answer is asked again the next time. */
    async collectAll(targets: ControlTarget[]): Promise<void> {
      const waiting = targets.values()
      const lane = async () => {
        for (const target of waiting)
          await collect(target).catch(error => log.debug({ error, username: target.username }, 'usage.collect.failed'))
      }
      await Promise.all(Array.from({ length: concurrentQuestions }, lane))
      metrics.settle()
      await db.query('delete from tool_usage where day < current_date - $1::integer', [keptDays])
    },

    /**
     * Calls by user, day and tool, newest day first.
     * @param filter.after - the last row of the page before
     */
    async list(filter: {
      from: string
      to: string
      username?: string | undefined
      limit: number
      after?: { day: string; username: string; tool: string } | undefined
    }): Promise<{ rows: UsageRow[]; more: boolean }> {
      const { from, to, username, limit, after } = filter
      const rows = await db.query<{
        username: string
        day: string
        tool: string
        calls: number
        errors: number
        total_ms: number
        max_ms: number
        buckets: (number | null)[]
      }>(
        `with chosen as (
           select u.username, t.day, t.tool, t.calls, t.errors, t.total_ms, t.max_ms, t.buckets
             from tool_usage t join users u on u.id = t.user_id
            where t.day between $1::date and $2::date and u.wanted <> 'removed' and ($3::text is null or u.username = $3)
              and ($4::date is null or t.day < $4::date or (t.day = $4::date and (u.username, t.tool) > ($5::text, $6::text)))),
         page as (
           select username, day, tool, sum(calls)::float8 as calls, sum(errors)::float8 as errors, sum(total_ms) as total_ms,
                  max(max_ms) as max_ms
             from chosen group by username, day, tool order by day desc, username, tool limit $7)
         select p.username, to_char(p.day, 'YYYY-MM-DD') as day, p.tool, p.calls, p.errors, p.total_ms, p.max_ms,
                array(select sum(b.n)::float8 from chosen c, unnest(c.buckets) with ordinality as b (n, at)
                       where c.username = p.username and c.day = p.day and c.tool = p.tool
                       group by b.at order by b.at) as buckets
           from page p order by p.day desc, p.username, p.tool`,
        [from, to, username ?? null, after?.day ?? null, after?.username ?? null, after?.tool ?? null, limit + 1],
      )
      return {
        more: rows.length > limit,
        rows: rows.slice(0, limit).map(({ total_ms, max_ms, buckets, ...row }) => {
          const counts = buckets.map(Number)
          const at = (share: number) => percentile(counts, share, max_ms)
          return {
            ...row,
            meanMs: Math.round(total_ms / Math.max(1, row.calls)),
            maxMs: Math.round(max_ms),
            p50Ms: at(0.5),
            p95Ms: at(0.95),
            p99Ms: at(0.99),
          }
        }),
      }
    },
  }
}

/**
 * Latency below which a share of the calls stayed, in milliseconds: interpolated within its bucket, never above the
 * slowest call.
 * @param counts - calls by latency, see latencyBoundsMs
 */
export function percentile(counts: number[], share: number, maxMs: number): number {
  const total = counts.reduce((sum, count) => sum + count, 0)
  if (total === 0) return Math.round(maxMs)
  const wanted = share * total
  let below = 0
  for (const [at, count] of counts.entries()) {
    if (count > 0 && below + count >= wanted) {
      const low = latencyBoundsMs[at - 1] ?? 0
      const high = Math.max(low, Math.min(latencyBoundsMs[at] ?? maxMs, maxMs))
      return Math.round(low + ((high - low) * (wanted - below)) / count)
    }
    below += count
  }
  return Math.round(maxMs)
}
