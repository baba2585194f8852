import { type UsageReport, upstreamModule } from './contract.ts'
import type { HttpClient } from './http-client.ts'
import { addTo, createBuckets } from './latency.ts'

type Upstream = UsageReport['upstream'][number]

export type UpstreamMeter = {
  http: HttpClient
  report(): { upstream: Upstream[]; mints: number; failures: number }
}

/**
 * Measures what leaves through `http`: time to the answer's headers by SDP module and outcome, and calls of the token
 * endpoint. Sees addresses and status codes only.
 */
export function meterUpstream(http: HttpClient, accountsUrl: string): UpstreamMeter {
  const entries = new Map<string, Upstream>()
  const tokenEndpoint = new URL('/oauth/v2/token', accountsUrl).href
  let mints = 0
  let failures = 0

  function note(module: string, outcome: Upstream['outcome'], durationMs: number): void {
    // no path of a site, however odd, makes the metrics grow
    const name = upstreamModule(module)
    const key = `${name} ${outcome}`
    const entry = entries.get(key) ?? { module: name, outcome, calls: 0, totalMs: 0, buckets: createBuckets() }
    entries.set(key, entry)
    entry.calls++
    entry.totalMs += durationMs
    addTo(entry.buckets, durationMs)
  }

  const metered: HttpClient = async call => {
    const module = moduleOf(call.url)
    const isMint = call.url.split('?')[0] === tokenEndpoint
    const startedAt = performance.now()
    let answered = false
    const done = (outcome: Upstream['outcome']) => {
      answered = true
      if (module) note(module, outcome, Math.round(performance.now() - startedAt))
    }
    if (isMint) mints++
    try {
      return await http({
        ...call,
        onStatus(status) {
          done(outcomeOf(status))
          if (isMint && (status < 200 || status > 299)) failures++
          call.onStatus?.(status)
        },
      })
    } catch (error) {
      // an answer whose end never came was counted as what it said
      if (answered) throw error
      done('unreachable')
      if (isMint) failures++
      throw error
    }
  }
  return { http: metered, report: () => ({ upstream: [...entries.values()], mints, failures }) }
}

/** `requests` of `https://.../app/itdesk/api/v3/requests/12/notes`; undefined for what is not the SDP API. */
function moduleOf(address: string): string | undefined {
  return /\/api\/v3\/([a-z_]{1,40})(?=[/?]|$)/.exec(address)?.[1]
}

function outcomeOf(status: number): Upstream['outcome'] {
  if (status === 429) return 'limited'
  if (status >= 500) return 'failed'
  return status >= 400 ? 'refused' : 'ok'
}
