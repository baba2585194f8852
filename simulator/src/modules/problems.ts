import type { Call, Reply } from '../api/call.ts'
import { one } from '../api/envelope.ts'
import { parseFields } from '../api/fields.ts'
import { editRecord, isReply, recordOf, rootInput, show } from '../api/verbs.ts'
import { recordHistory } from '../operations/history.ts'
import { trash, trashOperations } from '../operations/trash.ts'
import { uploadCollectionOperations, uploadOperations } from '../operations/uploads.ts'
import { rowById, rowByName } from '../state.ts'
import { approvalLevelsOf } from './approvals.ts'
import { history, notifications } from './conversations.ts'
import {
  allVerbs,
  displayId,
  type Fields,
  files,
  flag,
  group,
  html,
  id,
  type Module,
  readOnly,
  ref,
  refs,
  technician,
  text,
  time,
  udfFields,
  user,
} from './module.ts'
import { notesOf } from './notes.ts'
import { tasksOf } from './tasks.ts'
import { worklogsOf } from './worklogs.ts'

/** A grouped text such as `root_cause {root_cause_description, root_cause_updated_by}` (docs/sdp-api.md 8, 9). */
export function described(name: string): Fields {
  return {
    [name]: group({
      [`${name}_description`]: html(),
      [`${name}_updated_by`]: user({ readOnly: true }),
      [`${name}_updated_on`]: time({ readOnly: true }),
    }),
  }
}

/** Signs the grouped texts that were sent. */
export function signDescriptions(record: Record<string, unknown>, sent: Record<string, unknown>, call: Call): void {
  for (const key of Object.keys(sent)) {
    const given = sent[key]
    if (typeof given !== 'object' || given === null || !(`${key}_description` in given)) continue
    Object.assign(record[key] as object, {
      [`${key}_updated_by`]: call.caller.row.id,
      [`${key}_updated_on`]: call.world.now(),
    })
  }
}

export const whatIsAffected: Fields = {
  category: ref('categories'),
  subcategory: ref('subcategories', { within: 'category' }),
  item: ref('items', { within: 'subcategory' }),
  services: refs('services'),
  assets: refs('assets'),
  configuration_items: refs('cis'),
  site: ref('sites'),
  group: ref('support_groups'),
  priority: ref('priorities'),
  urgency: ref('urgencies'),
  impact: ref('impacts'),
}

const isOpen = (row: Record<string, unknown>, call: Call) =>
  rowById(call.portal, 'statuses', row.status)?.in_progress === true

/** `PUT /problems/{id}/_close` with optional `close_details`. */
function close(call: Call): Reply {
  const { close_details: closeDetails } = call.module.fields
  const given = call.input === undefined ? {} : rootInput(call)
  const sent = parseFields(given, { close_details: closeDetails ?? { type: 'any' } }, call)
  const closed = editRecord(call, recordOf(call), { ...sent, status: rowByName(call.portal, 'statuses', 'Closed')?.id })
  return isReply(closed) ? closed : one('problem', show(closed, call))
}

const closureCode = ref('closure_codes', {
  only: row => (row.module as { name?: string } | undefined)?.name === 'problem',
})

/** Problems (docs/sdp-api.md 8). */
export const problems: Module = {
  path: 'problems',
  table: 'problems',
  root: 'problem',
  entity: 'problem',
  scopes: ['problems'],
  verbs: allVerbs,
  numbered: true,
  offersLookups: true,
  fields: {
    id,
    display_id: displayId,
    title: text({ mandatory: true }),
    description: html(),
    reported_by: user(),
    requester: user(),
    technician: technician(),
    status: ref('statuses'),
    template: ref('problem_templates'),
    reported_time: time(),
    due_by_time: time(),
    closed_time: time(),
    ...whatIsAffected,
    ...described('impact_details'),
    ...described('root_cause'),
    ...described('symptoms'),
    known_error_details: group({ is_known_error: flag(), known_error_comments: text() }),
    close_details: group({ closure_code: closureCode, close_details_comments: text() }),
    ...described('resolution_details'),
    ...described('workaround_details'),
    udf_fields: udfFields(),
    attachments: files({ maxItems: 10 }),
    ...readOnly({
      created_time: time(),
      created_by: user(),
      updated_time: time(),
      is_overdue: flag({
        compute: (row, call) => isOpen(row, call) && Number(row.due_by_time ?? Infinity) < call.world.now(),
      }),
      has_attachments: flag({ compute: row => ((row.attachments as string[] | undefined) ?? []).length > 0 }),
      notes_present: flag({
        compute: (row, call) =>
          Object.values(call.portal.tables.problem_notes ?? {}).some(note => note.parent === row.id),
      }),
      approval_status: ref('approval_statuses'),
      is_trashed: flag(),
      deleted_time: time(),
      deleted_by: user(),
    }),
  },
  listFields: [
    'id',
    'display_id',
    'title',
    'status',
    'priority',
    'technician',
    'group',
    'category',
    'reported_by',
    'created_time',
    'due_by_time',
    'is_overdue',
  ],
  referenceFields: ['id', 'display_id', 'title'],
  defaultSort: { field: 'created_time', order: 'asc' },
  isListed: row => row.is_trashed !== true,
  defaults: call => ({
    status: rowByName(call.portal, 'statuses', 'Open')?.id,
    reported_by: call.caller.row.id,
    reported_time: call.world.now(),
    template: rowByName(call.portal, 'problem_templates', 'Default Problem')?.id,
    is_trashed: false,
  }),
  beforeSave({ record, before, sent }, call) {
    signDescriptions(record, sent, call)
    if (before) record.updated_time = call.world.now()
    if (record.status !== before?.status) {
      const status = rowById(call.portal, 'statuses', record.status)
      if (status?.in_progress === false) record.closed_time ??= call.world.now()
      else if (before) record.closed_time = null
    }
    return undefined
  },
  afterSave: ({ record, before }, call) => recordHistory(call, record, before, before ? 'UPDATE' : 'CREATE'),
  onDelete(record, call) {
    if (record.is_trashed === true) delete call.portal.tables.problems?.[record.id]
    else trash(record, call)
  },
  operations: { 'PUT close': close, ...trashOperations, ...uploadOperations },
  collectionOperations: uploadCollectionOperations,
  children: [
    notesOf('problem_notes', 'problems', 'problem'),
    tasksOf('problem', 'problems'),
    worklogsOf('problem', 'problems'),
    approvalLevelsOf('problem', 'problems'),
    notifications,
    history,
  ],
}
