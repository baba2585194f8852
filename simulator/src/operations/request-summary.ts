import type { Call, Reply } from '../api/call.ts'
import { one } from '../api/envelope.ts'
import { recordOf } from '../api/verbs.ts'
import { childrenOf, rowById, type StoredRecord } from '../state.ts'
import { levelStatus } from './approvals.ts'

/** `GET /requests/{id}/summary`: the counts of 7.2, as texts. */
export function requestSummary(call: Call): Reply {
  const { portal } = call
  const request = recordOf(call)
  const rows = (table: string) => childrenOf(portal, table, request.id)
  const isClosed = (row: StoredRecord) => rowById(portal, 'statuses', row.status)?.in_progress === false
  const isMine = (row: StoredRecord) => row.owner === call.caller.row.id
  const byTechnician = (row: StoredRecord) => rowById(portal, 'users', row.created_by)?.is_technician === true

  const mails = rows('notifications')
  const tasks = rows('tasks')
  const links = rows('request_links')
  const checklists = rows('checklists')
  const isDone = (list: StoredRecord) => (list.items as { is_completed?: boolean }[]).every(item => item.is_completed)
  const levels = rows('approval_levels').map(
    level => rowById(portal, 'approval_statuses', levelStatus(level, call))?.name,
  )
  const linkedOpen = links.filter(link => {
    const other = rowById(portal, 'requests', link.linked_request)
    return other && !isClosed(other)
  })
  const counts = {
    link_request_count: links.length,
    link_request_pending_count: linkedOpen.length,
    technician_reply_count: mails.filter(byTechnician).length,
    requester_reply_count: mails.filter(mail => !byTechnician(mail)).length,
    conversation_count: mails.length,
    note_count: rows('request_notes').length,
    attachment_count: ((request.attachments as string[] | undefined) ?? []).length,
    draft_count: rows('drafts').length,
    unreplied_count: Number(request.unreplied_count ?? 0),
    reminder_count: 0,
    worklog_count: rows('worklogs').length,
    worklog_timer_count: 0,
    task_pending_count: tasks.filter(task => !isClosed(task)).length,
    task_completed_count: tasks.filter(isClosed).length,
    my_task_pending_count: tasks.filter(task => isMine(task) && !isClosed(task)).length,
    my_task_completed_count: tasks.filter(task => isMine(task) && isClosed(task)).length,
    checklist_total_count: checklists.length,
    checklist_not_completed_count: checklists.filter(list => !isDone(list)).length,
    approval_pending_count: levels.filter(status => status === 'Pending Approval').length,
    approval_completed_count: levels.filter(status => status === 'Approved' || status === 'Rejected').length,
    purchase_order_count: 0,
    invoked_contract_count: 0,
    request_initiated_change_count: request.request_initiated_change ? 1 : 0,
    caused_by_releases: 0,
    fixed_in_releases: 0,
    jira_issue_count: 0,
  }
  return one('summary', Object.fromEntries(Object.entries(counts).map(([key, count]) => [key, String(count)])))
}
