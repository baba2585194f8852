import type { Call } from '../api/call.ts'
import { fail } from '../api/failure.ts'
import { childrenOf, rowById, type StoredRecord } from '../state.ts'
import {
  allVerbs,
  anything,
  files,
  flag,
  html,
  id,
  type Module,
  readVerbs,
  ref,
  text,
  texts,
  time,
  user,
} from './module.ts'

/** Everything said on a ticket in one list: notes, mails both ways, approval comments (docs/sdp-api.md 7.5). */
function entriesOf(call: Call): StoredRecord[] {
  const parent = call.trail.at(-1)?.record.id ?? ''
  const from = (table: string, type: (row: StoredRecord) => unknown) =>
    childrenOf(call.portal, table, parent).map(row => ({ ...row, type: type(row) }))
  const { caller } = call
  const notes = from('request_notes', () => 'NOTES').filter(
    note => caller.isTechnician || (note as StoredRecord).show_to_requester === true,
  )
  return [...notes, ...from('notifications', row => row.type), ...from('approval_comments', () => 'ApprovalComments')]
}

export const conversations: Module = {
  path: 'conversations',
  table: 'conversations',
  root: 'conversation',
  verbs: ['list'],
  forRequesters: ['list'],
  fields: {
    id,
    type: text({ readOnly: true }),
    created_time: time({ readOnly: true }),
    created_by: user({ readOnly: true }),
    show_to_requester: flag({ readOnly: true }),
    subject: text({ readOnly: true }),
    has_attachments: flag({
      readOnly: true,
      compute: row => ((row.attachments as string[] | undefined) ?? []).length > 0,
    }),
  },
  defaultSort: { field: 'created_time', order: 'desc' },
  rows: entriesOf,
}

const address = /^[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+$/

function checkAddresses(sent: Record<string, unknown>): void {
  for (const key of ['to', 'cc', 'bcc']) {
    const given = (sent[key] as string[] | null | undefined) ?? []
    if (!given.every(one => address.test(one))) throw fail.unparsableValue(key)
  }
}

const mailFields: Module['fields'] = {
  id,
  subject: text({ mandatory: true }),
  description: html({ mandatory: true }),
  to: texts({ mandatory: true }),
  cc: texts(),
  bcc: texts(),
  type: text({ oneOf: ['REQREPLY', 'REQFORWARD'], mandatory: true }),
  is_public: flag(),
  in_reply_to: anything(),
  attachments: files(),
  created_by: user({ readOnly: true }),
  created_time: time({ readOnly: true }),
  sent_by: user({ readOnly: true, compute: row => row.created_by }),
  sent_time: time({ readOnly: true, compute: row => row.created_time }),
  sender: anything({
    readOnly: true,
    compute: (row, call) => {
      const by = rowById(call.portal, 'users', row.created_by)
      return by ? { name: by.name, email_id: by.email_id } : { name: 'System', email_id: 'support@northwind.example' }
    },
  }),
  time: time({ readOnly: true, compute: row => row.created_time }),
}

/**
 * Mails of a ticket. Adding one really "sends" it: the desk then counts as having responded, and the answer waits no
 * more. Addresses are plain texts (docs/sdp-api.md 7.5).
 */
export const notifications: Module = {
  path: 'notifications',
  table: 'notifications',
  root: 'notification',
  verbs: ['list', 'get', 'add'],
  forRequesters: ['list', 'get'],
  fields: mailFields,
  defaultSort: { field: 'created_time', order: 'desc' },
  beforeSave({ sent }, call) {
    if (call.world.faults.switches.repliesRefused) throw fail.notAllowed()
    checkAddresses(sent)
    return undefined
  },
  afterSave({ record }, call) {
    const parent = rowById(call.portal, String(record.parentTable), record.parent)
    if (!parent) return
    parent.responded_time ??= call.world.now()
    Object.assign(parent, { unreplied_count: 0, last_updated_time: call.world.now() })
  },
}

/** Answers written but not sent. */
export const drafts: Module = {
  path: 'drafts',
  table: 'drafts',
  root: 'draft',
  verbs: allVerbs,
  fields: mailFields,
  beforeSave({ sent }) {
    checkAddresses(sent)
    return undefined
  },
}

/** What changed on a record, when and by whom (docs/sdp-api.md 7.1). */
export const history: Module = {
  path: 'history',
  aliases: ['_history'],
  table: 'history',
  root: 'history',
  verbs: readVerbs,
  fields: {
    id,
    operation: text(),
    time: time(),
    by: user(),
    comments: text(),
    diff: anything(),
    record: ref('requests', { writeOnly: true }),
  },
  defaultSort: { field: 'time', order: 'desc' },
}
