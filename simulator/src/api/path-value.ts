import type { Field, Fields, Module } from '../modules/module.ts'
import { rowById, type StoredRecord } from '../state.ts'
import type { Call } from './call.ts'
import { fail } from './failure.ts'
import { storedValue, udfDefinitions, udfField } from './fields.ts'
import { moduleOfTable } from './module-index.ts'

/** What a dotted path such as `technician.email_id` names in a module. */
export interface PathTarget {
  field: Field
  /** The values of one record: several for a list field, none when it is empty. */
  read(record: Record<string, unknown>): unknown[]
}

/** Keys a reference shows beyond its module's fields. */
const untyped: Field = { type: 'any' }

/**
 * Follows a dotted path through the module table, once per query.
 * @throws ApiFailure 4001 naming `path` when it leads nowhere
 */
export function pathTarget(module: Module, path: string, call: Call): PathTarget {
  const target = follow(module.fields, path.split('.'), call)
  if (!target) throw fail.unknownValue(path, `Invalid field ${path}`)
  return target
}

function follow(fields: Fields, [head = '', ...rest]: string[], call: Call): PathTarget | undefined {
  const field = Object.hasOwn(fields, head) ? fields[head] : undefined
  if (!field || field.writeOnly) return undefined
  const read = (record: Record<string, unknown>): unknown[] => {
    const value = storedValue(record, head, field, call)
    if (Array.isArray(value)) return value
    return value == null ? [] : [value]
  }
  if (rest.length === 0) return { field, read }
  const inner = followInto(field, rest, call)
  return inner && { field: inner.field, read: record => read(record).flatMap(value => inner.readValue(value)) }
}

function followInto(
  field: Field,
  rest: string[],
  call: Call,
): { field: Field; readValue(value: unknown): unknown[] } | undefined {
  if (field.type === 'ref' || field.type === 'refs') {
    const table = field.to ?? ''
    const module = moduleOfTable(table)
    const key = rest[0] ?? ''
    const target =
      (module && follow(module.fields, rest, call)) ??
      (rest.length === 1 && (key === 'id' || key === 'name' || module?.referenceFields?.includes(key))
        ? {
            field: key === 'id' ? ({ type: 'id' } as Field) : untyped,
            read: (row: Record<string, unknown>) => (row[key] == null ? [] : [row[key]]),
          }
        : undefined)
    if (!target) return undefined
    return {
      field: target.field,
      readValue(id) {
        const row: StoredRecord | undefined = rowById(call.portal, table, id)
        return row ? target.read(row) : []
      },
    }
  }
  if (field.type === 'group') {
    const target = follow(field.fields ?? {}, rest, call)
    return target && { field: target.field, readValue: value => target.read(value as Record<string, unknown>) }
  }
  if (field.type === 'udf') {
    const definitions = Object.fromEntries(udfDefinitions(call).map(row => [String(row.field_key), udfField(row)]))
    const target = follow(definitions, rest, call)
    return target && { field: target.field, readValue: value => target.read(value as Record<string, unknown>) }
  }
  if (field.type === 'any') {
    return {
      field: untyped,
      readValue(value) {
        const found = rest.reduce<unknown>((inner, key) => (inner as Record<string, unknown> | null)?.[key], value)
        return found == null ? [] : [found]
      },
    }
  }
  if ((field.type === 'time' || field.type === 'money') && rest.length === 1 && rest[0] === 'value')
    return { field, readValue: value => [value] }
  return undefined
}
