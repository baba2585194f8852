import { one } from '../api/envelope.ts'
import { editRecord, isReply, recordOf, show } from '../api/verbs.ts'
import { recordHistory } from '../operations/history.ts'
import { trash, trashOperations } from '../operations/trash.ts'
import { uploadCollectionOperations, uploadOperations } from '../operations/uploads.ts'
import { insert, nextDisplayId, nextId, rowByName } from '../state.ts'
import { approvalLevelsOf } from './approvals.ts'
import { history, notifications } from './conversations.ts'
import {
  allVerbs,
  anything,
  displayId,
  files,
  flag,
  html,
  id,
  type Module,
  readOnly,
  ref,
  technician,
  text,
  time,
  udfFields,
  user,
} from './module.ts'
import { notesOf } from './notes.ts'
import { described, whatIsAffected } from './problems.ts'
import { closeStaged, firstStage, moveStage, type Staged } from './staged.ts'
import { tasksOf } from './tasks.ts'
import { worklogsOf } from './worklogs.ts'

const changeStages: Staged = { stages: 'change_stages', statuses: 'change_statuses' }

const downtimes: Module = {
  path: 'downtimes',
  table: 'downtimes',
  root: 'downtime',
  verbs: allVerbs,
  fields: {
    id,
    scheduled_start_time: time({ mandatory: true }),
    scheduled_end_time: time({ mandatory: true }),
    actual_start_time: time(),
    actual_end_time: time(),
    services: whatIsAffected.services ?? anything(),
    description: html(),
  },
}

/** Changes (docs/sdp-api.md 9). Listed oldest first unless asked otherwise (18.18). */
export const changes: Module = {
  path: 'changes',
  table: 'changes',
  root: 'change',
  entity: 'change',
  scopes: ['changes'],
  verbs: allVerbs,
  numbered: true,
  offersLookups: true,
  fields: {
    id,
    display_id: displayId,
    title: text({ mandatory: true }),
    description: html(),
    comment: text({ writeOnly: true }),
    stage: ref('change_stages'),
    status: ref('change_statuses'),
    template: ref('change_templates'),
    workflow: anything(),
    change_type: ref('change_types'),
    change_requester: user(),
    change_manager: technician(),
    change_owner: technician(),
    reason_for_change: ref('reason_for_changes'),
    risk: ref('change_risks'),
    ...whatIsAffected,
    scheduled_start_time: time(),
    scheduled_end_time: time(),
    created_time: time({ addOnly: true }),
    completed_time: time(),
    retrospective: flag(),
    emergency: flag(),
    roles: anything(),
    closure_code: ref('closure_codes', {
      only: row => (row.module as { name?: string } | undefined)?.name === 'change',
    }),
    ...described('roll_out_plan'),
    ...described('back_out_plan'),
    ...described('impact_details'),
    ...described('checklist'),
    ...described('review_details'),
    ...described('close_details'),
    ...described('uat_details'),
    ...described('release_details'),
    udf_fields: udfFields(),
    attachments: files({ maxItems: 10 }),
    delete_pre_template_tasks: flag({ writeOnly: true }),
    ...readOnly({
      created_by: user(),
      last_updated_time: time(),
      approval_status: ref('approval_statuses'),
      has_attachments: flag({ compute: row => ((row.attachments as string[] | undefined) ?? []).length > 0 }),
      is_trashed: flag(),
      deleted_time: time(),
      deleted_by: user(),
    }),
  },
  listFields: [
    'id',
    'display_id',
    'title',
    'stage',
    'status',
    'change_type',
    'risk',
    'priority',
    'change_owner',
    'change_requester',
    'group',
    'created_time',
    'scheduled_start_time',
    'scheduled_end_time',
    'completed_time',
    'emergency',
  ],
  referenceFields: ['id', 'display_id', 'title'],
  defaultSort: { field: 'created_time', order: 'asc' },
  isListed: row => row.is_trashed !== true,
  defaults: call => ({
    ...firstStage(changeStages, call),
    change_requester: call.caller.row.id,
    template: rowByName(call.portal, 'change_templates', 'Default Change')?.id,
    change_type: rowByName(call.portal, 'change_types', 'Standard')?.id,
    emergency: false,
    retrospective: false,
    is_trashed: false,
  }),
  beforeSave: (change, call) => moveStage(changeStages, change, call),
  afterSave: ({ record, before, sent }, call) =>
    recordHistory(call, record, before, before ? 'UPDATE' : 'CREATE', sent.comment as string | undefined),
  onDelete(record, call) {
    if (record.is_trashed === true) delete call.portal.tables.changes?.[record.id]
    else trash(record, call)
  },
  operations: {
    'PUT close': closeStaged(changeStages),
    'PUT close_change': closeStaged(changeStages),
    'PUT pickup'(call) {
      const picked = editRecord(call, recordOf(call), { change_owner: call.caller.row.id })
      return isReply(picked) ? picked : one('change', show(picked, call))
    },
    'PUT copy'(call) {
      const { portal, world, caller } = call
      const copy = insert(portal, 'changes', {
        ...structuredClone(recordOf(call)),
        ...firstStage(changeStages, call),
        id: nextId(portal),
        display_id: nextDisplayId(portal, 'changes'),
        created_by: caller.row.id,
        created_time: world.now(),
        completed_time: null,
        approval_status: null,
      })
      world.changed()
      return one('change', show(copy, call))
    },
    ...trashOperations,
    ...uploadOperations,
  },
  collectionOperations: uploadCollectionOperations,
  children: [
    notesOf('change_notes', 'changes', 'change'),
    tasksOf('change', 'changes'),
    worklogsOf('change', 'changes'),
    approvalLevelsOf('change', 'changes', { change_stage: ref('change_stages') }),
    downtimes,
    notifications,
    history,
  ],
}

const releaseStages: Staged = { stages: 'release_stages', statuses: 'release_statuses' }

/** Releases (docs/sdp-api.md 10); their tasks name a stage. */
export const releases: Module = {
  path: 'releases',
  table: 'releases',
  root: 'release',
  entity: 'release',
  scopes: ['releases'],
  verbs: allVerbs,
  numbered: true,
  offersLookups: true,
  fields: {
    id,
    display_id: displayId,
    title: text({ mandatory: true }),
    description: html(),
    comment: text({ writeOnly: true }),
    template: ref('release_templates'),
    stage: ref('release_stages'),
    status: ref('release_statuses'),
    workflow: anything(),
    release_requester: user(),
    release_engineer: technician(),
    release_manager: technician(),
    release_type: ref('release_types'),
    reason_for_release: ref('reason_for_releases'),
    risk: ref('change_risks'),
    ...whatIsAffected,
    scheduled_start_time: time(),
    scheduled_end_time: time(),
    created_time: time({ addOnly: true }),
    completed_time: time(),
    next_review_on: time(),
    closure_code: ref('closure_codes', {
      only: row => (row.module as { name?: string } | undefined)?.name === 'release',
    }),
    ...described('roll_out_plan'),
    ...described('back_out_plan'),
    udf_fields: udfFields(),
    attachments: files({ maxItems: 10 }),
    ...readOnly({
      created_by: user(),
      last_updated_time: time(),
      approval_status: ref('approval_statuses'),
      is_trashed: flag(),
    }),
  },
  listFields: [
    'id',
    'display_id',
    'title',
    'stage',
    'status',
    'release_type',
    'risk',
    'priority',
    'release_engineer',
    'created_time',
    'scheduled_start_time',
    'scheduled_end_time',
    'completed_time',
  ],
  referenceFields: ['id', 'display_id', 'title'],
  defaultSort: { field: 'created_time', order: 'asc' },
  isListed: row => row.is_trashed !== true,
  defaults: call => ({
    ...firstStage(releaseStages, call),
    release_requester: call.caller.row.id,
    template: rowByName(call.portal, 'release_templates', 'Default Release')?.id,
    is_trashed: false,
  }),
  beforeSave: (change, call) => moveStage(releaseStages, change, call),
  afterSave: ({ record, before, sent }, call) =>
    recordHistory(call, record, before, before ? 'UPDATE' : 'CREATE', sent.comment as string | undefined),
  onDelete(record, call) {
    if (record.is_trashed === true) delete call.portal.tables.releases?.[record.id]
    else trash(record, call)
  },
  operations: { 'PUT close': closeStaged(releaseStages), ...trashOperations, ...uploadOperations },
  collectionOperations: uploadCollectionOperations,
  children: [
    notesOf('release_notes', 'releases', 'release'),
    tasksOf('release', 'releases', { stage: ref('release_stages', { mandatory: true }) }),
    worklogsOf('release', 'releases'),
    approvalLevelsOf('release', 'releases', { release_stage: ref('release_stages') }),
    history,
  ],
}
