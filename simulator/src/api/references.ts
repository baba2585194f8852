import type { Field } from '../modules/module.ts'
import { nextId, rowById, rowsOf, type StoredRecord } from '../state.ts'
import type { Call } from './call.ts'
import { fail } from './failure.ts'
import { moduleOfTable } from './module-index.ts'

const idPattern = /^\d{1,19}$/

/** An id as text, from a digit string or a JSON number; anything else is "Unable to parse the given data" (4.3). */
export function parseId(value: unknown, field = 'id'): string {
  if (typeof value === 'number' && Number.isInteger(value)) return String(value)
  if (typeof value === 'string' && idPattern.test(value.trim())) return value.trim()
  throw fail.unparsableValue(field)
}

/** Removed and retired rows stay in lists but cannot be chosen any more (17.2). */
export function isChoosable(row: StoredRecord): boolean {
  return row.deleted !== true && row.inactive !== true && row.is_trashed !== true
}

/** The rows a reference field offers. */
export function optionsOf(field: Field, call: Call): StoredRecord[] {
  return rowsOf(call.portal, field.to ?? '').filter(row => field.only?.(row) ?? true)
}

const keysOfEveryReference = ['id', 'name', 'email_id']

/**
 * Finds what `{"id"}`, `{"name"}` or `{"email_id"}` means; id wins, names ignore case (docs/sdp-api.md 5).
 * @throws ApiFailure 4001 for a plain value, a bad id or something that does not exist; EXTRA_KEY for other keys
 */
export function resolveReference(value: unknown, field: Field, path: string, call: Call): string {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail.unparsableJson(path)
  const given = value as Record<string, unknown>
  const readable = moduleOfTable(field.to ?? '')?.referenceFields ?? []
  for (const key of Object.keys(given)) {
    if (!keysOfEveryReference.includes(key) && !readable.includes(key) && key !== 'barcode') throw fail.extraKey(key)
  }
  const row = findRow(given, field, path, call)
  if (!row) {
    const created = createRequester(given, path, call)
    if (created) return created.id
    throw fail.unknownValue(path)
  }
  return row.id
}

function findRow(given: Record<string, unknown>, field: Field, path: string, call: Call): StoredRecord | undefined {
  if (given.id != null) {
    const row = rowById(call.portal, field.to ?? '', parseId(given.id))
    return row && isChoosable(row) && (field.only?.(row) ?? true) ? row : undefined
  }
  for (const key of ['email_id', 'name', 'barcode', 'title']) {
    const wanted = given[key]
    if (wanted == null) continue
    if (typeof wanted !== 'string') throw fail.wrongType(path)
    const text = wanted.trim().toLowerCase()
    return optionsOf(field, call).find(row => isChoosable(row) && String(row[key] ?? '').toLowerCase() === text)
  }
  throw fail.unparsableJson(path)
}

/** Sites that make users on the fly accept an unknown requester address (18.3). */
function createRequester(given: Record<string, unknown>, path: string, call: Call): StoredRecord | undefined {
  const { world, portal } = call
  const email = given.email_id
  if (path !== 'requester' || world.faults.switches.unknownRequester !== 'create' || typeof email !== 'string')
    return undefined
  const name = typeof given.name === 'string' ? given.name : (email.split('@')[0] ?? email)
  const row: StoredRecord = {
    id: nextId(portal),
    name,
    first_name: name,
    email_id: email,
    is_technician: false,
    is_vip_user: false,
    user_scope: 'internal_user',
  }
  portal.tables.users ??= {}
  portal.tables.users[row.id] = row
  return row
}

/** A reference as it is read: id, name and the extras of its kind. */
export function showReference(field: Field, id: unknown, call: Call): Record<string, unknown> | null {
  const row = rowById(call.portal, field.to ?? '', id)
  if (!row) return null
  const keys = moduleOfTable(field.to ?? '')?.referenceFields ?? ['id', 'name']
  return Object.fromEntries(keys.map(key => [key, showPart(row, key, field, call)]))
}

function showPart(row: StoredRecord, key: string, field: Field, call: Call): unknown {
  const value = row[key] ?? null
  const inner = moduleOfTable(field.to ?? '')?.fields[key]
  if (inner?.type === 'ref' && typeof value === 'string') {
    const target = rowById(call.portal, inner.to ?? '', value)
    return target ? { id: target.id, name: target.name ?? null } : null
  }
  return value
}
