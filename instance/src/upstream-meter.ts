import type { fetch as undiciFetch } from 'undici'
import { type UsageReport, upstreamModule } from './contract.ts'
import { addTo, createBuckets } from './latency.ts'

type Upstream = UsageReport['upstream'][number]

export type UpstreamMeter = {
  fetch: typeof undiciFetch
  report(): { upstream: Upstream[]; mints: number; failures: number }
}

/**
 * Measures what leaves through `fetch`: time to the answer's headers by SDP module and outcome, and calls of the token
 * endpoint. Sees addresses and status codes only.
 */
export function meterUpstream(fetch: typeof undiciFetch, accountsUrl: string): UpstreamMeter {
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

  const metered: typeof undiciFetch = async (input, init) => {
    const address = typeof input === 'string' ? input : 'url' in input ? input.url : input.href
    const module = moduleOf(address)
    const isMint = address.split('?')[0] === tokenEndpoint
    const startedAt = performance.now()
    const done = (outcome: Upstream['outcome']) => {
      if (module) note(module, outcome, Math.round(performance.now() - startedAt))
    }
    if (isMint) mints++
    try {
      const response = await fetch(input, init)
      done(outcomeOf(response.status))
      if (isMint && !response.ok) failures++
      return response
    } catch (error) {
      done('unreachable')
      if (isMint) failures++
      throw error
    }
  }
  return { fetch: metered, report: () => ({ upstream: [...entries.values()], mints, failures }) }
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
