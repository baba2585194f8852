import type { Toolset } from '../contract.ts'
import { Cache } from './cache.ts'
import type { Sdp } from './client.ts'
import { isSdpError } from './errors.ts'
import type { ListInfo } from './list-info.ts'
import { child, path, type SdpPath } from './path.ts'

/** A list of the site that it does not give this person. */
export type Refusal = {
  /** e.g. `problems` */
  list: string
  /** `denied`: the person's SDP role or licence; `missing-scope`: the grant, or the site does not offer it by its API */
  kind: 'denied' | 'missing-scope'
  httpStatus: number | undefined
  /** quoted and cut short */
  said: string | undefined
}

/** What the site lets the person see, beside what the granted scopes allow. */
export interface Access {
  /**
   * Tries the lists of people and the module of each toolset, one row each, all at once; kept for an hour. A list that
   * fails for another reason is not told of.
   *
   * @param isGranted - whether a scope such as `problems.READ` was granted; what needs another one is not tried
   */
  refusals(sdp: Sdp, toolsets: readonly Toolset[], isGranted: (scope: string) => boolean): Promise<Refusal[]>
}

const maxAgeMs = 60 * 60_000
/** One that is slow to answer is not waited for: this is asked when somebody wants to know who they are. */
const patienceMs = 5_000

type List = { path: SdpPath; scope: string }
const list = (name: string, scope = name): List => ({ path: child(path``, name), scope: `${scope}.READ` })

const lists: Partial<Record<Toolset, List[]>> = {
  core: [list('requests'), list('solutions'), list('technicians', 'users'), list('requesters', 'users')],
  problems: [list('problems')],
  changes: [list('changes')],
  releases: [list('releases')],
  assets: [list('assets')],
  projects: [list('projects')],
  purchasing: [list('contracts'), list('purchase_orders', 'purchases')],
  announcements: [list('announcements', 'general')],
}

export function createAccess(options: { now: () => number }): Access {
  const known = new Cache<{ refusal: Refusal | undefined }>({ size: 50, maxAgeMs, now: options.now })

  async function tried(sdp: Sdp, list: SdpPath): Promise<Refusal | undefined> {
    const before = known.get(list.path)
    if (before) return before.refusal
    const list_info: ListInfo = { row_count: 1, start_index: 1, fields_required: ['id'] }
    try {
      const request = { method: 'GET', path: list, input: { list_info }, probe: true, repeatable: false } as const
      await sdp.request({ ...request, timeoutMs: patienceMs })
    } catch (error) {
      if (!isSdpError(error) || error.kind === 'cancelled') throw error
      const { kind } = error
      // says nothing about the person
      if (kind !== 'denied' && kind !== 'missing-scope') return undefined
      const { httpStatus, said } = error.details
      return known.set(list.path, { refusal: { list: list.path.slice(1), kind, httpStatus, said } }).refusal
    }
    known.set(list.path, { refusal: undefined })
    return undefined
  }

  return {
    async refusals(sdp, toolsets, isGranted) {
      const wanted = toolsets.flatMap(toolset => lists[toolset] ?? []).filter(({ scope }) => isGranted(scope))
      const found = await Promise.all(wanted.map(({ path }) => tried(sdp, path)))
      return found.filter(refusal => refusal !== undefined)
    },
  }
}
