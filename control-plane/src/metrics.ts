import { latencyBoundsMs, type UsageReport, upstreamModule } from '@sdp-mcp/instance/contract'
import {
  AggregatorRegistry,
  Counter,
  collectDefaultMetrics,
  Gauge,
  Histogram,
  type Metric,
  type MetricObject,
  Registry,
} from 'prom-client'
import type { Activity } from './activity.ts'
import type { EgressOutcome } from './egress/egress.ts'
import type { FleetObserver } from './fleet/fleet.ts'
import type { Outcome } from './proxy/pump.ts'

/** What the proxy tells of each exchange; called once at its end. */
export type ProxyMetrics = {
  /** @param kind - `call`: a message; `end`: the end of a session */
  callDone(kind: 'call' | 'end', outcome: Outcome, durationMs: number): void
  streamClosed(reason: StreamEnd): void
}
type StreamEnd = 'ended' | 'client' | 'instance' | 'key-revoked' | 'user-suspended' | 'user-removed' | 'shutdown'

export type Metrics = ReturnType<typeof createMetrics>

/** What one worker shows, to be added up with what the others do. */
export type MetricsSnapshot = MetricObject[]

/** What only the leader of the fleet sees; in the others these stand still. */
const ofTheLeader = new Set([
  'sdp_mcp_instances',
  'sdp_mcp_sessions',
  'sdp_mcp_token_mint_budget_min',
  'sdp_mcp_accounts_breakers_open',
])

const forgottenAfterRounds = 30
const requestSeconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
const startSeconds = [0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60]

/**
 * Prometheus metrics of this process. Labels come from fixed lists, never from users, so that their number is bounded. What
 * is shown was noted as it happened: reading it asks neither the database nor the engine.
 */
export function createMetrics({
  activity,
  version,
  others = async () => [],
  clockMs = performance.now.bind(performance),
}: {
  activity: Pick<Activity, 'all'>
  version: string
  /** asks the other workers for their {@link Metrics.snapshot} */
  others?: () => Promise<MetricsSnapshot[]>
  /** one that never jumps */
  clockMs?: () => number
}) {
  const registry = new Registry()
  const registers = [registry]
  collectDefaultMetrics({ register: registry })
  new Gauge({
    name: 'sdp_mcp_info',
    help: 'Version of the control plane.',
    labelNames: ['version'] as const,
    aggregator: 'first',
    registers,
  }).set({ version }, 1)
  new Gauge({ name: 'sdp_mcp_workers', help: 'Processes that serve, as far as they answer.', registers }).set(1)

  const instances = new Gauge({
    name: 'sdp_mcp_instances',
    help: 'Instances by state, as of the last look at everybody.',
    labelNames: ['state'] as const,
    registers,
  })
  const sessions = new Gauge({ name: 'sdp_mcp_sessions', help: 'Open MCP sessions of all instances.', registers })
  const starts = new Histogram({
    name: 'sdp_mcp_instance_start_seconds',
    help: 'From the decision to start an instance until it answers; wake: it had been stopped.',
    labelNames: ['kind'] as const,
    buckets: startSeconds,
    registers,
  })
  const failures = new Counter({
    name: 'sdp_mcp_instance_failures_total',
    help: 'Failures of instances by reason code.',
    labelNames: ['code'] as const,
    registers,
  })
  const transactionsEnded = new Counter({
    name: 'sdp_mcp_instance_transactions_ended_total',
    help: 'Database transactions of instances that were ended because they lasted too long.',
    registers,
  })
  const egress = new Counter({
    name: 'sdp_mcp_egress_tunnels_total',
    help: 'Tunnels that instances asked the egress proxy for, by outcome.',
    labelNames: ['outcome'] as const,
    registers,
  })
  const sweeps = new Histogram({
    name: 'sdp_mcp_sweep_seconds',
    help: 'Time of a look at everybody.',
    buckets: startSeconds,
    registers,
  })
  const leader = new Gauge({
    name: 'sdp_mcp_leader',
    help: '1 when this control plane leads the fleet.',
    aggregator: 'max',
    registers,
    collect() {
      this.set(leads() ? 1 : 0)
    },
  })
  let leads = () => false

  const calls = new Histogram({
    name: 'sdp_mcp_proxy_call_seconds',
    help: 'MCP messages carried to instances, from taking them to the end of the answer.',
    labelNames: ['route', 'outcome'] as const,
    buckets: requestSeconds,
    registers,
  })
  const streamEnds = new Counter({
    name: 'sdp_mcp_stream_closes_total',
    help: 'Ends of event streams by reason.',
    labelNames: ['reason'] as const,
    registers,
  })
  const sum = (field: 'streams' | 'calls' | 'bytesIn' | 'bytesOut') => {
    let total = 0
    for (const meter of activity.all().values()) total += meter[field]
    return total
  }
  new Gauge({
    name: 'sdp_mcp_streams_open',
    help: 'Event streams that pass through this control plane.',
    registers,
    collect() {
      this.set(sum('streams'))
    },
  })
  new Gauge({
    name: 'sdp_mcp_calls_open',
    help: 'Calls under way through this control plane.',
    registers,
    collect() {
      this.set(sum('calls'))
    },
  })
  // a user who is removed takes their bytes along; a counter must never fall
  const carried = { in: 0, out: 0 }
  new Counter({
    name: 'sdp_mcp_proxied_bytes_total',
    help: 'Bytes of bodies carried: in, from clients; out, to clients.',
    labelNames: ['direction'] as const,
    registers,
    collect() {
      for (const [direction, field] of [
        ['in', 'bytesIn'],
        ['out', 'bytesOut'],
      ] as const) {
        const total = sum(field)
        if (total > carried[direction]) this.inc({ direction }, total - carried[direction])
        carried[direction] = total
      }
    },
  })

  const http = new Histogram({
    name: 'sdp_mcp_http_request_seconds',
    help: 'Requests of the admin API and the small public pages, by route pattern.',
    labelNames: ['method', 'route', 'status'] as const,
    buckets: requestSeconds,
    registers,
  })

  const mints = new Counter({ name: 'sdp_mcp_token_mints_total', help: 'Calls of the token endpoint.', registers })
  const mintFailures = new Counter({
    name: 'sdp_mcp_token_mint_failures_total',
    help: 'Calls of the token endpoint that failed.',
    registers,
  })
  const budget = new Gauge({
    name: 'sdp_mcp_token_mint_budget_min',
    help: 'Fewest token calls that any user has left of the 10 in 10 minutes.',
    registers,
  })
  const failing = new Gauge({
    name: 'sdp_mcp_accounts_breakers_open',
    help: 'Instances that leave the accounts server alone because it fails.',
    registers,
  })
  const upstreamOutcomes = new Counter({
    name: 'sdp_mcp_upstream_requests_total',
    help: 'Requests to the SDP API by module and outcome.',
    labelNames: ['module', 'outcome'] as const,
    registers,
  })
  const upstream = createUpstreamLatency()
  registry.registerMetric(upstream.metric)

  /** since when this control plane leads: what instances did before that, another one has counted */
  let ledSinceMs: number | undefined
  /** the last report of each instance, to tell what is new in the next, and how many rounds ago that was */
  const before = new Map<string, { report: UsageReport; age: number }>()

  async function snapshot(): Promise<MetricsSnapshot> {
    const all = await registry.getMetricsAsJSON()
    return leads() ? all : all.filter(({ name }) => !ofTheLeader.has(name))
  }

  return {
    contentType: registry.contentType,
    snapshot,

    /** Of all workers together, for Prometheus. */
    async text(): Promise<string> {
      const elsewhere = await others()
      if (elsewhere.length === 0) return registry.metrics()
      return AggregatorRegistry.aggregate([await snapshot(), ...elsewhere]).metrics()
    },

    fleet: {
      ready: (kind, tookMs) => starts.observe({ kind }, tookMs / 1000),
      failed: code => failures.inc({ code }),
      led(leading) {
        ledSinceMs = leading ? clockMs() : undefined
        before.clear()
      },
      swept(tookMs, states, open) {
        sweeps.observe(tookMs / 1000)
        for (const [state, count] of Object.entries(states)) instances.set({ state }, count)
        sessions.set(open)
      },
    } satisfies FleetObserver,

    transactionEnded: () => transactionsEnded.inc(),
    egress: (outcome: EgressOutcome) => egress.inc({ outcome }),

    proxy: {
      callDone(route, outcome, durationMs) {
        calls.observe({ route, outcome: outcomeOf(outcome) }, durationMs / 1000)
      },
      streamClosed: reason => streamEnds.inc({ reason }),
    } satisfies ProxyMetrics,

    leads(asked: () => boolean) {
      leads = asked
      void leader
    },

    httpDone: (method: string, route: string, status: number, durationMs: number) =>
      http.observe({ method, route, status: `${Math.floor(status / 100)}xx` }, durationMs / 1000),

    /**
     * Takes what an instance counted since its last report, if this control plane leads. The first report of one that ran
     * before that is where counting begins.
     */
    reported({ userId, generation }: { userId: string; generation: number }, report: UsageReport): void {
      if (ledSinceMs === undefined) return
      const key = `${userId} ${generation}`
      const last = before.get(key)?.report
      const known = last?.epoch === report.epoch ? last : undefined
      before.set(key, { report: { ...report, tools: [] }, age: 0 })
      const { uptimeSeconds = Number.POSITIVE_INFINITY } = report
      if (!known && uptimeSeconds * 1000 >= clockMs() - ledSinceMs) return
      for (const entry of report.upstream) {
        const old = known?.upstream.find(one => one.module === entry.module && one.outcome === entry.outcome)
        const more = entry.calls - (old?.calls ?? 0)
        if (more <= 0) continue
        // whatever an instance says, labels come from a fixed list
        const module = upstreamModule(entry.module)
        upstreamOutcomes.inc({ module, outcome: entry.outcome }, more)
        upstream.add(
          module,
          entry.buckets.map((count, at) => count - (old?.buckets[at] ?? 0)),
          entry.totalMs - (old?.totalMs ?? 0),
        )
      }
      if (!report.tokens) return
      mints.inc(Math.max(0, report.tokens.mints - (known?.tokens?.mints ?? 0)))
      mintFailures.inc(Math.max(0, report.tokens.failures - (known?.tokens?.failures ?? 0)))
    },

    /** A round of reports is over: those that were not heard of for some rounds have ended. */
    settle(): void {
      for (const [key, entry] of before) if (++entry.age > forgottenAfterRounds) before.delete(key)
      const tokens = [...before.values()].flatMap(({ report, age }) =>
        report.tokens && age <= 1 ? [report.tokens] : [],
      )
      budget.set(Math.min(10, ...tokens.map(({ mintsLeft }) => mintsLeft)))
      failing.set(tokens.filter(({ accountsServer }) => accountsServer === 'failing').length)
    },
  }
}

function outcomeOf(outcome: Outcome): string {
  return outcome.kind === 'done' ? `${Math.floor(outcome.status / 100)}xx` : outcome.kind
}

/** A histogram that takes counts by bucket, which the library's own does not. */
function createUpstreamLatency() {
  const modules = new Map<string, { buckets: number[]; totalMs: number }>()
  const name = 'sdp_mcp_upstream_request_seconds'
  const help = 'Requests to the SDP API until the headers of the answer, by module.'
  const metric = {
    name,
    help,
    type: 'histogram',
    aggregator: 'sum',
    reset: () => modules.clear(),
    async get() {
      const values = [...modules].flatMap(([module, { buckets, totalMs }]) => {
        let count = 0
        const cumulative = buckets.map((more, at) => {
          count += more
          const bound = latencyBoundsMs[at]
          return {
            labels: { module, le: bound === undefined ? '+Inf' : bound / 1000 },
            value: count,
            metricName: `${name}_bucket`,
          }
        })
        return [
          ...cumulative,
          { labels: { module }, value: totalMs / 1000, metricName: `${name}_sum` },
          { labels: { module }, value: count, metricName: `${name}_count` },
        ]
      })
      return { name, help, type: 'histogram', aggregator: 'sum', values }
    },
  }
  return {
    metric: metric as unknown as Metric,
    add(module: string, buckets: number[], totalMs: number) {
      const entry = modules.get(module) ?? { buckets: new Array(latencyBoundsMs.length + 1).fill(0), totalMs: 0 }
      modules.set(module, entry)
      buckets.slice(0, entry.buckets.length).forEach((count, at) => {
        entry.buckets[at] = (entry.buckets[at] ?? 0) + Math.max(0, count)
      })
      entry.totalMs += Math.max(0, totalMs)
    },
  }
}
