import { cut } from '../cut.ts'
import { at, type Json, name, text } from '../sdp/json.ts'
import { plain } from '../sdp/similar.ts'
import { htmlToMarkdown } from './markdown.ts'
import { plainValue } from './request-view.ts'

/** One field after a write. `note` is there when the site did not do what was asked. */
export type Change = { field: string; before?: unknown; asked: string | null; actual?: unknown; note?: string }

/**
 * Compares what was asked with what the record holds after the write, field by field: rules of the site may have
 * changed or dropped a value, and the person must hear of it.
 */
export function diff(
  asked: Record<string, string | null>,
  before: Json | undefined,
  after: Json,
  zone: string,
): Change[] {
  return Object.entries(asked).map(([field, wanted]) => {
    const actual = shown(at(after, field), zone)
    const previous = before && shown(at(before, field), zone)
    const took = wanted === null ? actual === undefined : sameText(wanted, actual)
    const isKnown = field in after || at(after, field) !== undefined || wanted === null
    return {
      field: field.replace(/^udf_fields\./, ''),
      before: sameText(String(previous ?? ''), actual) ? undefined : short(previous),
      asked: short(wanted) as string | null,
      actual: short(actual) ?? 'empty',
      note: took
        ? undefined
        : isKnown
          ? 'not as asked: a rule of the site or a permission decided otherwise'
          : 'the answer does not show this field',
    }
  })
}

/** Fields that changed although nobody asked: what business rules did. */
export function sideEffects(
  fields: string[],
  asked: Record<string, unknown>,
  before: Json,
  after: Json,
  zone: string,
): Change[] {
  return fields
    .filter(
      field =>
        !(field in asked) && JSON.stringify(shown(before[field], zone)) !== JSON.stringify(shown(after[field], zone)),
    )
    .map(field => ({
      field,
      before: shown(before[field], zone) ?? 'empty',
      asked: null,
      actual: shown(after[field], zone) ?? 'empty',
      note: 'changed by the site',
    }))
}

function shown(value: unknown, zone: string): unknown {
  if (value === null || value === undefined || value === '') return undefined
  if (typeof value === 'string') return htmlToMarkdown(value) || undefined
  return plainValue(value, zone)
}

function sameText(wanted: string, actual: unknown): boolean {
  if (actual === undefined) return plain(wanted) === ''
  const found = typeof actual === 'object' ? JSON.stringify(actual) : String(actual)
  return plain(htmlToMarkdown(wanted)) === plain(found) || plain(wanted) === plain(found)
}

function short(value: unknown): unknown {
  return typeof value === 'string' && value.length > 120 ? `${cut(value, 120)}…` : value
}

/** `{before} -> {after}` in one place for a record's name or id. */
export function label(value: unknown): string | undefined {
  return name(value) ?? text(value)
}
