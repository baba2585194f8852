import type { Call } from '../api/call.ts'
import { showValue } from '../api/fields.ts'
import { insert, nextId, type StoredRecord } from '../state.ts'

const unremarkable = ['last_updated_time', 'last_updated_by', 'id', 'is_read']

/** Writes what changed into the record's history; nothing when nothing changed. */
export function recordHistory(
  call: Call,
  record: StoredRecord,
  before: StoredRecord | undefined,
  operation: string,
  comments?: string,
): void {
  const diff = before ? differences(call, before, record) : []
  if (before && diff.length === 0) return
  insert(call.portal, 'history', {
    id: nextId(call.portal),
    parent: record.id,
    operation,
    time: call.world.now(),
    by: call.caller.row.id,
    comments: comments ?? null,
    diff,
  })
}

function differences(call: Call, before: StoredRecord, after: StoredRecord): Record<string, unknown>[] {
  const keys = new Set([...Object.keys(before), ...Object.keys(after)])
  return [...keys].flatMap(key => {
    const field = call.module.fields[key]
    if (!field || unremarkable.includes(key)) return []
    if (JSON.stringify(before[key] ?? null) === JSON.stringify(after[key] ?? null)) return []
    return {
      field: { name: key },
      previous_value: summary(showValue(before[key], field, call)),
      current_value: summary(showValue(after[key], field, call)),
    }
  })
}

function summary(shown: unknown): unknown {
  if (typeof shown !== 'object' || shown === null || Array.isArray(shown)) return shown
  const { id, name, display_value: displayValue, value } = shown as Record<string, unknown>
  if (id !== undefined) return { id, name }
  return displayValue === undefined ? shown : { display_value: displayValue, value }
}
