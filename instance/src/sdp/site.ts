import type { InstanceContext } from '../context.ts'
import { Cache } from './cache.ts'
import type { Sdp } from './client.ts'
import { isSdpError } from './errors.ts'
import { type Json, text } from './json.ts'
import { path } from './path.ts'

export type Portal = { name: string; timeZone: string }

/** What we know of the SDP site itself: its time zone and the addresses of its pages. */
export interface Site {
  /** The portal's own record, read once a day; a site that refuses the list of portals gives UTC (docs/sdp-api.md 1.2). */
  portal(sdp: Sdp): Promise<Portal>
  /** Address of a record's page for people. */
  link(page: 'requests' | 'problems' | 'changes' | 'releases' | 'projects' | 'solutions' | 'assets', id: string): string
}

const maxAgeMs = 24 * 3_600_000
const refusedForMs = 10 * 60_000

export function createSite(context: Pick<InstanceContext, 'sdp' | 'now'>): Site {
  const portals = new Cache<Portal>({ size: 1, maxAgeMs, now: context.now })
  const base = `${new URL(context.sdp.baseUrl).origin}/app/${encodeURIComponent(context.sdp.portal)}/ui`
  return {
    async portal(sdp) {
      const known = portals.get('portal')
      if (known) return known
      try {
        // every tool waits for this once: better UTC soon than the right zone late
        const request = {
          method: 'GET',
          path: path`/portals`,
          outsidePortal: true,
          probe: true,
          repeatable: false,
          timeoutMs: 5_000,
        } as const
        const { body } = await sdp.request(request)
        const found = list(body).find(
          row => text(row.app_context) === context.sdp.portal || text(row.name) === context.sdp.portal,
        )
        return portals.set('portal', {
          name: text(found?.display_name) ?? text(found?.name) ?? context.sdp.portal,
          timeZone: knownZone(text(found?.timezone)),
        })
      } catch (error) {
        if (!isSdpError(error) || isSdpError(error, 'cancelled')) throw error
        return portals.set('portal', { name: context.sdp.portal, timeZone: 'UTC' }, refusedForMs)
      }
    },
    link: (page, id) => `${base}/${page}/${id}/details`,
  }
}

function list(body: Json): Json[] {
  return Array.isArray(body.portals) ? (body.portals as Json[]) : []
}

/** An IANA name that this runtime knows, else UTC. */
function knownZone(zone: string | undefined): string {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: zone ?? 'UTC' }).resolvedOptions().timeZone
  } catch {
    return 'UTC'
  }
}
