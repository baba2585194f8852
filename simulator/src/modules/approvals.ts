import {
  approvalCollectionOperations,
  approvalOperations,
  levelStatus,
  noteApprovalOnParent,
} from '../operations/approvals.ts'
import { childrenOf, rowByName } from '../state.ts'
import { anything, type Fields, flag, id, integer, type Module, oneOfNames, ref, text, time, user } from './module.ts'

const approvals: Module = {
  path: 'approvals',
  table: 'approvals',
  root: 'approval',
  verbs: ['list', 'get', 'add', 'delete'],
  fields: {
    id,
    approver: user({ mandatory: true }),
    original_approver: user(),
    xpath: anything(),
    comments: text({ readOnly: true }),
    status: ref('approval_statuses', { readOnly: true }),
    sent_on: time({ readOnly: true }),
    action_taken_on: time({ readOnly: true }),
    action_by: user({ readOnly: true }),
    deleted: flag({ readOnly: true, compute: () => false }),
    approval_level: ref('approval_levels', { readOnly: true, compute: row => row.parent }),
  },
  defaults: ({ portal, world }) => ({
    status: rowByName(portal, 'approval_statuses', 'Pending Approval')?.id,
    sent_on: world.now(),
  }),
  afterSave: (change, call) => noteApprovalOnParent(change.record, call),
  forRequesters: ['list', 'get'],
  requesterOperations: ['approve', 'reject'],
  operations: approvalOperations,
  collectionOperations: approvalCollectionOperations,
}

/** Levels of approval and the people of each (docs/sdp-api.md 7.4, 9). A level cannot be edited. */
export function approvalLevelsOf(entity: string, parentTable: string, more: Fields = {}): Module {
  return {
    path: 'approval_levels',
    table: 'approval_levels',
    root: 'approval_level',
    verbs: ['list', 'get', 'add', 'delete'],
    fields: {
      id,
      level: integer({ mandatory: true, minimum: 1, maximum: 5, unique: true }),
      rule: oneOfNames(['Everyone Approves', 'Anyone Approves', 'First Response', 'Majority']),
      status: ref('approval_statuses', { readOnly: true, compute: levelStatus }),
      created_by: user({ readOnly: true }),
      created_time: time({ readOnly: true }),
      associated_entity: text({ readOnly: true, compute: () => entity }),
      deleted: flag({ readOnly: true, compute: () => false }),
      is_current: flag({
        readOnly: true,
        compute: (row, call) => {
          const pending = rowByName(call.portal, 'approval_statuses', 'Pending Approval')?.id
          const open = childrenOf(call.portal, 'approval_levels', String(row.parent))
            .filter(level => levelStatus(level, call) === pending)
            .sort((a, b) => Number(a.level) - Number(b.level))
          return open[0]?.id === row.id
        },
      }),
      [entity]: ref(parentTable, { readOnly: true, compute: row => row.parent }),
      ...more,
    },
    referenceFields: ['id', 'level'],
    defaultSort: { field: 'level', order: 'asc' },
    defaults: () => ({ rule: { name: 'Everyone Approves' } }),
    forRequesters: ['list', 'get'],
    children: [approvals],
  }
}
