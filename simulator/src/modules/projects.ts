import type { Call } from '../api/call.ts'
import { fail } from '../api/failure.ts'
import { uploadOperations } from '../operations/uploads.ts'
import { rowById, rowByName, type StoredRecord } from '../state.ts'
import {
  allVerbs,
  type Change,
  decimal,
  displayId,
  type Fields,
  html,
  id,
  integer,
  type Module,
  money,
  ref,
  technician,
  text,
  time,
  udfFields,
  user,
} from './module.ts'
import { tasksOf } from './tasks.ts'

const schedule: Fields = {
  description: html(),
  status: ref('project_statuses'),
  priority: ref('priorities'),
  owner: technician(),
  scheduled_start_time: time(),
  scheduled_end_time: time(),
  actual_start_time: time(),
  actual_end_time: time(),
  estimated_hours: decimal({ minimum: 0 }),
  actual_hours: decimal({ minimum: 0 }),
  estimated_cost: money(),
  actual_cost: money(),
  percentage_completion: integer({ minimum: 0, maximum: 100 }),
  created_by: user({ readOnly: true }),
  created_time: time({ readOnly: true }),
  last_updated_time: time({ readOnly: true }),
}

function checkSchedule({ record, before }: Change, call: Call): undefined {
  const [start, end] = [record.scheduled_start_time, record.scheduled_end_time]
  if (typeof start === 'number' && typeof end === 'number' && start > end)
    throw fail.timeMismatch(['scheduled_start_time', 'scheduled_end_time'])
  if (before) record.last_updated_time = call.world.now()
  if (
    record.status !== before?.status &&
    rowById(call.portal, 'project_statuses', record.status)?.name === 'Completed'
  ) {
    record.actual_end_time ??= call.world.now()
    record.percentage_completion = 100
  }
  return undefined
}

const startValues = (call: Call) => ({
  status: rowByName(call.portal, 'project_statuses', 'Open')?.id,
  owner: call.caller.row.id,
  percentage_completion: 0,
})

/** Milestones take no `project`: it is read only and answers 4014 (docs/sdp-api.md 11). */
const milestones: Module = {
  path: 'milestones',
  table: 'milestones',
  root: 'milestone',
  verbs: allVerbs,
  fields: {
    id,
    title: text({ mandatory: true }),
    ...schedule,
    project: ref('projects', { readOnly: true, compute: row => row.parent }),
  },
  referenceFields: ['id', 'title'],
  defaultSort: { field: 'scheduled_end_time', order: 'asc' },
  defaults: startValues,
  beforeSave: checkSchedule,
  children: [tasksOf('milestone', 'milestones', {}, { refusesPage: true })],
}

const members: Module = {
  path: 'members',
  table: 'project_members',
  root: 'member',
  verbs: ['list', 'get', 'add', 'edit', 'delete'],
  fields: {
    id,
    user: user({ mandatory: true, unique: true }),
    project_role: ref('project_roles'),
    created_time: time({ readOnly: true }),
  },
}

const comments: Module = {
  path: 'comments',
  table: 'project_comments',
  root: 'comment',
  verbs: allVerbs,
  fields: {
    id,
    content: html({ mandatory: true }),
    created_by: user({ readOnly: true }),
    created_time: time({ readOnly: true }),
  },
}

const isOfMilestone = (
  task: StoredRecord,
  project: StoredRecord,
  milestonesOfPortal: Record<string, StoredRecord> = {},
) => task.parentTable === 'milestones' && milestonesOfPortal[String(task.parent)]?.parent === project.id

/** Projects with milestones, tasks, members (docs/sdp-api.md 11). A deleted project is gone. */
export const projects: Module = {
  path: 'projects',
  table: 'projects',
  root: 'project',
  entity: 'project',
  scopes: ['projects'],
  verbs: allVerbs,
  numbered: true,
  offersLookups: true,
  fields: {
    id,
    display_id: displayId,
    title: text({ mandatory: true }),
    project_code: text({ unique: true, maxLength: 50 }),
    ...schedule,
    project_type: ref('project_types'),
    project_manager: technician(),
    site: ref('sites'),
    department: ref('departments'),
    template: ref('project_templates'),
    udf_fields: udfFields(),
  },
  listFields: [
    'id',
    'display_id',
    'title',
    'project_code',
    'status',
    'priority',
    'owner',
    'percentage_completion',
    'scheduled_start_time',
    'scheduled_end_time',
    'created_time',
  ],
  referenceFields: ['id', 'title', 'project_code'],
  defaultSort: { field: 'created_time', order: 'desc' },
  defaults: startValues,
  beforeSave: checkSchedule,
  operations: uploadOperations,
  children: [
    milestones,
    tasksOf(
      'project',
      'projects',
      {},
      {
        refusesPage: true,
        isBelow: (task, project, portal) => isOfMilestone(task, project, portal.tables.milestones),
      },
    ),
    members,
    comments,
  ],
}
