import type { Call, Reply } from '../api/call.ts'
import { partial } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { lockedFields } from '../api/metadata.ts'
import { removeDeep } from '../api/verbs.ts'
import { recordHistory } from '../operations/history.ts'
import { trash } from '../operations/trash.ts'
import { builtInId, rowById, rowByName, rowsOf, type StoredRecord } from '../state.ts'
import type { Change } from './module.ts'

const hourMs = 60 * 60 * 1000

/** What SDP fills in on a new ticket (docs/sdp-api.md 7.2, derived behaviour). */
export function newRequestValues(call: Call): Record<string, unknown> {
  const { portal, caller } = call
  return {
    status: rowByName(portal, 'statuses', 'Open')?.id,
    template: builtInId(portal, '006655'),
    requester: caller.row.id,
    is_service_request: false,
    is_trashed: false,
    is_read: false,
    cancellation_requested: false,
    approval_status: null,
  }
}

/**
 * The rules a ticket obeys when it is added or changed.
 * @returns a 3000 answer when closing lacks a field; then nothing is saved
 * @throws ApiFailure 4002 for locked fields, 4016 for times out of order
 * @see docs/sdp-api.md 18.1, 18.2, 18.4, 18.9, 18.11
 */
export function beforeRequestSaved(change: Change, call: Call): Reply | undefined {
  const { record, before, sent } = change
  refuseLocked(change, call)
  if (sent.created_time !== undefined && !call.caller.isAdmin) throw fail.cannotGive('created_time')
  refuseTimeMismatch(record)
  if (!call.caller.isTechnician) {
    const onlyForDesk = ['technician', 'group', 'status', 'due_by_time'].find(key => sent[key] != null)
    if (onlyForDesk) throw fail.cannotGive(onlyForDesk)
  }

  const now = call.world.now()
  if (before) Object.assign(record, { last_updated_time: now, last_updated_by: call.caller.row.id })
  followTemplate(record, sent, call)
  if (sent.technician && record.technician !== before?.technician) {
    const { assignNeedsCategory } = call.world.faults.switches
    if (assignNeedsCategory && !(record.category && record.subcategory)) throw fail.cannotGive('technician')
    record.assigned_time = now
  }
  if (record.requester && !record.site && sent.site === undefined)
    record.site = rowById(call.portal, 'users', record.requester)?.site ?? null
  if (call.world.faults.switches.priorityMatrix) record.priority = priorityOfMatrix(record, call)
  if (sent.priority && sent.due_by_time === undefined) record.due_by_time = dueBy(record, call)
  signResolution(change, call)
  return changeStatus(change, call)
}

function refuseLocked({ before, sent }: Change, call: Call): void {
  const { switches } = call.world.faults
  if (!before) {
    if (switches.priorityMatrix && sent.priority !== undefined) throw fail.cannotGive('priority')
    return
  }
  const reopens = rowById(call.portal, 'statuses', sent.status)?.in_progress === true
  const locked = reopens ? lockedFields(call, { ...before, status: sent.status }) : lockedFields(call, before)
  const refused = Object.keys(sent).find(key => locked.includes(key))
  if (refused) throw fail.cannotGive(refused)
}

function refuseTimeMismatch(record: StoredRecord): void {
  const pairs = [
    ['scheduled_start_time', 'scheduled_end_time'],
    ['created_time', 'due_by_time'],
  ] as const
  for (const [start, end] of pairs) {
    const [from, to] = [record[start], record[end]]
    if (typeof from === 'number' && typeof to === 'number' && from > to) throw fail.timeMismatch([start, end])
  }
}

/** A service template makes a service request with its service category. */
function followTemplate(record: StoredRecord, sent: Record<string, unknown>, call: Call): void {
  if (!sent.template) return
  const template = rowById(call.portal, 'request_templates', record.template)
  record.is_service_request = template?.is_service_template === true
  record.service_category ??= template?.service_category ?? null
}

const matrix = ['High', 'Medium', 'Normal', 'Low']

/** Priority from impact and urgency, when the site uses the matrix: the mean of both ranks. */
function priorityOfMatrix(record: StoredRecord, call: Call): unknown {
  const rank = (table: string, id: unknown) => rowsOf(call.portal, table).findIndex(row => row.id === id)
  const [impact, urgency] = [rank('impacts', record.impact), rank('urgencies', record.urgency)]
  if (impact < 0 || urgency < 0) return record.priority ?? null
  return rowByName(call.portal, 'priorities', matrix[Math.round((impact + urgency) / 2)] ?? 'Low')?.id ?? null
}

function dueBy(record: StoredRecord, call: Call): unknown {
  const name = String(rowById(call.portal, 'priorities', record.priority)?.name)
  const hours = { High: 8, Medium: 24, Normal: 72, Low: 120 }[name]
  return hours === undefined ? (record.due_by_time ?? null) : Number(record.created_time) + hours * hourMs
}

function signResolution({ record, before, sent }: Change, call: Call): void {
  const content = (sent.resolution as { content?: unknown } | null | undefined)?.content
  if (content === undefined) return
  const former = (before?.resolution as { content?: unknown } | undefined)?.content
  if (content === former) return
  Object.assign(record.resolution as object, { submitted_by: call.caller.row.id, submitted_on: call.world.now() })
}

const isEmptyField = (record: StoredRecord, field: string) =>
  field === 'resolution' ? !(record.resolution as { content?: unknown } | null | undefined)?.content : !record[field]

/** Times and marks that follow the status; closing may answer 3000 and leave the ticket as it is. */
function changeStatus({ record, before, sent }: Change, call: Call): Reply | undefined {
  if (!before && !sent.status) return undefined
  if (record.status === before?.status) return undefined
  const now = call.world.now()
  const status = rowById(call.portal, 'statuses', record.status)
  const former = rowById(call.portal, 'statuses', before?.status)
  const name = String(status?.name)

  const { closeRequires, resolutionFirst } = call.world.faults.switches
  const holds = resolutionFirst && before ? { ...record, resolution: before.resolution } : record
  const required = name === 'Closed' ? closeRequires : resolutionFirst && name === 'Resolved' ? ['resolution'] : []
  const missing = required.filter(field => isEmptyField(holds, field))
  if (missing.length > 0) return partial(call.world, missing)
  if (status?.in_progress === true) {
    if (former && former.in_progress !== true) record.is_reopened = true
    Object.assign(record, { resolved_time: null, completed_time: null })
  } else {
    if (name === 'Resolved' || name === 'Closed') record.resolved_time ??= now
    if (name !== 'Resolved') record.completed_time = now
  }
  if (status?.internal_name === 'Onhold' && record.onhold_scheduler)
    Object.assign(record.onhold_scheduler, { held_by: call.caller.row.id })
  if (former?.internal_name === 'Onhold' && status?.internal_name !== 'Onhold') record.onhold_scheduler = null
  return undefined
}

export function afterRequestSaved({ record, before, sent }: Change, call: Call): void {
  recordHistory(call, record, before, before ? 'UPDATE' : 'CREATE', historyComment(sent))
  const { content, add_to_linked_requests: toLinked } = (sent.resolution ?? {}) as Record<string, unknown>
  if (toLinked !== true) return
  for (const link of rowsOf(call.portal, 'request_links').filter(one => one.parent === record.id)) {
    const linked = rowById(call.portal, 'requests', link.linked_request)
    if (linked) linked.resolution = { ...(record.resolution as object), content }
  }
}

function historyComment(sent: Record<string, unknown>): string | undefined {
  const comment = sent.update_reason ?? sent.status_change_comments ?? sent.sla_change_comments
  return typeof comment === 'string' ? comment : undefined
}

/** DELETE trashes or purges, by switch; a ticket already in the trash is purged (7.1). */
export function removeRequest(record: StoredRecord, call: Call): void {
  if (call.world.faults.switches.deleteRequest === 'purge' || record.is_trashed === true) {
    removeDeep(call, record)
    return
  }
  trash(record, call)
}
