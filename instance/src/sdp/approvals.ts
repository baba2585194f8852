import { Cache } from './cache.ts'
import type { Sdp } from './client.ts'
import { type Json, text } from './json.ts'
import { child } from './path.ts'
import { type RecordModule, recordPath } from './records.ts'

export type ApprovalModule = Extract<RecordModule, 'request' | 'problem' | 'change' | 'release' | 'purchase_order'>
export type Approval = { levelId: string; level: string; levelStatus: unknown; approval: Json }

/** Approvals of records. The API has no list of approvals across records (docs/sdp-api.md 7.4). */
export interface Approvals {
  /** All approvals of a record, level by level: one call for the levels, one for each level. */
  of(sdp: Sdp, module: ApprovalModule, id: string): Promise<Approval[]>
  /**
   * The same, unless they were read in the last two minutes and the record has not changed since.
   * @param version - the record's last_updated_time, where known
   */
  recent(sdp: Sdp, module: ApprovalModule, id: string, version?: string): Promise<Approval[]>
  /** After a write of ours: what was read before is old. */
  forget(module: ApprovalModule, id: string): void
}

const maxAgeMs = 2 * 60_000

export function createApprovals(options: { now: () => number }): Approvals {
  const known = new Cache<{ approvals: Approval[]; version: string | undefined }>({
    size: 200,
    maxAgeMs,
    now: options.now,
  })

  async function read(sdp: Sdp, module: ApprovalModule, id: string, version?: string): Promise<Approval[]> {
    const approvals = await approvalsOf(sdp, module, id)
    known.set(`${module} ${id}`, { approvals, version })
    return approvals
  }

  return {
    of: (sdp, module, id) => read(sdp, module, id),
    async recent(sdp, module, id, version) {
      const found = known.get(`${module} ${id}`)
      const isSame = found && (version === undefined || found.version === undefined || found.version === version)
      return isSame ? found.approvals : read(sdp, module, id, version)
    },
    forget: (module, id) => known.delete(`${module} ${id}`),
  }
}

/** docs/sdp-api.md 7.4, 9. */
async function approvalsOf(sdp: Sdp, module: ApprovalModule, id: string): Promise<Approval[]> {
  const parent = recordPath(module, id)
  const levels = await sdp.list(child(parent, 'approval_levels'), { row_count: 10, start_index: 1 })
  const found = await Promise.all(
    levels.rows.map(async level => {
      const levelId = text(level.id) ?? ''
      const page = await sdp.list(child(parent, 'approval_levels', levelId, 'approvals'), {
        row_count: 50,
        start_index: 1,
      })
      return page.rows.map(approval => ({
        levelId,
        level: text(level.level) ?? levelId,
        levelStatus: level.status,
        approval,
      }))
    }),
  )
  return found.flat()
}

export function isPending(status: unknown): boolean {
  const shown = text((status as Json | undefined)?.name) ?? text(status) ?? ''
  return /pending|to be sent|waiting/i.test(shown) || shown === ''
}
