import type { Field, Fields } from '../modules/module.ts'
import { rowById, rowsOf, type StoredRecord } from '../state.ts'
import type { Call } from './call.ts'
import { fail } from './failure.ts'
import { parseId, resolveReference, showReference } from './references.ts'

/** How one type of field is read from the wire and shown on it (docs/sdp-api.md 5). */
interface Codec {
  /** From `input_data` to the stored form; throws an ApiFailure. Never called with null. */
  parse(value: unknown, field: Field, path: string, call: Call): unknown
  /** From the stored form to JSON. Never called with null. */
  show(value: unknown, field: Field, call: Call): unknown
}

const same = (value: unknown) => value

function parseText(value: unknown, field: Field, path: string): string {
  if (typeof value !== 'string' && typeof value !== 'number') throw fail.wrongType(path)
  const given = String(value).trim()
  if (field.type === 'text' && /[\r\n]/.test(given)) throw fail.unparsableValue(path)
  if (field.maxLength !== undefined && given.length > field.maxLength) throw fail.tooLong(path, field.maxLength)
  if (!field.oneOf) return given
  const known = field.oneOf.find(allowed => allowed.toLowerCase() === given.toLowerCase())
  if (known === undefined) throw fail.unknownValue(path)
  return known
}

function parseFlag(value: unknown, path: string): boolean {
  if (value === true || value === 'true') return true
  if (value === false || value === 'false') return false
  throw fail.wrongType(path)
}

function parseNumber(value: unknown, field: Field, path: string): number {
  const isText = typeof value === 'string' && value.trim() !== ''
  const number = typeof value === 'number' ? value : isText ? Number(value) : Number.NaN
  if (!Number.isFinite(number)) throw fail.wrongType(path)
  if (field.type === 'integer' && !Number.isInteger(number)) throw fail.wrongType(path)
  if (field.minimum !== undefined && number < field.minimum) throw fail.unknownValue(path)
  if (field.maximum !== undefined && number > field.maximum) throw fail.unknownValue(path)
  return number
}

/** `{"value": ...}` and nothing else than a `display_value` beside it; a bare ISO text is "Unable to parse JSON". */
function parseValueObject(value: unknown, path: string): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail.unparsableJson(path)
  for (const key of Object.keys(value)) if (key !== 'value' && key !== 'display_value') throw fail.extraKey(key)
  return (value as { value?: unknown }).value
}

function parseList(value: unknown, field: Field, path: string): unknown[] {
  if (!Array.isArray(value)) throw fail.wrongType(path)
  if (field.maxItems !== undefined && value.length > field.maxItems)
    throw fail.unknownValue(path, `At most ${field.maxItems} ${path}`)
  return value
}

const day = new Intl.DateTimeFormat('en-US', { month: 'short', day: '2-digit', year: 'numeric', timeZone: 'UTC' })
const clock = new Intl.DateTimeFormat('en-US', { hour: '2-digit', minute: '2-digit', timeZone: 'UTC' })

/** "Jun 24, 2020 03:05 PM", in UTC. */
export function displayTime(ms: number): string {
  return `${day.format(ms)} ${clock.format(ms).replace('\u202f', ' ')}`
}

const plain: Codec = { parse: parseText, show: same }
const numeric: Codec = { parse: parseNumber, show: same }

const codecs: Record<Field['type'], Codec> = {
  id: { parse: (value, _field, path) => parseId(value, path), show: same },
  text: plain,
  html: plain,
  flag: { parse: (value, _field, path) => parseFlag(value, path), show: same },
  integer: numeric,
  decimal: numeric,
  time: {
    parse(value, _field, path) {
      const ms = parseValueObject(value, path)
      if (ms == null || ms === '') return null
      if (!/^-?\d{1,15}$/.test(String(ms))) throw fail.unparsableValue(path)
      return Number(ms)
    },
    show: value => ({ display_value: displayTime(Number(value)), value: String(value) }),
  },
  datestamp: {
    parse(value, _field, path) {
      const day = parseValueObject(value, path)
      if (typeof day !== 'string' || !/^\d{4}-\d{2}-\d{2}$/.test(day) || Number.isNaN(Date.parse(day)))
        throw fail.unparsableValue(path)
      return day
    },
    show: value => ({ display_value: String(value), value }),
  },
  ref: {
    parse: resolveReference,
    show: (value, field, call) => showReference(field, value, call),
  },
  refs: {
    parse: (value, field, path, call) => [
      ...new Set(parseList(value, field, path).map(element => parseElement(element, field, path, call))),
    ],
    show: (value, field, call) => (value as unknown[]).flatMap(id => showReference(field, id, call) ?? []),
  },
  texts: {
    parse: (value, field, path) =>
      parseList(value, field, path).map(element => {
        if (typeof element !== 'string') throw fail.wrongType(path)
        return element.trim()
      }),
    show: same,
  },
  money: {
    parse(value, _field, path) {
      const amount = Number(parseValueObject(value, path))
      if (!Number.isFinite(amount) || amount < 0) throw fail.wrongType(path)
      return amount
    },
    show: value => ({ display_value: `$ ${Number(value).toFixed(2)}`, value: Number(value).toFixed(2) }),
  },
  duration: {
    parse(value, _field, path) {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail.unparsableJson(path)
      const { hours, minutes, value: ms, ...others } = value as Record<string, unknown>
      for (const key of Object.keys(others)) if (key !== 'display_value') throw fail.extraKey(key)
      const parts = [hours ?? 0, minutes ?? 0].map(part => parseNumber(part, { type: 'integer', minimum: 0 }, path))
      if (hours == null && minutes == null && ms != null) return parseNumber(ms, { type: 'integer', minimum: 0 }, path)
      return ((parts[0] ?? 0) * 60 + (parts[1] ?? 0)) * 60_000
    },
    show(value) {
      const minutes = Math.round(Number(value) / 60_000)
      return { hours: String(Math.floor(minutes / 60)), minutes: String(minutes % 60), value: String(value) }
    },
  },
  group: {
    parse: (value, field, path, call) => {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail.unparsableJson(path)
      return parseFields(value as Record<string, unknown>, field.fields ?? {}, call, `${path}.`)
    },
    show: (value, field, call) => showFields(value as Record<string, unknown>, field.fields ?? {}, call),
  },
  files: {
    parse: (value, field, path, call) =>
      parseList(value, field, path).map(element => {
        if (typeof element !== 'object' || element === null) throw fail.extraArrayValue(path)
        const { file_id, id, ...others } = element as Record<string, unknown>
        for (const key of Object.keys(others)) throw fail.extraKey(key)
        const file = rowById(call.portal, 'attachments', parseId(file_id ?? id, 'file_id'))
        if (!file) throw fail.unknownValue('file_id')
        return file.id
      }),
    show: (value, _field, call) =>
      (value as string[]).flatMap(id => {
        const file = rowById(call.portal, 'attachments', id)
        return file ? [showFile(file, call)] : []
      }),
  },
  rows: {
    parse: (value, field, path, call) =>
      parseList(value, field, path).map(element => {
        if (typeof element !== 'object' || element === null || Array.isArray(element)) throw fail.extraArrayValue(path)
        const row = parseFields(element as Record<string, unknown>, field.fields ?? {}, call, `${path}.`)
        const missing = Object.entries(field.fields ?? {}).flatMap(([key, { mandatory }]) =>
          mandatory && row[key] == null ? `${path}.${key}` : [],
        )
        if (missing.length > 0) throw fail.mandatory(missing)
        return row
      }),
    show: (value, field, call) =>
      (value as Record<string, unknown>[]).map(row => showFields(row, field.fields ?? {}, call)),
  },
  udf: {
    parse: parseUdfFields,
    show: (value, _field, call) =>
      Object.fromEntries(
        udfDefinitions(call).map(row => {
          const stored = (value as Record<string, unknown>)[String(row.field_key)]
          return [String(row.field_key), showValue(stored, udfField(row), call)]
        }),
      ),
  },
  any: { parse: same, show: same },
}

function parseElement(element: unknown, field: Field, path: string, call: Call): string {
  if (typeof element !== 'object' || element === null) throw fail.extraArrayValue(path)
  return resolveReference(element, field, path, call)
}

/** An attachment as every record lists it (19). */
export function showFile(file: StoredRecord, call: Call): Record<string, unknown> {
  const by = rowById(call.portal, 'users', file.attached_by)
  return {
    id: file.id,
    file_id: file.id,
    name: file.name,
    content_type: file.content_type,
    size: { value: String(file.bytes), display_value: `${Math.max(1, Math.round(Number(file.bytes) / 1024))} KB` },
    content_url: `/app/${call.portal.name}/api/v3/attachments/${file.id}/_download`,
    attached_by: by ? { id: by.id, name: by.name, email_id: by.email_id } : null,
    attached_on: { display_value: displayTime(Number(file.attached_on)), value: String(file.attached_on) },
  }
}

const udfTypes: Record<string, Field['type']> = {
  string: 'text',
  multi_select: 'texts',
  datetime: 'time',
  datestamp: 'datestamp',
  long: 'integer',
  double: 'decimal',
  boolean: 'flag',
  refered_field: 'ref',
}

/** The additional fields of the call's module, from the portal's `udf_fields` rows. */
export function udfDefinitions(call: Call): StoredRecord[] {
  return rowsOf(call.portal, 'udf_fields').filter(
    row => (row.module as { name?: string } | undefined)?.name === call.module.entity,
  )
}

export function udfField(row: StoredRecord): Field {
  const allowed = row.allowed_values as { value: string }[] | undefined
  const field: Field = { type: udfTypes[String(row.type)] ?? 'text', label: String(row.name) }
  if (field.type === 'text') field.maxLength = 250
  if (allowed?.length && field.type === 'text') field.oneOf = allowed.map(one => one.value)
  if (field.type === 'ref') field.to = String(row.reference_table)
  return field
}

function parseUdfFields(value: unknown, _field: Field, path: string, call: Call): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail.unparsableJson(path)
  const fields = Object.fromEntries(udfDefinitions(call).map(row => [String(row.field_key), udfField(row)]))
  return parseFields(value as Record<string, unknown>, fields, call, `${path}.`)
}

/** Checks one value; null stays null and clears the field. */
export function parseValue(value: unknown, field: Field, path: string, call: Call): unknown {
  return value === null ? null : codecs[field.type].parse(value, field, path, call)
}

/**
 * Checks every given key against a table of fields.
 * @throws ApiFailure EXTRA_KEY for an unknown key, 4014 for a read-only one, 4001 or 4021 for a bad value
 */
export function parseFields(
  given: Record<string, unknown>,
  fields: Fields,
  call: Call,
  prefix = '',
): Record<string, unknown> {
  const parsed: Record<string, unknown> = {}
  for (const [key, value] of Object.entries(given)) {
    const field = Object.hasOwn(fields, key) ? fields[key] : undefined
    if (!field) throw fail.extraKey(prefix + key)
    if (field.readOnly) throw fail.readOnly(prefix + key)
    parsed[key] = parseValue(value, field, prefix + key, call)
  }
  return parsed
}

/** Fields that are an empty list when unset. */
const listTypes: Field['type'][] = ['refs', 'files', 'texts', 'rows']

export function showValue(value: unknown, field: Field, call: Call): unknown {
  if (value == null) return listTypes.includes(field.type) ? [] : null
  return codecs[field.type].show(value, field, call)
}

/** The stored form of a field, worked out where it is computed. */
export function storedValue(record: Record<string, unknown>, key: string, field: Field, call: Call): unknown {
  return field.compute ? field.compute(record as StoredRecord, call) : record[key]
}

/** A record or group as JSON; `keys` limits it to those. */
export function showFields(
  record: Record<string, unknown>,
  fields: Fields,
  call: Call,
  keys: readonly string[] = Object.keys(fields),
): Record<string, unknown> {
  const shown: Record<string, unknown> = {}
  for (const key of keys) {
    const field = fields[key]
    if (!field || field.writeOnly) continue
    const stored = field.type === 'udf' ? (record[key] ?? {}) : storedValue(record, key, field, call)
    shown[key] = showValue(stored, field, call)
  }
  return shown
}
