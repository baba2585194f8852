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
/** so that an installation that never did has no long pause */
const mostDaysAtOnce = 5
const dayMs = 24 * 60 * 60 * 1000
/** an instance reports its last seven days; older ones stay as they were stored last */
const reportedDays = 8
/** of one user and day, which no honest instance comes near: runs times tools, and names of tools */
const mostRows = 2_000
const mostTools = 200
const concurrentQuestions = 16
// an instance of an older version reports none
const bucketSums = Array.from(
  { length: latencyBoundsMs.length + 1 },
  (_, at) => `coalesce(sum(t.buckets[${at + 1}]), 0)`,
).join(', ')
/** epoch of rows that were added up */
const merged = '00000000-0000-0000-0000-000000000000'

export function createUsage({
  db,
  control,
  metrics,
  log,
  now = Date.now,
}: {
  db: Db
  control: Pick<InstanceControl, 'usage'>
  metrics: Pick<Metrics, 'reported' | 'settle'>
  log: Logger
  now?: () => number
}) {
  /** @returns a day of UTC, such as 2026-01-31 */
  const dayFromToday = (days: number) => new Date(now() + days * dayMs).toISOString().slice(0, 10)

  async function store(
    { userId, username, generation }: ControlTarget,
    { epoch, tools: all }: UsageReport,
  ): Promise<void> {
    const [oldest, newest] = [dayFromToday(-reportedDays), dayFromToday(1)]
    const tools = all.filter(({ day }) => day >= oldest && day <= newest)
    if (tools.length === 0 || epoch === merged) return
    // The newest report of an epoch holds all earlier ones; the larger number wins should two arrive in the wrong order.
    // An instance that was taken over may invent epochs and tools, so the rows of a user and day are limited.
    const [refused] = await db.query<{ rows: number }>(
      `with n as (
         select distinct on (day, tool) day::date as day, tool, calls, errors, "totalMs", "maxMs", buckets
           from json_to_recordset($3::json)
                  as n (day text, tool text, calls bigint, errors bigint, "totalMs" float8, "maxMs" float8, buckets bigint[])),
       there as (select day, epoch, tool from tool_usage where user_id = $1 and day in (select day from n)),
       taken as (select day, count(*) as rows, count(distinct tool) as tools from there group by day),
       placed as (
         select n.*, same.tool is not null as known, named.tool is not null as named,
                coalesce(t.rows, 0) + row_number() over (partition by n.day, same.tool is null order by n.tool) as row_place,
                coalesce(t.tools, 0) + row_number() over (partition by n.day, named.tool is null order by n.tool) as tool_place
           from n left join taken t using (day)
           left join there same on same.day = n.day and same.tool = n.tool and same.epoch = $2
           left join (select distinct day, tool from there) named on named.day = n.day and named.tool = n.tool),
       fits as (select *, known or (row_place <= $4 and (named or tool_place <= $5)) as fits from placed),
       written as (
         insert into tool_usage as t (user_id, epoch, day, tool, calls, errors, total_ms, max_ms, buckets, image)
         select u.id, $2, f.day, f.tool, f.calls, f.errors, f."totalMs", f."maxMs", f.buckets,
                coalesce((select image from instances where user_id = $1 and generation = $6),
                         (select image from instance_moves where user_id = $1 and generation = $6))
           from users u, fits f where u.id = $1 and f.fits
         on conflict (user_id, epoch, day, tool) do update set calls = excluded.calls, errors = excluded.errors,
           total_ms = excluded.total_ms, max_ms = excluded.max_ms, buckets = excluded.buckets,
           image = coalesce(t.image, excluded.image)
         where t.calls < excluded.calls)
       select count(*)::integer as rows from fits where not fits`,
      [userId, epoch, JSON.stringify(tools), mostRows, mostTools, generation],
    )
    if (refused && refused.rows > 0)
      log.warn(
        { username, rows: refused.rows },
        'usage.refused: this instance reports more than an instance can do. Look at its image and its log.',
      )
  }

  /** Adds the runs of a day up, when no instance reports that day any more: one row for each user and tool. */
  async function addUp(): Promise<void> {
    const days = await db.query<{ day: string }>(
      `select distinct to_char(day, 'YYYY-MM-DD') as day from tool_usage
        where day < $1::date and epoch <> '${merged}' order by 1 limit $2`,
      [dayFromToday(-reportedDays - 1), mostDaysAtOnce],
    )
    for (const { day } of days)
      await db.query(
        `with t as (delete from tool_usage where day = $1::date and epoch <> '${merged}' returning *)
         insert into tool_usage as sums (user_id, epoch, day, tool, calls, errors, total_ms, max_ms, buckets)
         select user_id, '${merged}', day, tool, sum(calls), sum(errors), sum(total_ms), max(max_ms), array[${bucketSums}]::bigint[]
           from t group by user_id, day, tool
         on conflict (user_id, epoch, day, tool) do update set calls = sums.calls + excluded.calls,
           errors = sums.errors + excluded.errors, total_ms = sums.total_ms + excluded.total_ms,
           max_ms = greatest(sums.max_ms, excluded.max_ms),
           buckets = (select array_agg(coalesce(a, 0) + coalesce(b, 0) order by at)
                        from unnest(sums.buckets, excluded.buckets) with ordinality as both_of (a, b, at))`,
        [day],
      )
  }

  async function collect(target: ControlTarget): Promise<void> {
    const report = await control.usage(target)
    metrics.reported(target, report)
    await store(target, report)
  }

  async function collectFrom(targets: ControlTarget[]): Promise<void> {
    const waiting = targets.values()
    const lane = async () => {
      for (const target of waiting)
        await collect(target).catch(error => log.debug({ error, username: target.username }, 'usage.collect.failed'))
    }
    await Promise.all(Array.from({ length: concurrentQuestions }, lane))
  }

  return {
    /** Asks one instance, e.g. before it is stopped, and keeps what it says. */
    collect,

    /** Asks some instances between the rounds of {@link collectAll}. */
    collectFrom,

    /** Asks every instance; one that does not answer is asked again the next time. */
    async collectAll(targets: ControlTarget[]): Promise<void> {
      await collectFrom(targets)
      metrics.settle()
      await db.query('delete from tool_usage where day < $1::date', [dayFromToday(-keptDays)])
      await addUp()
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
        buckets: number[]
      }>(
        // the page first, then the buckets of its rows alone
        `with page as (
           select t.day, u.username, t.user_id, t.tool, sum(t.calls)::float8 as calls, sum(t.errors)::float8 as errors,
                  sum(t.total_ms) as total_ms, max(t.max_ms) as max_ms
             from tool_usage t join users u on u.id = t.user_id
            where t.day between $1::date and $2::date and u.wanted <> 'removed' and ($3::text is null or u.username = $3)
              and ($4::date is null or (t.day <= $4::date and (t.day < $4::date or (u.username, t.tool) > ($5::text, $6::text))))
            group by t.day, u.username, t.user_id, t.tool order by t.day desc, u.username, t.tool limit $7)
         select p.username, to_char(p.day, 'YYYY-MM-DD') as day, p.tool, p.calls, p.errors, p.total_ms, p.max_ms, b.buckets
           from page p, lateral (select array[${bucketSums}]::float8[] as buckets from tool_usage t
                                  where t.day = p.day and t.user_id = p.user_id and t.tool = p.tool) b
          order by p.day desc, p.username, p.tool`,
        [from, to, username ?? null, after?.day ?? null, after?.username ?? null, after?.tool ?? null, limit + 1],
      )
      return {
        more: rows.length > limit,
        rows: rows.slice(0, limit).map(({ total_ms, max_ms, buckets, ...row }) => {
          const at = (share: number) => percentile(buckets, share, max_ms)
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
