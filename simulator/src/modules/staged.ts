import type { Call, Reply } from '../api/call.ts'
import { one } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { parseFields } from '../api/fields.ts'
import { editRecord, isReply, recordOf, rootInput, show } from '../api/verbs.ts'
import { rowById, rowByName, rowsOf, type StoredRecord } from '../state.ts'
import type { Change } from './module.ts'
import { ref, text } from './module.ts'
import { signDescriptions } from './problems.ts'

/** What changes and releases share: stages, statuses that belong to a stage, a comment for each status (9, 10). */
export interface Staged {
  stages: string
  statuses: string
}

const stageOf = (kind: Staged, record: StoredRecord | undefined, call: Call) =>
  record && rowById(call.portal, kind.stages, record.stage)

const firstStatus = (kind: Staged, stage: StoredRecord, call: Call) =>
  rowsOf(call.portal, kind.statuses).find(status => status.stage === stage.id)

export function firstStage(kind: Staged, call: Call): Record<string, unknown> {
  const [stage] = rowsOf(call.portal, kind.stages)
  return stage ? { stage: stage.id, status: firstStatus(kind, stage, call)?.id } : {}
}

/**
 * Moves a change or release along its workflow.
 * @throws ApiFailure 4012 `comment` when the status changes without one, 4001 for a status of another stage or a jump
 *   over a stage, 4016 for times out of order
 */
export function moveStage(kind: Staged, { record, before, sent }: Change, call: Call): undefined {
  signDescriptions(record, sent, call)
  const [start, end] = [record.scheduled_start_time, record.scheduled_end_time]
  if (typeof start === 'number' && typeof end === 'number' && start > end)
    throw fail.timeMismatch(['scheduled_start_time', 'scheduled_end_time'])
  if (before) record.last_updated_time = call.world.now()

  const stage = stageOf(kind, record, call)
  const former = stageOf(kind, before, call)
  if (before && sent.status != null && record.status !== before.status && !sent.comment)
    throw fail.mandatory(['comment'])
  if (sent.status != null) {
    const status = rowById(call.portal, kind.statuses, record.status)
    if (status?.stage !== stage?.id) throw fail.unknownValue('status')
  } else if (stage && stage !== former && sent.stage != null) {
    record.status = firstStatus(kind, stage, call)?.id
  }
  const isJump = former && stage && Number(stage.stage_index) > Number(former.stage_index) + 1
  // `closes` comes from the close operation, which needs no walk through the stages.
  if (isJump && !sent.closes && call.world.faults.switches.changeWorkflow === 'strict')
    throw fail.unknownValue('stage', 'The workflow does not lead to this stage')
  if (stage !== former && isLastStage(kind, stage, call)) record.completed_time ??= call.world.now()
  return undefined
}

const isLastStage = (kind: Staged, stage: StoredRecord | undefined, call: Call) =>
  stage !== undefined && stage === rowsOf(call.portal, kind.stages).at(-1)

/**
 * `_close` with `{"<root>":{"status","comment","closure_code"}}`, or the older `close_change` with
 * `{"status":"completed|canceled","comment"}`.
 */
export function closeStaged(kind: Staged) {
  return (call: Call): Reply => {
    const { module, portal } = call
    const isOlder = typeof call.input?.status === 'string'
    const given = isOlder ? (call.input ?? {}) : call.input === undefined ? {} : rootInput(call)
    const fields = {
      comment: text(),
      status: isOlder ? text({ oneOf: ['completed', 'canceled'] }) : ref(kind.statuses),
      closure_code: module.fields.closure_code ?? { type: 'any' as const },
    }
    const sent = parseFields(given, fields, call)
    if (!sent.comment) throw fail.mandatory(['comment'])
    const last = rowsOf(portal, kind.stages).at(-1)
    const named = isOlder
      ? rowByName(portal, kind.statuses, sent.status === 'canceled' ? 'Canceled' : 'Completed')
      : undefined
    const status = named?.id ?? sent.status ?? rowByName(portal, kind.statuses, 'Completed')?.id
    const closed = editRecord(call, recordOf(call), { ...sent, status, stage: last?.id, closes: true })
    return isReply(closed) ? closed : one(module.root, show(closed, call))
  }
}
