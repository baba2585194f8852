import type { Call } from '../api/call.ts'
import { rowById, type StoredRecord } from '../state.ts'

const dayMs = 24 * 60 * 60 * 1000

const isOpen = (record: StoredRecord, call: Call) =>
  rowById(call.portal, 'statuses', record.status)?.in_progress === true
const statusNamed = (name: string) => (record: StoredRecord, call: Call) =>
  rowById(call.portal, 'statuses', record.status)?.name === name
const isOverdue = (record: StoredRecord, call: Call) =>
  isOpen(record, call) && typeof record.due_by_time === 'number' && record.due_by_time < call.world.now()
const isDueToday = (record: StoredRecord, call: Call) =>
  isOpen(record, call) &&
  typeof record.due_by_time === 'number' &&
  Math.floor(record.due_by_time / dayMs) === Math.floor(call.world.now() / dayMs)

/** Mine; with the switch of quirk 14 also closed tickets and those of my groups. */
function mine(test: (record: StoredRecord, call: Call) => boolean) {
  return (record: StoredRecord, call: Call) => {
    if (call.world.faults.switches.myFiltersLeak)
      return record.technician === call.caller.row.id || call.caller.groupIds.includes(String(record.group))
    return record.technician === call.caller.row.id && test(record, call)
  }
}

/** The named views of `filter_by` (docs/sdp-api.md 3.4). */
export const requestViews: Record<string, (record: StoredRecord, call: Call) => boolean> = {
  All_Requests: () => true,
  Open_Requests: isOpen,
  Overdue_Requests: isOverdue,
  Requests_Due_Today: isDueToday,
  Unassigned_Requests: (record, call) => isOpen(record, call) && record.technician == null,
  My_Open_Requests: mine(isOpen),
  My_Pending_Requests: mine(isOpen),
  My_Overdue_Requests: mine(isOverdue),
  My_Requests_Due_Today: mine(isDueToday),
  My_Closed_Requests: mine(statusNamed('Closed')),
  Requests_Pending_Approval: (record, call) =>
    rowById(call.portal, 'approval_statuses', record.approval_status)?.name === 'Pending Approval',
  Waiting_For_My_Update: mine((record, call) => isOpen(record, call) && Number(record.unreplied_count ?? 0) > 0),
  Updated_By_Me: (record, call) => record.last_updated_by === call.caller.row.id,
}

for (const [name, test] of Object.entries(requestViews)) {
  requestViews[name] = (record, call) => record.is_trashed !== true && test(record, call)
}
