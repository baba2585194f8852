import type { Call } from '../api/call.ts'
import { inViewScope } from '../api/permissions.ts'
import { requestOperations } from '../operations/request-operations.ts'
import { uploadCollectionOperations } from '../operations/uploads.ts'
import { childrenOf, rowById, rowsOf, type StoredRecord } from '../state.ts'
import { approvalLevelsOf } from './approvals.ts'
import { checklists } from './checklists.ts'
import { conversations, drafts, history, notifications } from './conversations.ts'
import {
  allVerbs,
  anything,
  displayId,
  files,
  flag,
  group,
  html,
  id,
  type Module,
  money,
  readOnly,
  ref,
  refs,
  technician,
  text,
  texts,
  time,
  udfFields,
  user,
} from './module.ts'
import { requestNotes } from './notes.ts'
import { afterRequestSaved, beforeRequestSaved, newRequestValues, removeRequest } from './request-rules.ts'
import { requestViews } from './request-views.ts'
import { tasksOf } from './tasks.ts'
import { worklogsOf } from './worklogs.ts'

const plainText = (html: unknown) =>
  String(html ?? '')
    .replace(/<[^>]+>/g, ' ')
    .replace(/\s+/g, ' ')
    .trim()
    .slice(0, 200)

export const isInProgress = (record: StoredRecord, call: Call) =>
  rowById(call.portal, 'statuses', record.status)?.in_progress === true

const hasChildren = (table: string) => (record: StoredRecord, call: Call) =>
  childrenOf(call.portal, table, record.id).length > 0

const due = (key: string) => (record: StoredRecord, call: Call) =>
  isInProgress(record, call) && typeof record[key] === 'number' && record[key] < call.world.now()

/** Whoever is asked to approve sees the ticket. */
function isApprover(record: StoredRecord, call: Call): boolean {
  return rowsOf(call.portal, 'approvals').some(
    one =>
      one.approver === call.caller.row.id && rowById(call.portal, 'approval_levels', one.parent)?.parent === record.id,
  )
}

const closureCode = ref('closure_codes', {
  only: row => (row.module as { name?: string } | undefined)?.name === 'request',
})

/** docs/sdp-api.md 7.2: what may be written. */
const writable: Module['fields'] = {
  subject: text({ mandatory: true }),
  description: html(),
  impact_details: text(),
  email_ids_to_notify: texts(),
  delete_pre_template_tasks: flag({ writeOnly: true }),
  delete_pre_template_checklists: flag({ writeOnly: true }),
  add_template_checklists: flag({ writeOnly: true }),
  update_reason: text({ writeOnly: true }),
  status_change_comments: text({ writeOnly: true }),
  sla_change_comments: text({ writeOnly: true }),
  due_by_time: time(),
  first_response_due_by_time: time(),
  scheduled_start_time: time(),
  scheduled_end_time: time(),
  created_time: time({ addOnly: true }),
  status: ref('statuses'),
  priority: ref('priorities'),
  urgency: ref('urgencies'),
  impact: ref('impacts'),
  level: ref('levels'),
  mode: ref('modes'),
  request_type: ref('request_types'),
  category: ref('categories'),
  subcategory: ref('subcategories', { within: 'category' }),
  item: ref('items', { within: 'subcategory' }),
  group: ref('support_groups'),
  site: ref('sites'),
  technician: technician(),
  requester: user(),
  on_behalf_of: user(),
  editor: user(),
  template: ref('request_templates'),
  service_category: ref('service_categories'),
  sla: ref('slas'),
  space: ref('space_rooms'),
  assets: refs('assets'),
  configuration_items: refs('cis'),
  udf_fields: udfFields(),
  resources: anything(),
  service_approvers: anything(),
  resolution: group({
    content: html(),
    add_to_linked_requests: flag({ writeOnly: true }),
    submitted_by: user({ readOnly: true }),
    submitted_on: time({ readOnly: true }),
    resolution_attachments: files({ readOnly: true }),
  }),
  closure_info: group({
    requester_ack_resolution: flag(),
    requester_ack_comments: text(),
    closure_comments: text(),
    closure_code: closureCode,
  }),
  onhold_scheduler: group({
    scheduled_time: time(),
    change_to_status: ref('statuses'),
    comments: text(),
    held_by: user({ readOnly: true }),
  }),
  is_fcr: flag(),
  attachments: files(),
  request_template_task_ids: anything({ writeOnly: true }),
  tags: refs('tags'),
}

/** docs/sdp-api.md 7.2: what only SDP sets. */
const given: Module['fields'] = readOnly({
  display_key: anything({
    compute: record => ({ display_value: `${record.is_service_request ? 'SR' : 'IN'}-${record.display_id}` }),
  }),
  short_description: text({ compute: record => plainText(record.description) }),
  created_by: user(),
  submitted_by: user({ compute: record => record.created_by }),
  last_updated_time: time(),
  assigned_time: time(),
  responded_time: time(),
  resolved_time: time(),
  completed_time: time(),
  deleted_time: time(),
  deleted_by: user(),
  time_elapsed: anything(),
  is_overdue: flag({ compute: due('due_by_time') }),
  is_escalated: flag(),
  is_first_response_overdue: flag({
    compute: (record, call) => !record.responded_time && due('first_response_due_by_time')(record, call),
  }),
  is_read: flag(),
  is_reopened: flag(),
  is_trashed: flag(),
  is_service_request: flag(),
  cancellation_requested: flag(),
  cancel_flag_comments: text(),
  completed_by_denial: flag(),
  has_attachments: flag({ compute: record => ((record.attachments as string[] | undefined) ?? []).length > 0 }),
  has_notes: flag({ compute: hasChildren('request_notes') }),
  has_draft: flag({ compute: hasChildren('drafts') }),
  has_linked_requests: flag({ compute: hasChildren('request_links') }),
  has_problem: flag({ compute: record => record.problem != null }),
  has_project: flag({ compute: record => record.project != null }),
  has_purchase_orders: flag(),
  has_request_initiated_change: flag({ compute: record => record.request_initiated_change != null }),
  has_change_initiated_request: flag({ compute: record => record.request_caused_by_change != null }),
  linked_to_request: ref('requests', {
    compute: (record, call) =>
      Object.values(call.portal.tables.request_links ?? {}).find(link => link.linked_request === record.id)?.parent,
  }),
  approval_status: ref('approval_statuses'),
  notification_status: anything(),
  unreplied_count: anything({ compute: record => String(record.unreplied_count ?? 0) }),
  editor_status: anything(),
  lifecycle: anything(),
  department: ref('departments', {
    compute: (record, call) => rowById(call.portal, 'users', record.requester)?.department,
  }),
  email_to: texts(),
  email_cc: texts(),
  email_bcc: texts(),
  message_id: text(),
  service_cost: money(),
  total_cost: money(),
  deleted_assets: anything(),
  maintenance: anything(),
})

/** Requests (docs/sdp-api.md 7): the tickets. */
export const requests: Module = {
  path: 'requests',
  table: 'requests',
  root: 'request',
  entity: 'request',
  scopes: ['requests'],
  verbs: allVerbs,
  forRequesters: ['list', 'get', 'add'],
  numbered: true,
  offersLookups: true,
  fields: { id, display_id: displayId, ...writable, ...given },
  listFields: [
    'id',
    'display_id',
    'subject',
    'short_description',
    'requester',
    'technician',
    'group',
    'site',
    'status',
    'priority',
    'template',
    'created_time',
    'due_by_time',
    'is_service_request',
    'cancellation_requested',
    'cancel_flag_comments',
    'has_notes',
    'has_draft',
  ],
  referenceFields: ['id', 'display_id', 'subject'],
  defaultSort: { field: 'created_time', order: 'desc' },
  views: requestViews,
  isVisible: (record, call) => inViewScope(record, call) || isApprover(record, call),
  isListed: record => record.is_trashed !== true,
  defaults: newRequestValues,
  extraMandatory(sent, { world }) {
    const { mandatoryRequestFields, subcategoryWithCategory } = world.faults.switches
    return subcategoryWithCategory && sent.category
      ? [...mandatoryRequestFields, 'subcategory']
      : mandatoryRequestFields
  },
  beforeSave: beforeRequestSaved,
  afterSave: afterRequestSaved,
  onDelete: removeRequest,
  operations: requestOperations,
  collectionOperations: uploadCollectionOperations,
  children: [
    requestNotes,
    tasksOf('request', 'requests'),
    worklogsOf('request', 'requests'),
    checklists,
    approvalLevelsOf('request', 'requests'),
    conversations,
    notifications,
    drafts,
    history,
  ],
}
