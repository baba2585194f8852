import { isSdpError } from '../sdp/errors.ts'
import { at, type Json, text } from '../sdp/json.ts'
import { child, type SdpPath } from '../sdp/path.ts'
import type { ToolCall } from './define.ts'
import { strangersHtml, strangersLine } from './markdown.ts'
import { plainValue } from './request-view.ts'
import { attachments } from './rows.ts'

/** Keys that say nothing to a reader. */
const technical = new Set([
  ...['id', 'display_id', 'title', 'name', 'description', 'attachments', 'udf_fields', 'template', 'workflow', 'roles'],
  ...[
    'is_trashed',
    'has_attachments',
    'notes_present',
    'deleted_time',
    'deleted_by',
    'lookup_info',
    'comment',
    'short_description',
  ],
])

/** A row of a list: the named fields under their own names, as a person reads them. */
export function row(fields: string[]): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({
    number: text(raw.display_id),
    id: text(raw.id),
    ...Object.fromEntries(fields.map(field => [field, shownValue(raw[field], zone)])),
  })
}

/** A whole record: fields without meaning left out, long texts as Markdown and marked. */
export function detail(raw: Json, zone: string): Json {
  const others = Object.entries(raw)
    .filter(([key, value]) => !technical.has(key) && value !== null && value !== false && value !== '0')
    .map(([key, value]) => [key, grouped(key, value) ?? plainValue(value, zone)])
  return {
    number: text(raw.display_id),
    id: text(raw.id),
    title: strangersLine(raw.title ?? raw.name),
    ...Object.fromEntries(others),
    description: strangersHtml(raw.description),
    custom: raw.udf_fields === undefined ? undefined : plainValue(raw.udf_fields, zone),
    attachments: attachments(raw),
  }
}

/** `root_cause {root_cause_description, ...}` is its text (docs/sdp-api.md 8, 9). */
function grouped(key: string, value: unknown): string | undefined {
  return strangersHtml(at(value, `${key}_description`))
}

function shownValue(value: unknown, zone: string): unknown {
  return value === false || value === null ? undefined : plainValue(value, zone)
}

/** A list below a record; what the site refuses is told, not thrown, so that the rest is shown. */
export async function below(
  call: ToolCall,
  parent: SdpPath,
  segment: string,
  show: (raw: Json, zone: string) => Json,
): Promise<unknown> {
  try {
    const zone = await call.zone()
    const page = await call.sdp.list(child(parent, segment), { row_count: 50, start_index: 1 })
    return page.rows.length > 0 ? page.rows.map(raw => show(raw, zone)) : 'none'
  } catch (error) {
    return unavailable(error)
  }
}

/** @throws the error itself when it is about more than this part */
export function unavailable(error: unknown): string {
  if (!isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) throw error
  return `not available: ${error.message}`
}
