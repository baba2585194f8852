import type { Module } from '../modules/module.ts'
import { rowById, type StoredRecord } from '../state.ts'
import type { Call } from './call.ts'
import { compareTexts } from './compare-texts.ts'
import { compileCriteria, type Test } from './criteria.ts'
import { fail } from './failure.ts'
import { pathTarget } from './path-value.ts'

/** A checked `list_info` (docs/sdp-api.md 3.1). */
export interface ListQuery {
  rowCount: number
  startIndex: number
  wantsTotal: boolean
  tests: Test[]
  compare: (a: StoredRecord, b: StoredRecord) => number
  fieldsRequired?: string[]
  /** Keys the answer repeats. */
  echo: Record<string, unknown>
}

const knownKeys = [
  'row_count',
  'start_index',
  'page',
  'sort_field',
  'sort_order',
  'sort_fields',
  'get_total_count',
  'search_fields',
  'search_criteria',
  'filter_by',
  'fields_required',
]
const echoedKeys = ['sort_field', 'sort_order', 'page', 'get_total_count', 'search_criteria', 'fields_required']

const defaultRowCount = 10
const largestRowCount = 100

/**
 * Reads the `input_data` of a list.
 * @throws ApiFailure EXTRA_KEY for unknown keys, 4001 for values, fields, views and conditions that do not exist
 */
export function parseListInput(call: Call): ListQuery {
  const { list_info: listInfo = {}, fields_required: outer, ...others } = call.input ?? {}
  for (const key of Object.keys(others)) throw fail.extraKey(key)
  if (typeof listInfo !== 'object' || listInfo === null || Array.isArray(listInfo))
    throw fail.unparsableJson('list_info')
  const given = listInfo as Record<string, unknown>
  for (const key of Object.keys(given)) {
    if (key === 'page' && call.module.refusesPage) throw fail.extraParameter('page')
    if (!knownKeys.includes(key)) throw fail.extraKey(key)
  }

  const rowCount = parseRowCount(given.row_count, call)
  const page = parseCount(given.page, 'page')
  const startIndex =
    page !== undefined ? (Math.max(1, page) - 1) * rowCount + 1 : parseCount(given.start_index, 'start_index')
  return {
    rowCount,
    startIndex: Math.max(1, startIndex ?? 1),
    wantsTotal: given.get_total_count === true || given.get_total_count === 'true',
    tests: [...criteriaTests(given, call), ...searchFieldTests(given.search_fields, call), ...viewTests(given, call)],
    compare: comparator(given, call),
    fieldsRequired: parseFieldsRequired(given.fields_required ?? outer, call.module),
    echo: Object.fromEntries(echoedKeys.filter(key => given[key] !== undefined).map(key => [key, given[key]])),
  }
}

function parseCount(value: unknown, field: string): number | undefined {
  if (value === undefined || value === null) return undefined
  const number = Number(value)
  if (!Number.isInteger(number) || number < 0 || value === '') throw fail.unparsableValue(field)
  return number
}

function parseRowCount(value: unknown, call: Call): number {
  const wanted = parseCount(value, 'row_count') ?? defaultRowCount
  if (wanted > largestRowCount && call.world.faults.switches.rowCountAbove100 === 'refuse')
    throw fail.unknownValue('row_count', 'row_count cannot be more than 100')
  return Math.min(largestRowCount, Math.max(1, wanted))
}

/** The keys a row or record is limited to; only top-level names of the module. */
export function parseFieldsRequired(value: unknown, module: Module): string[] | undefined {
  if (value === undefined || value === null) return undefined
  if (!Array.isArray(value)) throw fail.unparsableJson('fields_required')
  for (const name of value) {
    if (typeof name !== 'string' || !Object.hasOwn(module.fields, name)) throw fail.unknownValue('fields_required')
  }
  return value
}

function criteriaTests(given: Record<string, unknown>, call: Call): Test[] {
  return given.search_criteria == null ? [] : [compileCriteria(given.search_criteria, call.module, call)]
}

/** The older `search_fields`: every field must contain its text. */
function searchFieldTests(value: unknown, call: Call): Test[] {
  if (value == null) return []
  if (typeof value !== 'object' || Array.isArray(value)) throw fail.unparsableJson('search_fields')
  return Object.entries(value).map(([field, text]) =>
    compileCriteria({ field, condition: 'contains', value: text }, call.module, call),
  )
}

/** `filter_by` names one of the module's views (3.4). */
function viewTests(given: Record<string, unknown>, call: Call): Test[] {
  if (given.filter_by == null) return []
  if (typeof given.filter_by !== 'object' || Array.isArray(given.filter_by)) throw fail.unparsableJson('filter_by')
  const { name, id } = given.filter_by as Record<string, unknown>
  const view = call.module.views?.[String(name ?? id)]
  if (!view) throw fail.unknownValue('filter_by')
  return [record => view(record, call)]
}

interface SortKey {
  field: string
  order: string
}

function sortKeys(given: Record<string, unknown>, module: Module): SortKey[] {
  if (given.sort_fields !== undefined) {
    if (!Array.isArray(given.sort_fields)) throw fail.unparsableJson('sort_fields')
    return given.sort_fields.map(one => ({ field: String(one?.field), order: String(one?.order ?? 'asc') }))
  }
  if (given.sort_field !== undefined)
    return [{ field: String(given.sort_field), order: String(given.sort_order ?? 'asc') }]
  return module.defaultSort ? [module.defaultSort] : []
}

function comparator(given: Record<string, unknown>, call: Call): (a: StoredRecord, b: StoredRecord) => number {
  const keys = sortKeys(given, call.module).map(({ field, order }) => {
    if (!/^(asc|desc)$/i.test(order)) throw fail.unknownValue('sort_order')
    const target = pathTarget(call.module, field, call)
    const read = (record: StoredRecord) => sortable(target.read(record)[0], target.field.to, call)
    return { read, sign: order.toLowerCase() === 'desc' ? -1 : 1 }
  })
  return (a, b) => {
    for (const { read, sign } of keys) {
      const order = compareSortable(read(a), read(b), sign)
      if (order !== 0) return order
    }
    return 0
  }
}

/** A lookup without suffix sorts by its name (3.1). */
function sortable(value: unknown, table: string | undefined, call: Call): unknown {
  if (table === undefined || value === undefined) return value
  const row = rowById(call.portal, table, value)
  return row?.name ?? row?.title
}

/** Empty values come last in either direction. */
function compareSortable(a: unknown, b: unknown, sign: number): number {
  if (a == null || b == null) return a == null ? (b == null ? 0 : 1) : -1
  if (typeof a === 'number' && typeof b === 'number') return sign * (a - b)
  return sign * compareTexts(String(a), String(b))
}
