import type { Module } from '../modules/module.ts'
import { rowById, type StoredRecord } from '../state.ts'
import type { Call } from './call.ts'
import { compareTexts } from './compare-texts.ts'
import { fail } from './failure.ts'
import { type PathTarget, pathTarget } from './path-value.ts'

export type Test = (record: StoredRecord) => boolean

/** Condition names and their short forms (docs/sdp-api.md 3.3). Note "lesser", not "less". */
const conditionNames: Record<string, Condition> = {
  is: 'is',
  '=': 'is',
  eq: 'is',
  'is not': 'is not',
  '!=': 'is not',
  neq: 'is not',
  'greater than': 'gt',
  gt: 'gt',
  'greater or equal': 'gte',
  gte: 'gte',
  'lesser than': 'lt',
  lt: 'lt',
  'lesser or equal': 'lte',
  lte: 'lte',
  between: 'between',
  'not between': 'not between',
  'starts with': 'starts with',
  'ends with': 'ends with',
  contains: 'contains',
  'not contains': 'not contains',
  like: 'contains',
}
type Condition =
  | 'is'
  | 'is not'
  | 'gt'
  | 'gte'
  | 'lt'
  | 'lte'
  | 'between'
  | 'not between'
  | 'starts with'
  | 'ends with'
  | 'contains'
  | 'not contains'

interface Criterion {
  field: string
  condition: string
  value?: unknown
  values?: unknown[]
  logical_operator?: string
  children?: unknown
}

const criterionKeys = ['field', 'condition', 'value', 'values', 'logical_operator', 'children']

/**
 * Compiles `search_criteria`, an object or an array, to a test of one record. The three rules of 3.3:
 * an array is folded left to right; a criterion with children is a bracket, its own test first; and when the first
 * criterion of a level has both children and an operator, that operator joins it with the bracket of its children.
 *
 * @throws ApiFailure for unknown fields, conditions, keys or values of the wrong kind
 */
export function compileCriteria(criteria: unknown, module: Module, call: Call): Test {
  const list = Array.isArray(criteria) ? criteria : [criteria]
  if (list.length === 0) return () => true
  return fold(list, true, module, call)
}

function fold(list: unknown[], isOutermost: boolean, module: Module, call: Call): Test {
  let joined: Test | undefined
  for (const [i, element] of list.entries()) {
    const criterion = checkShape(element)
    const isFirst = i === 0 && isOutermost
    if (isFirst && criterion.logical_operator && !criterion.children && refusesLeadingOperator(call))
      throw fail.unknownValue('logical_operator')
    const test = compileOne(criterion, isFirst, module, call)
    joined = joined ? join(joined, criterion.logical_operator, test) : test
  }
  return joined ?? (() => true)
}

const refusesLeadingOperator = (call: Call) => call.world.faults.switches.leadingLogicalOperator === 'refuse'

function compileOne(criterion: Criterion, isFirst: boolean, module: Module, call: Call): Test {
  const own = compileTest(criterion, module, call)
  if (criterion.children === undefined) return own
  const children = Array.isArray(criterion.children) ? criterion.children : [criterion.children]
  if (children.length === 0) return own
  if (isFirst && criterion.logical_operator)
    return join(own, criterion.logical_operator, fold(children, false, module, call))
  let joined = own
  for (const child of children.map(checkShape))
    joined = join(joined, child.logical_operator, compileOne(child, false, module, call))
  return joined
}

function join(left: Test, operator: string | undefined, right: Test): Test {
  switch ((operator ?? 'AND').toUpperCase()) {
    case 'AND':
      return record => left(record) && right(record)
    case 'OR':
      return record => left(record) || right(record)
    default:
      throw fail.unknownValue('logical_operator')
  }
}

function checkShape(element: unknown): Criterion {
  if (typeof element !== 'object' || element === null || Array.isArray(element))
    throw fail.unparsableJson('search_criteria')
  for (const key of Object.keys(element)) if (!criterionKeys.includes(key)) throw fail.extraKey(key)
  const criterion = element as Partial<Criterion>
  if (typeof criterion.field !== 'string') throw fail.mandatory(['field'])
  if (typeof criterion.condition !== 'string') throw fail.mandatory(['condition'])
  return criterion as Criterion
}

function compileTest(criterion: Criterion, module: Module, call: Call): Test {
  const condition = conditionNames[criterion.condition.trim().toLowerCase()]
  if (!condition) throw fail.unknownValue('condition', `Invalid condition ${criterion.condition}`)
  const target = pathTarget(module, criterion.field, call)
  const wanted =
    criterion.values !== undefined ? asArray(criterion.values) : criterion.value != null ? [criterion.value] : []

  if (wanted.length === 0) {
    // Neither value nor values: the empty test (3.3).
    if (condition === 'is') return record => target.read(record).length === 0
    if (condition === 'is not') return record => target.read(record).length > 0
    throw fail.mandatory(['value'])
  }
  const matches = comparison(condition, wanted, target, criterion.field, call)
  return record => matches(target.read(record))
}

function asArray(values: unknown): unknown[] {
  if (!Array.isArray(values)) throw fail.unparsableJson('values')
  return values
}

function comparison(
  condition: Condition,
  wanted: unknown[],
  target: PathTarget,
  path: string,
  call: Call,
): (values: unknown[]) => boolean {
  const equal = equality(target, path, call)
  const order = ordering(target, path)
  const first = wanted[0]
  const textOf = (value: unknown) => searchableText(value, target, call)
  const anyText = (test: (have: string, want: string) => boolean) => {
    const texts = wanted.map(one => String(nameOf(one)).toLowerCase())
    return (values: unknown[]) => values.some(value => texts.some(want => test(textOf(value), want)))
  }
  switch (condition) {
    case 'is': {
      const tests = wanted.map(equal)
      return values => values.some(value => tests.some(test => test(value)))
    }
    case 'is not': {
      const tests = wanted.map(equal)
      return values => !values.some(value => tests.some(test => test(value)))
    }
    case 'gt':
      return compared(order(first), sign => sign > 0)
    case 'gte':
      return compared(order(first), sign => sign >= 0)
    case 'lt':
      return compared(order(first), sign => sign < 0)
    case 'lte':
      return compared(order(first), sign => sign <= 0)
    case 'between':
    case 'not between': {
      if (wanted.length !== 2) throw fail.unknownValue('values', 'between takes two values')
      const [low, high] = wanted.map(order) as [Order, Order]
      const isWithin = (values: unknown[]) => values.some(value => low(value) >= 0 && high(value) <= 0)
      return condition === 'between' ? isWithin : values => values.length > 0 && !isWithin(values)
    }
    case 'starts with':
      return anyText((have, want) => have.startsWith(want))
    case 'ends with':
      return anyText((have, want) => have.endsWith(want))
    case 'contains':
      return anyText((have, want) => have.includes(want))
    case 'not contains': {
      const contains = anyText((have, want) => have.includes(want))
      return values => !contains(values)
    }
  }
}

type Order = (value: unknown) => number
const compared = (order: Order, test: (sign: number) => boolean) => (values: unknown[]) =>
  values.some(value => test(order(value)))

function nameOf(wanted: unknown): unknown {
  if (typeof wanted !== 'object' || wanted === null) return wanted
  const { name, value, id, email_id } = wanted as Record<string, unknown>
  return name ?? value ?? email_id ?? id ?? ''
}

function searchableText(value: unknown, { field }: PathTarget, call: Call): string {
  if (field.type === 'ref' || field.type === 'refs') {
    const row = rowById(call.portal, field.to ?? '', value)
    return String(row?.name ?? row?.title ?? '').toLowerCase()
  }
  return String(value).toLowerCase()
}

/** Equality by the kind of the field; names ignore case, ids are compared as digits. */
function equality(target: PathTarget, path: string, call: Call): (wanted: unknown) => (value: unknown) => boolean {
  const { field } = target
  switch (field.type) {
    case 'ref':
    case 'refs':
      return wanted => referenceEquality(wanted, field.to ?? '', call)
    case 'id':
    case 'time':
    case 'integer':
    case 'decimal':
    case 'money':
    case 'duration': {
      const order = ordering(target, path)
      return wanted => {
        const compare = order(wanted)
        return value => compare(value) === 0
      }
    }
    default:
      return wanted => {
        const text = String(nameOf(wanted)).trim().toLowerCase()
        return value => String(value).toLowerCase() === text
      }
  }
}

function referenceEquality(wanted: unknown, table: string, call: Call): (id: unknown) => boolean {
  if (typeof wanted === 'object' && wanted !== null) {
    const { id, name, email_id } = wanted as Record<string, unknown>
    if (id != null) return have => have === String(id)
    const key = email_id != null ? 'email_id' : 'name'
    const text = String(email_id ?? name ?? '').toLowerCase()
    return have => String(rowById(call.portal, table, have)?.[key] ?? '').toLowerCase() === text
  }
  const text = String(wanted).toLowerCase()
  return have => {
    if (have === text) return true
    const row = rowById(call.portal, table, have)
    return row !== undefined && [row.name, row.title].some(name => String(name ?? '').toLowerCase() === text)
  }
}

/**
 * Orders a record's value against a wanted one: negative when smaller.
 * @throws ApiFailure 4001 when the wanted value is no number, time or id although the field is
 */
function ordering({ field }: PathTarget, path: string): (wanted: unknown) => Order {
  return wanted => {
    const plain = nameOf(wanted)
    switch (field.type) {
      case 'id': {
        if (!/^\d{1,19}$/.test(String(plain).trim())) throw fail.unparsableValue(path)
        const number = BigInt(String(plain).trim())
        return value => {
          const have = BigInt(String(value))
          return have < number ? -1 : have > number ? 1 : 0
        }
      }
      case 'time':
      case 'integer':
      case 'decimal':
      case 'money':
      case 'duration': {
        const number = Number(plain)
        if (String(plain).trim() === '' || !Number.isFinite(number)) throw fail.unparsableValue(path)
        return value => Number(value) - number
      }
      default:
        return value => compareTexts(String(value), String(plain))
    }
  }
}
