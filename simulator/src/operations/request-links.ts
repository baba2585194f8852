import type { Call, Reply } from '../api/call.ts'
import { done } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { parseFields } from '../api/fields.ts'
import { inViewScope } from '../api/permissions.ts'
import { parseId, showReference } from '../api/references.ts'
import { recordOf, removeDeep, rootInput } from '../api/verbs.ts'
import { type Operations, ref, text } from '../modules/module.ts'
import { childrenOf, insert, nextId, remove, rowById, rowsOf, type StoredRecord } from '../state.ts'
import { recordHistory } from './history.ts'
import { refuseInput } from './refuse-input.ts'

const linked = ref('requests')

function listOf(call: Call, root: string): Record<string, unknown>[] {
  for (const key of Object.keys(call.input ?? {})) if (key !== root) throw fail.extraKey(key)
  const list = call.input?.[root]
  if (list === undefined) throw fail.mandatory([root])
  if (!Array.isArray(list)) throw fail.unparsableJson(root)
  if (list.length === 0) throw fail.mandatory([root])
  return list.map(element => {
    if (typeof element !== 'object' || element === null) throw fail.extraArrayValue(root)
    return element as Record<string, unknown>
  })
}

/** Another ticket that exists, that the caller sees, and that is not the ticket itself. */
function otherRequest(call: Call, id: string, field: string): StoredRecord {
  const other = rowById(call.portal, 'requests', id)
  if (!other || other.id === recordOf(call).id || other.is_trashed === true || !inViewScope(other, call))
    throw fail.unknownValue(field)
  return other
}

function linkedOnes(call: Call): { id: string; comments: unknown }[] {
  return listOf(call, 'link_requests').map(given => {
    const link = parseFields(given, { linked_request: linked, comments: text() }, call)
    if (link.linked_request == null) throw fail.mandatory(['linked_request'])
    return { id: otherRequest(call, String(link.linked_request), 'linked_request').id, comments: link.comments ?? null }
  })
}

function linkBetween(call: Call, id: string): StoredRecord | undefined {
  return childrenOf(call.portal, 'request_links', recordOf(call).id).find(link => link.linked_request === id)
}

/** `_link_requests` in its three methods; GET refuses any input (docs/sdp-api.md 7.1, 18.15). */
function link(call: Call): Reply {
  for (const { id, comments } of linkedOnes(call)) {
    if (linkBetween(call, id)) throw fail.notUnique('linked_request')
    const row = { id: nextId(call.portal), parent: recordOf(call).id, linked_request: id, comments }
    insert(call.portal, 'request_links', row)
    recordHistory(call, recordOf(call), undefined, 'LINK')
  }
  call.world.changed()
  return done('Request(s) linked successfully')
}

function unlink(call: Call): Reply {
  const links = linkedOnes(call).map(({ id }) => linkBetween(call, id))
  for (const row of links) {
    if (!row) throw fail.unknownValue('linked_request')
    remove(call.portal, 'request_links', row.id)
  }
  call.world.changed()
  return done('Request(s) unlinked successfully')
}

function links(call: Call): Reply {
  refuseInput(call)
  const shown = childrenOf(call.portal, 'request_links', recordOf(call).id).map(row => ({
    linked_request: showReference(linked, row.linked_request, call),
    comments: row.comments,
  }))
  return {
    status: 200,
    body: { link_requests: shown, response_status: [{ status_code: 2000, status: 'success' }] },
  }
}

const movedTables = ['request_notes', 'notifications', 'worklogs', 'tasks', 'checklists', 'approval_levels', 'history']

/** `_merge_requests`: the others' notes, mails and work move to this ticket, the others are gone for good (7.1). */
function merge(call: Call): Reply {
  const survivor = recordOf(call)
  const others = listOf(call, 'merge_requests').map(given => {
    const { id, ...more } = given
    for (const key of Object.keys(more)) throw fail.extraKey(key)
    return otherRequest(call, parseId(id), 'merge_requests')
  })
  for (const other of others) {
    for (const table of movedTables) {
      for (const row of childrenOf(call.portal, table, other.id)) row.parent = survivor.id
    }
    insert(call.portal, 'request_notes', {
      id: nextId(call.portal),
      parent: survivor.id,
      description: `<p>Merged: ${String(other.subject)}</p>${String(other.description ?? '')}`,
      show_to_requester: false,
      notify_technician: false,
      created_by: call.caller.row.id,
      created_time: call.world.now(),
    })
    survivor.attachments = [
      ...((survivor.attachments as string[] | undefined) ?? []),
      ...((other.attachments as string[] | undefined) ?? []),
    ]
    for (const row of rowsOf(call.portal, 'request_links')) {
      if (row.parent === other.id || row.linked_request === other.id) remove(call.portal, 'request_links', row.id)
    }
    removeDeep(call, other)
    recordHistory(call, survivor, undefined, 'MERGE')
  }
  call.world.changed()
  return done('Request(s) merged successfully')
}

interface Association {
  /** Path below the ticket and field that keeps it. */
  name: string
  root: string
  key: string
  table: string
}

const associations: Association[] = [
  { name: 'problem', root: 'request_problem_association', key: 'problem', table: 'problems' },
  { name: 'project', root: 'request_project_association', key: 'project', table: 'projects' },
  { name: 'request_initiated_change', root: 'request_initiated_change', key: 'change', table: 'changes' },
  { name: 'request_caused_by_change', root: 'request_caused_by_change', key: 'change', table: 'changes' },
]

/** Problem, project and changes of a ticket; DELETE needs the same body as POST (7.1). */
function associationOperations({ name, root, key, table }: Association): Operations {
  const target = ref(table)
  const shown = (call: Call): Reply => {
    const associated = showReference(target, recordOf(call)[name], call)
    return {
      status: 200,
      body: {
        [root]: associated ? { [key]: associated, request: { id: recordOf(call).id } } : null,
        response_status: { status_code: 2000, status: 'success' },
      },
    }
  }
  const given = (call: Call) => {
    const parsed = parseFields(rootInput(call, [root]), { [key]: target }, call)
    if (parsed[key] == null) throw fail.mandatory([key])
    return parsed[key]
  }
  return {
    [`GET ${name}`]: shown,
    [`POST ${name}`](call) {
      recordOf(call)[name] = given(call)
      call.world.changed()
      return shown(call)
    },
    [`DELETE ${name}`](call) {
      if (recordOf(call)[name] !== given(call)) throw fail.unknownValue(key)
      recordOf(call)[name] = null
      call.world.changed()
      return done()
    },
  }
}

export const linkOperations: Operations = {
  'GET link_requests': links,
  'POST link_requests': link,
  'DELETE link_requests': unlink,
  'PUT merge_requests': merge,
  ...Object.assign({}, ...associations.map(associationOperations)),
}
