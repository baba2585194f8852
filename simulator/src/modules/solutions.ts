import type { Call, Reply } from '../api/call.ts'
import { done, one } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { recordOf, removeDeep, show } from '../api/verbs.ts'
import { trash, trashOperations } from '../operations/trash.ts'
import { uploadCollectionOperations, uploadOperations } from '../operations/uploads.ts'
import { rowById, rowByName, rowsOf, type StoredRecord } from '../state.ts'
import {
  allVerbs,
  anything,
  displayId,
  files,
  flag,
  html,
  id,
  integer,
  type Module,
  readOnly,
  readVerbs,
  ref,
  text,
  time,
  udfFields,
  user,
} from './module.ts'

const statusName = (row: StoredRecord, call: Call) =>
  rowById(call.portal, 'solution_statuses', row.approval_status)?.name

/** Moves an article to another approval status; `from` are the names it may come from. */
function move(to: string, from: readonly string[]) {
  return (call: Call): Reply => {
    const article = recordOf(call)
    const now = String(statusName(article, call))
    if (!from.includes(now)) throw fail.refused(`A solution that is ${now} cannot become ${to}`)
    article.approval_status = rowByName(call.portal, 'solution_statuses', to)?.id
    article.last_updated_time = call.world.now()
    article.last_updated_by = call.caller.row.id
    call.world.changed()
    return one('solution', show(article, call))
  }
}

function count(field: 'likes' | 'dislikes') {
  return (call: Call): Reply => {
    const article = recordOf(call)
    article[field] = Number(article[field] ?? 0) + 1
    call.world.changed()
    return done()
  }
}

const elapsed = (key: string) => (row: StoredRecord, call: Call) => Number(row[key] ?? Infinity) < call.world.now()
const withStatus =
  (...names: string[]) =>
  (row: StoredRecord, call: Call) =>
    row.is_trashed !== true && names.includes(String(statusName(row, call)))

/** Knowledge base articles (docs/sdp-api.md 12). Requesters read what is public and approved. */
const solutionModule: Module = {
  path: 'solutions',
  table: 'solutions',
  root: 'solution',
  entity: 'solution',
  scopes: ['solutions'],
  verbs: allVerbs,
  forRequesters: readVerbs,
  requesterOperations: ['like', 'dislike'],
  numbered: true,
  offersLookups: true,
  fields: {
    id,
    display_id: displayId,
    title: text({ mandatory: true }),
    description: html({ mandatory: true }),
    topic: ref('topics'),
    keywords: text({ maxLength: 500 }),
    is_public: flag(),
    review_date: time(),
    expiry_date: time(),
    owner: user(),
    user_group_mapping: anything(),
    comment: text({ writeOnly: true }),
    template: ref('solution_templates'),
    attachments: files(),
    udf_fields: udfFields(),
    ...readOnly({
      no_of_hits: integer(),
      likes: integer(),
      dislikes: integer(),
      approval_status: ref('solution_statuses'),
      created_by: user(),
      created_time: time(),
      last_updated_by: user(),
      last_updated_time: time(),
      is_reviewdate_elapsed: flag({ compute: elapsed('review_date') }),
      is_expirydate_elapsed: flag({ compute: elapsed('expiry_date') }),
      is_trashed: flag(),
    }),
  },
  listFields: [
    'id',
    'display_id',
    'title',
    'topic',
    'keywords',
    'is_public',
    'approval_status',
    'no_of_hits',
    'likes',
    'created_by',
    'created_time',
    'last_updated_time',
  ],
  referenceFields: ['id', 'display_id', 'title'],
  defaultSort: { field: 'created_time', order: 'desc' },
  views: {
    AllSolutions: row => row.is_trashed !== true,
    ApprovedSolutions: withStatus('Approved', 'Published'),
    RejectedSolutions: withStatus('Rejected'),
    Approval_Pending: withStatus('Approval Pending'),
    UnApprovedSolutions: withStatus('UnApproved'),
    ExpiredSolutions: elapsed('expiry_date'),
  },
  isListed: row => row.is_trashed !== true,
  isVisible: (row, call) =>
    call.caller.isTechnician || (row.is_public === true && withStatus('Approved', 'Published')(row, call)),
  defaults: call => ({
    approval_status: rowByName(call.portal, 'solution_statuses', 'UnApproved')?.id,
    owner: call.caller.row.id,
    is_public: false,
    is_trashed: false,
    no_of_hits: 0,
    likes: 0,
    dislikes: 0,
  }),
  beforeSave({ record, before }, call) {
    if (before) Object.assign(record, { last_updated_by: call.caller.row.id, last_updated_time: call.world.now() })
    return undefined
  },
  onDelete(record, call) {
    if (call.world.faults.switches.deleteSolution === 'trash-first' && record.is_trashed !== true)
      throw fail.refused('Not in trash')
    removeDeep(call, record)
  },
  operations: {
    'PUT submit_for_approval': move('Approval Pending', ['UnApproved', 'Rejected']),
    'PUT approve': move('Approved', ['Approval Pending']),
    'PUT reject': move('Rejected', ['Approval Pending']),
    'PUT publish': move('Published', ['Approved']),
    'PUT like': count('likes'),
    'PUT dislike': count('dislikes'),
    ...trashOperations,
    'DELETE move_to_trash'(call) {
      trash(recordOf(call), call)
      return done('Moved to trash')
    },
    ...uploadOperations,
  },
  collectionOperations: uploadCollectionOperations,
}

const topics: Module = {
  path: 'topics',
  table: 'topics',
  root: 'topic',
  scopes: ['solutions'],
  verbs: allVerbs,
  forRequesters: readVerbs,
  fields: {
    id,
    name: text({ mandatory: true }),
    parent_topic: ref('topics'),
    owner: user(),
    solution_count: integer({
      readOnly: true,
      compute: (row, call) => rowsOf(call.portal, 'solutions').filter(one => one.topic === row.id).length,
    }),
  },
  referenceFields: ['id', 'name'],
  defaultSort: { field: 'name', order: 'asc' },
  onDelete(record, call) {
    if (rowsOf(call.portal, 'solutions').some(one => one.topic === record.id))
      throw fail.inUse('The topic has solutions')
    removeDeep(call, record)
  },
}

export const solutionModules: Module[] = [solutionModule, topics]
