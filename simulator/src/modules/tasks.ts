import type { Call } from '../api/call.ts'
import { fail } from '../api/failure.ts'
import { inViewScope } from '../api/permissions.ts'
import { uploadOperations } from '../operations/uploads.ts'
import { rowById, rowByName, type StoredRecord } from '../state.ts'
import {
  allVerbs,
  anything,
  decimal,
  type Fields,
  files,
  flag,
  html,
  id,
  integer,
  type Module,
  ref,
  technician,
  text,
  time,
  user,
} from './module.ts'
import { worklogsOf } from './worklogs.ts'

const statusOf = (row: StoredRecord, call: Call) => rowById(call.portal, 'statuses', row.status)

const fields: Fields = {
  id,
  title: text({ mandatory: true }),
  description: html(),
  status: ref('statuses'),
  priority: ref('priorities'),
  task_type: ref('task_types'),
  owner: technician(),
  group: ref('support_groups'),
  scheduled_start_time: time(),
  scheduled_end_time: time(),
  actual_start_time: time(),
  actual_end_time: time(),
  percentage_completion: integer({ minimum: 0, maximum: 100 }),
  estimated_effort_days: integer({ minimum: 0 }),
  estimated_effort_hours: integer({ minimum: 0 }),
  estimated_effort_minutes: integer({ minimum: 0 }),
  additional_cost: decimal({ minimum: 0 }),
  email_before: integer({ minimum: 0 }),
  template: ref('task_templates'),
  overdue: flag({
    readOnly: true,
    compute: (row, call) =>
      typeof row.scheduled_end_time === 'number' &&
      row.scheduled_end_time < call.world.now() &&
      statusOf(row, call)?.in_progress === true,
  }),
  attachments: files({ maxItems: 10 }),
  created_by: user({ readOnly: true }),
  created_time: time({ readOnly: true }),
}

/** Comments of a task: written as `task_comment {comment}`, answered with 201 (docs/sdp-api.md 7.4, 11). */
const comments: Module = {
  path: 'comments',
  table: 'task_comments',
  root: 'task_comment',
  listKey: 'task_comments',
  verbs: allVerbs,
  createdStatus: 201,
  fields: {
    id,
    comment: html({ mandatory: true }),
    created_by: user({ readOnly: true }),
    created_time: time({ readOnly: true }),
    task: ref('tasks', { readOnly: true, compute: row => row.parent }),
  },
}

const common: Omit<Module, 'fields'> = {
  path: 'tasks',
  table: 'tasks',
  root: 'task',
  verbs: allVerbs,
  referenceFields: ['id', 'title'],
  defaultSort: { field: 'id', order: 'asc' },
  defaults: call => ({
    status: rowByName(call.portal, 'statuses', 'Open')?.id,
    owner: call.caller.row.id,
    percentage_completion: 0,
  }),
  beforeSave({ record, before, sent }, call) {
    const [start, end] = [record.scheduled_start_time, record.scheduled_end_time]
    if (typeof start === 'number' && typeof end === 'number' && start > end)
      throw fail.timeMismatch(['scheduled_start_time', 'scheduled_end_time'])
    const isClosed = statusOf(record, call)?.in_progress === false
    if (isClosed && record.status !== before?.status) {
      if (sent.percentage_completion === undefined) record.percentage_completion = 100
      record.actual_end_time ??= call.world.now()
    }
    return undefined
  },
  operations: uploadOperations,
}

/** Tasks below a record. All tasks of a portal live in one table, so that /tasks shows them too. */
export function tasksOf(
  parentKey: string,
  parentTable: string,
  more: Fields = {},
  options: Partial<Module> = {},
): Module {
  return {
    ...common,
    fields: { ...fields, ...more, [parentKey]: ref(parentTable, { readOnly: true, compute: row => row.parent }) },
    children: [worklogsOf('task', 'tasks'), comments],
    ...options,
  }
}

const moduleNames: Record<string, string> = {
  requests: 'request',
  problems: 'problem',
  changes: 'change',
  releases: 'release',
  projects: 'project',
  milestones: 'milestone',
}

const parentShown =
  (table: string) =>
  (row: StoredRecord): unknown =>
    row.parentTable === table ? row.parent : null

/** `/tasks`: the tasks of every module, those of hidden tickets left out (docs/sdp-api.md 11). */
export const generalTasks: Module = {
  ...common,
  scopes: ['general', 'projects', 'requests'],
  fields: {
    ...fields,
    module: anything({ readOnly: true, compute: row => ({ name: moduleNames[String(row.parentTable)] ?? 'general' }) }),
    ...Object.fromEntries(
      Object.entries(moduleNames).map(([table, key]) => [
        key,
        ref(table, { readOnly: true, compute: parentShown(table) }),
      ]),
    ),
  },
  isVisible(row, call) {
    if (row.parentTable !== 'requests') return true
    const request = rowById(call.portal, 'requests', row.parent)
    return request !== undefined && (inViewScope(request, call) || row.owner === call.caller.row.id)
  },
  children: [worklogsOf('task', 'tasks'), comments],
}
