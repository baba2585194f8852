import type { Call } from '../api/call.ts'
import { done } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { recordOf } from '../api/verbs.ts'
import type { Operations } from '../modules/module.ts'
import type { StoredRecord } from '../state.ts'
import { recordHistory } from './history.ts'
import { refuseInput } from './refuse-input.ts'

/** Moves a record to the trash; lists leave it out from then on. */
export function trash(record: StoredRecord, call: Call): void {
  Object.assign(record, { is_trashed: true, deleted_time: call.world.now(), deleted_by: call.caller.row.id })
  recordHistory(call, record, undefined, 'DELETE')
  call.world.changed()
}

/** Trash and restore (docs/sdp-api.md 7.1, 9); restore refuses any body. */
export const trashOperations: Operations = {
  'DELETE move_to_trash'(call) {
    if (!call.caller.mayDelete) throw fail.notAllowed()
    trash(recordOf(call), call)
    return done('Moved to trash')
  },
  'PUT restore_from_trash'(call) {
    refuseInput(call)
    const record = recordOf(call)
    if (record.is_trashed !== true) throw fail.refused('Not in trash')
    Object.assign(record, { is_trashed: false, deleted_time: null, deleted_by: null })
    recordHistory(call, record, undefined, 'RESTORE')
    call.world.changed()
    return done('Restored from trash')
  },
}
