import { fail } from '../api/failure.ts'
import { insert, nextId, rowById, rowsOf } from '../state.ts'
import { allVerbs, anything, files, flag, html, id, type Module, ref, time, user } from './module.ts'

const written = {
  created_by: user({ readOnly: true }),
  added_by: user({ readOnly: true, compute: row => row.created_by }),
  created_time: time({ readOnly: true }),
  added_time: time({ readOnly: true, compute: row => row.created_time }),
  last_updated_by: user({ readOnly: true }),
  last_updated_time: time({ readOnly: true }),
}

/**
 * Notes of a request: written under `request_note`, read as `note` and `notes` (docs/sdp-api.md 7.3).
 * `mark_first_response` is taken only while nobody responded yet.
 */
export const requestNotes: Module = {
  path: 'notes',
  table: 'request_notes',
  root: 'request_note',
  readRoot: 'note',
  listKey: 'notes',
  verbs: allVerbs,
  forRequesters: ['list', 'get', 'add'],
  fields: {
    id,
    description: html({ mandatory: true }),
    show_to_requester: flag(),
    notify_technician: flag(),
    mark_first_response: flag({ addOnly: true, writeOnly: true }),
    add_to_linked_requests: flag({ addOnly: true, writeOnly: true }),
    attachments: files(),
    ...written,
    request: ref('requests', { readOnly: true, compute: row => row.parent }),
  },
  defaultSort: { field: 'created_time', order: 'desc' },
  isVisible: (note, { caller }) =>
    caller.isTechnician || note.show_to_requester === true || note.created_by === caller.row.id,
  defaults: () => ({ show_to_requester: false, notify_technician: false }),
  beforeSave({ record, before, sent }, call) {
    const request = rowById(call.portal, 'requests', record.parent)
    if (sent.mark_first_response === true && request?.responded_time) throw fail.cannotGive('mark_first_response')
    if (before) Object.assign(record, { last_updated_by: call.caller.row.id, last_updated_time: call.world.now() })
    return undefined
  },
  afterSave({ record, before, sent }, call) {
    const request = rowById(call.portal, 'requests', record.parent)
    if (!request || before) return
    request.last_updated_time = call.world.now()
    if (sent.mark_first_response === true) request.responded_time = call.world.now()
    if (sent.add_to_linked_requests !== true) return
    const links = rowsOf(call.portal, 'request_links').filter(link => link.parent === request.id)
    for (const link of links) {
      const copy = { ...record, id: nextId(call.portal), parent: String(link.linked_request) }
      insert(call.portal, 'request_notes', copy)
    }
  },
}

/** Notes of problems, changes, releases and purchase orders: root `note`, no requester to show them to (8, 9, 15). */
export function notesOf(table: string, parentTable: string, parentKey: string): Module {
  return {
    path: 'notes',
    table,
    root: 'note',
    listKey: 'notes',
    verbs: allVerbs,
    fields: {
      id,
      description: html({ mandatory: true }),
      notify_to: anything({ writeOnly: true }),
      attachments: files(),
      ...written,
      performed_by: user({ readOnly: true, compute: row => row.created_by }),
      performed_time: time({ readOnly: true, compute: row => row.created_time }),
      [parentKey]: ref(parentTable, { readOnly: true, compute: row => row.parent }),
    },
    defaultSort: { field: 'created_time', order: 'desc' },
    beforeSave({ record, before }, call) {
      if (before) Object.assign(record, { last_updated_by: call.caller.row.id, last_updated_time: call.world.now() })
      return undefined
    },
  }
}
