import { at, flag, instant, isObject, type Json, name, setOwn, text } from '../sdp/json.ts'
import { strangersHtml, strangersLine } from './markdown.ts'
import { formatInstant } from './time.ts'

/** Fields a compact row needs. */
export const rowFields = [
  'id',
  'display_id',
  'subject',
  'status',
  'priority',
  'requester',
  'technician',
  'group',
  'created_time',
  'due_by_time',
  'is_overdue',
]

/** One ticket in a list: display names, local times, no nulls. Extra fields the caller asked for follow under their SDP names. */
export function requestRow(raw: Json, zone: string, extra: string[] = []): Json {
  const row: Json = {
    number: number(raw),
    id: text(raw.id),
    subject: strangersLine(raw.subject),
    status: nameLine(raw.status),
    priority: nameLine(raw.priority),
    requester: nameLine(raw.requester),
    technician: nameLine(raw.technician),
    group: nameLine(raw.group),
    created: time(raw.created_time, zone),
    due: time(raw.due_by_time, zone),
    overdue: flag(raw.is_overdue) === true ? true : undefined,
  }
  for (const key of extra) setOwn(row, key, plainValue(Object.hasOwn(raw, key) ? raw[key] : undefined, zone))
  return row
}

/** The name of a person or a value: a sender chooses their own, so it is cleaned like any text of a stranger. */
export function nameLine(value: unknown): string | undefined {
  return strangersLine(name(value))
}

/** What a record holds at a dotted path that somebody wrote: never what objects inherit, such as `constructor`. */
export function fieldAt(raw: Json, dotted: string): unknown {
  let current: unknown = raw
  for (const key of dotted.split('.')) {
    if (!isObject(current) || !Object.hasOwn(current, key)) return undefined
    current = current[key]
  }
  return current ?? undefined
}

/** The number on the screen, without the prefix that some sites show: it is the same in lists and single records. */
export function number(raw: Json): string | undefined {
  return text(raw.display_id)
}

export function time(value: unknown, zone: string): string | undefined {
  const ms = instant(value)
  return ms === undefined ? undefined : formatInstant(ms, zone)
}

const longestLine = 4_000

/** Any SDP value as a person reads it: names of references, local times, Markdown of HTML. */
export function plainValue(value: unknown, zone: string): unknown {
  if (Array.isArray(value)) return value.map(item => plainValue(item, zone))
  if (typeof value === 'string')
    // a long one stays whole: the budget cuts it where the rest can be asked for
    return value.length > longestLine || /<[a-z!/]/i.test(value)
      ? strangersHtml(value)
      : strangersLine(value, longestLine)
  if (typeof value !== 'object' || value === null) return value
  const object = value as Json
  if (typeof object.display_value === 'string' && /^-?\d{9,16}$/.test(String(object.value))) return time(object, zone)
  const label = text(object.name) ?? text(object.email_id) ?? text(object.title)
  if (label !== undefined) return strangersLine(label)
  if ('display_value' in object) return plainValue(object.display_value, zone)
  if ('value' in object && Object.keys(object).length === 1) return plainValue(object.value, zone)
  return Object.fromEntries(Object.entries(object).map(([key, item]) => [key, plainValue(item, zone)]))
}

/** Keys of a full record that `requestDetail` shows by name or leaves out on purpose. */
const shown = new Set([
  'id',
  'display_id',
  'display_key',
  'subject',
  'status',
  'priority',
  'requester',
  'technician',
  'group',
  'created_time',
  'due_by_time',
  'is_overdue',
  'description',
  'short_description',
  'resolution',
  'attachments',
  'udf_fields',
  'sla',
  'lifecycle',
  'editor',
  'editor_status',
  'is_read',
  'unreplied_count',
  'message_id',
  'has_attachments',
  'notification_status',
  'first_response_due_by_time',
  'responded_time',
  'time_elapsed',
  'email_ids_to_notify',
  'resources',
])

/** One ticket, without what `include` must ask for. Unknown fields of the site follow under their own names. */
export function requestDetail(raw: Json, zone: string): Json {
  const others = Object.entries(raw)
    .filter(([key, value]) => !shown.has(key) && value !== null && value !== false && value !== '0' && value !== 0)
    .map(([key, value]) => [key, plainValue(value, zone)])
  return {
    ...requestRow(raw, zone),
    requester_email: strangersLine(at(raw, 'requester.email_id')),
    vip: flag(at(raw, 'requester.is_vip_user')) || undefined,
    ...Object.fromEntries(others),
  }
}
