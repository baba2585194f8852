import { Cache } from './cache.ts'
import type { Sdp, SdpPage } from './client.ts'
import { isSdpError, SdpError } from './errors.ts'
import { instant, isObject, type Json, rows, text } from './json.ts'
import { type Condition, criteria, type ListInfo } from './list-info.ts'
import { path } from './path.ts'
import type { Records } from './records.ts'
import { alike, settled } from './settle.ts'

/** Typed calls on requests (docs/sdp-api.md 7). */
export interface Requests {
  /**
   * The long id of what a person calls a ticket: long id, display number, `#123`, `RE-123` or portal address.
   * @throws SdpError `invalid-value` when it is none of these, `not-found` when no such ticket is visible
   */
  id(sdp: Sdp, reference: string): Promise<string>
  ids(sdp: Sdp, references: string[]): Promise<string[]>
  get(sdp: Sdp, id: string): Promise<Json>
  list(sdp: Sdp, info: ListInfo): Promise<SdpPage>
  /** How many tickets fit; one call that brings no rows worth mentioning. */
  count(sdp: Sdp, condition: Condition | undefined): Promise<number>
  create(sdp: Sdp, request: Json): Promise<Json>
  update(sdp: Sdp, id: string, request: Json): Promise<Json>
  /** Edits, and tells the ticket after it: see Records.change. */
  change(sdp: Sdp, id: string, request: Json): Promise<Json>
  notes(sdp: Sdp, id: string): Promise<Json[]>
  note(sdp: Sdp, id: string, noteId: string): Promise<Json>
  /** One mail with its text. A mail never changes, so each is read once an hour at most. */
  mail(sdp: Sdp, id: string, mailId: string): Promise<Json>
  addNote(sdp: Sdp, id: string, note: Json): Promise<Json>
  /** Names of what this person may do on the ticket; undefined where the site does not tell. */
  links(sdp: Sdp, id: string): Promise<Link[] | undefined>
}

const mailMaxAgeMs = 3_600_000
/** How far the site's clock may be behind ours. */
const clockSkewMs = 30_000
/** Longer ones would fill the memory. */
const longestKeptMail = 50_000

export function createRequests(records: Records, options: { now: () => number }): Requests {
  const mails = new Cache<Json>({ size: 200, maxAgeMs: mailMaxAgeMs, now: options.now })
  let noteRoot: 'request_note' | 'note' = 'request_note'

  return {
    id: (sdp, reference) => records.id(sdp, 'request', reference),
    ids: (sdp, references) => records.ids(sdp, 'request', references),
    get: (sdp, id) => records.get(sdp, 'request', id),
    list: (sdp, info) => records.list(sdp, 'request', info),
    async count(sdp, condition) {
      const page = await sdp.list(path`/requests`, {
        row_count: 1,
        start_index: 1,
        get_total_count: true,
        search_criteria: criteria(condition),
        fields_required: ['id'],
      })
      return page.total ?? page.rows.length
    },
    create: (sdp, request) => records.create(sdp, 'request', request),
    update: (sdp, id, request) => records.update(sdp, 'request', id, request),
    change: (sdp, id, request) => records.change(sdp, 'request', id, request),
    notes: notesOf,
    async note(sdp, id, noteId) {
      return entity(await sdp.get(path`/requests/${id}/notes/${noteId}`), 'note', 'request_note')
    },
    async mail(sdp, id, mailId) {
      const key = `${id} ${mailId}`
      const known = mails.get(key)
      if (known) return known
      const body = await sdp.get(path`/requests/${id}/notifications/${mailId}`)
      const mail = isObject(body.notification) ? body.notification : {}
      return (text(mail.description)?.length ?? 0) > longestKeptMail ? mail : mails.set(key, mail)
    },
    // `request_note` on Cloud, `note` elsewhere; a refused root changes nothing (docs/sdp-api.md 7.3)
    async addNote(sdp, id, note) {
      const post = (root: string) => sdp.post(path`/requests/${id}/notes`, { [root]: note })
      const other = noteRoot === 'note' ? 'request_note' : 'note'
      const startedAt = options.now()
      const add = async () => entity(await post(noteRoot), 'request_note', 'note')
      const look = async () =>
        (await notesOf(sdp, id)).find(
          row =>
            alike(row.description, note.description) &&
            (instant(row.created_time) ?? instant(row.added_time) ?? startedAt) >= startedAt - clockSkewMs,
        )
      try {
        return await settled(add, look)
      } catch (error) {
        if (!isSdpError(error, 'invalid-value') || !error.fields.includes(noteRoot)) throw error
        const body = await post(other)
        noteRoot = other
        return entity(body, 'request_note', 'note')
      }
    },
    async links(sdp, id) {
      try {
        return linksIn(await sdp.get(path`/requests/${id}/_links`))
      } catch (error) {
        if (isSdpError(error, 'not-found', 'missing-scope', 'denied', 'drift', 'invalid-value')) return undefined
        throw error
      }
    },
  }
}

async function notesOf(sdp: Sdp, id: string): Promise<Json[]> {
  return (await sdp.list(path`/requests/${id}/notes`, { row_count: 100, start_index: 1 })).rows
}

/** The record under the first of the given roots. @throws SdpError `drift` when the answer has none of them */
export function entity(body: Json, ...roots: string[]): Json {
  const found = roots.map(root => body[root]).find(isObject)
  if (!found) {
    throw new SdpError('drift', `The answer holds no "${roots[0]}".`, {
      nextStep: 'Read the record again to see its state.',
    })
  }
  return found
}

export type Link = { name: string; method: string; lockedFields: string[] }

/** The list stands under `_links`, `links` or both, depending on the site. */
export function linksIn(body: Json): Link[] | undefined {
  const { response_status: _, ...rest } = body
  const listed = [rest, ...Object.values(rest)].flatMap(part => {
    if (Array.isArray(part)) return [part]
    return isObject(part) ? Object.values(part).filter(Array.isArray) : []
  })
  if (listed.length === 0) return undefined
  return rows(listed[0]).map(row => ({
    name: text(row.name) ?? '',
    method: (text(row.method) ?? '').toUpperCase(),
    lockedFields: Array.isArray(row.non_editable_fields) ? row.non_editable_fields.map(String) : [],
  }))
}
