import type { Call, Reply } from '../api/call.ts'
import { done } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { recordOf } from '../api/verbs.ts'
import { uploadCollectionOperations, uploadOperations } from '../operations/uploads.ts'
import {
  allVerbs,
  files,
  flag,
  html,
  id,
  integer,
  type Module,
  readVerbs,
  refs,
  text,
  texts,
  time,
  user,
} from './module.ts'

function follow(follows: boolean) {
  return (call: Call): Reply => {
    const record = recordOf(call)
    const others = ((record.followers as string[] | undefined) ?? []).filter(one => one !== call.caller.row.id)
    record.followers = follows ? [...others, call.caller.row.id] : others
    call.world.changed()
    return done()
  }
}

/** Announcements (docs/sdp-api.md 16). Requesters see published ones. */
export const announcements: Module = {
  path: 'announcements',
  table: 'announcements',
  root: 'announcement',
  scopes: ['general', 'setup'],
  verbs: allVerbs,
  forRequesters: readVerbs,
  requesterOperations: ['follow', 'unfollow'],
  fields: {
    id,
    title: text({ mandatory: true }),
    description: html({ mandatory: true }),
    from_date: time({ mandatory: true }),
    to_date: time(),
    state: text({ mandatory: true, oneOf: ['Draft', 'Published', 'Scheduled', 'Expired'] }),
    isbannerenabled: flag(),
    banner_style: text({ oneOf: ['info', 'warning', 'critical'] }),
    show_banner_until_expiry: flag(),
    user_groups: refs('user_groups'),
    to: texts(),
    is_public: flag(),
    attachments: files(),
    comments_count: integer({ readOnly: true, compute: () => 0 }),
    created_date: time({ readOnly: true, compute: row => row.created_time }),
    created_by: user({ readOnly: true }),
    followers: refs('users', { readOnly: true }),
  },
  listFields: [
    'id',
    'title',
    'state',
    'from_date',
    'to_date',
    'isbannerenabled',
    'banner_style',
    'is_public',
    'created_by',
    'created_date',
  ],
  defaultSort: { field: 'from_date', order: 'desc' },
  isVisible: (row, call) => call.caller.isTechnician || row.state === 'Published',
  beforeSave({ record }) {
    if (record.to_date != null && Number(record.from_date) > Number(record.to_date))
      throw fail.timeMismatch(['from_date', 'to_date'])
    return undefined
  },
  operations: { 'PUT follow': follow(true), 'PUT unfollow': follow(false), ...uploadOperations },
  collectionOperations: uploadCollectionOperations,
}
