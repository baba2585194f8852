import type { Call, Reply } from '../api/call.ts'
import { bulk, done, one } from '../api/envelope.ts'
import { ApiFailure, fail } from '../api/failure.ts'
import { parseFields } from '../api/fields.ts'
import { parseId } from '../api/references.ts'
import { recordOf, rootInput, show } from '../api/verbs.ts'
import { html, type Operations, text } from '../modules/module.ts'
import { childrenOf, insert, nextId, rowById, rowByName, type StoredRecord } from '../state.ts'

const statusId = (call: Call, name: string) => rowByName(call.portal, 'approval_statuses', name)?.id

/** The status of a level by its rule and the decisions so far; pending while open. */
export function levelStatus(level: StoredRecord, call: Call): string | undefined {
  const decisions = childrenOf(call.portal, 'approvals', level.id)
  const approved = decisions.filter(one => one.status === statusId(call, 'Approved')).length
  const rejected = decisions.filter(one => one.status === statusId(call, 'Rejected')).length
  const rule = (level.rule as { name?: string } | undefined)?.name ?? 'Everyone Approves'
  const verdict = verdictOf(rule, approved, rejected, decisions.length)
  return statusId(call, verdict)
}

function verdictOf(rule: string, approved: number, rejected: number, all: number): string {
  const pending = 'Pending Approval'
  if (all === 0) return 'To Be Sent'
  switch (rule) {
    case 'Anyone Approves':
      return approved > 0 ? 'Approved' : rejected === all ? 'Rejected' : pending
    case 'First Response':
      return approved > 0 ? 'Approved' : rejected > 0 ? 'Rejected' : pending
    case 'Majority':
      return approved * 2 > all ? 'Approved' : rejected * 2 >= all ? 'Rejected' : pending
    default:
      return rejected > 0 ? 'Rejected' : approved === all ? 'Approved' : pending
  }
}

/** Carries the outcome of the levels to the ticket, change or order they belong to. */
export function noteApprovalOnParent(approval: StoredRecord, call: Call): void {
  const { portal } = call
  const level = rowById(portal, 'approval_levels', approval.parent)
  const parent = level && rowById(portal, String(level.parentTable), level.parent)
  if (!level || !parent) return
  const statuses = childrenOf(portal, 'approval_levels', parent.id).map(one => levelStatus(one, call))
  const [pending, approved, rejected] = ['Pending Approval', 'Approved', 'Rejected'].map(name => statusId(call, name))
  if (statuses.includes(rejected)) parent.approval_status = rejected
  else parent.approval_status = statuses.every(status => status === approved) ? approved : pending
}

/** `_approve` and `_reject` with `{"approval":{"comments"}}`: only the approver may, and only once. */
function decide(name: 'Approved' | 'Rejected') {
  return (call: Call): Reply => {
    const { portal, caller, world } = call
    const approval = recordOf(call)
    const given = call.input === undefined ? {} : rootInput(call)
    const { comments } = parseFields(given, { comments: text() }, call)
    if (approval.approver !== caller.row.id) throw fail.notAllowed()
    if (approval.status !== statusId(call, 'Pending Approval')) throw fail.refused('The approval was decided before')
    Object.assign(approval, {
      status: statusId(call, name),
      comments: comments ?? null,
      action_by: caller.row.id,
      action_taken_on: world.now(),
    })
    const level = rowById(portal, 'approval_levels', approval.parent)
    insert(portal, 'approval_comments', {
      id: nextId(portal),
      parent: String(level?.parent),
      description: `${name}: ${String(comments ?? '')}`,
      created_by: caller.row.id,
      created_time: world.now(),
    })
    noteApprovalOnParent(approval, call)
    world.changed()
    return one('approval', show(approval, call))
  }
}

function notificationText(call: Call): { subject: string; description: string } {
  const level = call.trail.at(-1)?.record
  const parent = call.trail.at(0)?.record
  const name = String(parent?.subject ?? parent?.title ?? parent?.name ?? '')
  return {
    subject: `Approval required: ${name}`,
    description: `<p>Please decide on "${name}", level ${String(level?.level)}.</p>`,
  }
}

function checkNotification(call: Call): void {
  if (call.input === undefined) return
  parseFields(rootInput(call, ['notification']), { subject: text(), description: html() }, call)
}

export const approvalOperations: Operations = {
  'PUT approve': decide('Approved'),
  'PUT reject': decide('Rejected'),
  'PUT send_notification'(call) {
    checkNotification(call)
    recordOf(call).sent_on = call.world.now()
    return done('Notification sent')
  },
  'GET get_notification_content': call => one('notification', notificationText(call)),
}

export const approvalCollectionOperations: Operations = {
  'PUT send_notification'(call) {
    checkNotification(call)
    const ids = (call.form.ids ?? '').split(',').filter(Boolean)
    if (ids.length === 0) throw fail.mandatory(['ids'])
    return bulk(
      ids.map(id => {
        try {
          const approval = rowById(call.portal, 'approvals', parseId(id))
          if (!approval || approval.parent !== call.trail.at(-1)?.record.id) throw fail.invalidUrl()
          approval.sent_on = call.world.now()
          return { id }
        } catch (failure) {
          if (failure instanceof ApiFailure) return { id, failure }
          throw failure
        }
      }),
    )
  },
  'GET get_notification_content': call => one('notification', notificationText(call)),
}
