import type { Sdp } from './client.ts'
import { type Json, text } from './json.ts'
import { child } from './path.ts'
import { type RecordModule, recordPath } from './records.ts'

export type ApprovalModule = Extract<RecordModule, 'request' | 'problem' | 'change' | 'release' | 'purchase_order'>
export type Approval = { levelId: string; level: string; levelStatus: unknown; approval: Json }

/** All approvals of a record, level by level (fact sheet 7.4, 9). */
export async function approvalsOf(sdp: Sdp, module: ApprovalModule, id: string): Promise<Approval[]> {
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
