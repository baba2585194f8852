/** A value of a criterion: a scalar, or a reference where the field is one (docs/sdp-api.md 3.3). */
export type CriterionValue = string | number | boolean | { id: string } | { name: string } | { email_id: string }

export type Criterion = {
  field: string
  condition: string
  value?: CriterionValue
  values?: CriterionValue[]
  logical_operator?: 'AND' | 'OR'
  children?: Criterion[]
}

export type ListInfo = {
  /** 1 to 100 (docs/sdp-api.md 3.1) */
  row_count?: number
  /** counted from 1 */
  start_index?: number
  sort_field?: string
  sort_order?: 'asc' | 'desc'
  get_total_count?: boolean
  search_fields?: Record<string, string>
  search_criteria?: Criterion[] | Criterion
  filter_by?: { name: string } | { id: string }
  fields_required?: string[]
}

export const largestPage = 100

/** A bracketed expression, written without SDP's rules of grouping. */
export type Condition =
  | { kind: 'test'; field: string; condition: string; value?: CriterionValue; values?: CriterionValue[] }
  | { kind: 'all' | 'any'; parts: Condition[] }

export function is(field: string, ...values: CriterionValue[]): Condition {
  return test(field, 'is', values)
}
export function isNot(field: string, ...values: CriterionValue[]): Condition {
  return test(field, 'is not', values)
}
export function contains(field: string, text: string): Condition {
  return test(field, 'contains', [text])
}
/** Matches records whose reference is empty: `is` without a value (docs/sdp-api.md 3.3). */
export function isEmpty(field: string): Condition {
  return { kind: 'test', field, condition: 'is' }
}
export function atLeast(field: string, instantMs: number): Condition {
  return test(field, 'greater or equal', [String(instantMs)])
}
/** "lesser", not "less" (docs/sdp-api.md 3.3) */
export function before(field: string, instantMs: number): Condition {
  return test(field, 'lesser than', [String(instantMs)])
}
export function atMost(field: string, instantMs: number): Condition {
  return test(field, 'lesser or equal', [String(instantMs)])
}

function test(field: string, condition: string, values: CriterionValue[]): Condition {
  return values.length === 1
    ? { kind: 'test', field, condition, value: values[0] }
    : { kind: 'test', field, condition, values }
}

/** All of the given conditions; undefined ones are left out. */
export function all(...parts: (Condition | undefined)[]): Condition | undefined {
  return join('all', parts)
}
export function any(...parts: (Condition | undefined)[]): Condition | undefined {
  return join('any', parts)
}

function join(kind: 'all' | 'any', parts: (Condition | undefined)[]): Condition | undefined {
  const given = parts.filter(part => part !== undefined)
  const flat = given.flatMap(part => (part.kind === kind ? part.parts : [part]))
  return flat.length > 1 ? { kind, parts: flat } : flat[0]
}

/**
 * Writes a condition as SDP's `search_criteria`.
 *
 * SDP folds an array from left to right, each element joining with its own operator; a criterion with children is a
 * bracket: its own test first, then the children with theirs (docs/sdp-api.md 3.3). Only tests can open a bracket, so a
 * bracket starts with its first test, and one whose parts are all brackets starts with the first test inside them:
 * `(a OR b) AND (c OR d)` becomes `a{OR b} AND c{OR d}`, on one level. The first element of a level never carries an
 * operator: together with children SDP would read it differently (rule 3 of the same section).
 *
 * @throws RangeError for an expression SDP cannot write: a bracket nested in brackets with no test of its own on a
 *   level below the top
 */
export function criteria(condition: Condition | undefined): Criterion[] | undefined {
  if (condition === undefined) return undefined
  if (condition.kind === 'test') return [bare(condition)]
  const operator = operatorOf(condition)
  return testsFirst(condition.parts).map((part, index) => ({
    ...bracket(part),
    ...(index > 0 ? { logical_operator: operator } : {}),
  }))
}

/**
 * Adds a condition to criteria written by somebody else. SDP folds from left to right, so whatever stands before, each
 * appended bracket narrows it.
 */
export function narrowed(raw: Criterion[], condition: Condition | undefined): Criterion[] | undefined {
  if (raw.length === 0) return criteria(condition)
  const parts = condition === undefined ? [] : condition.kind === 'all' ? condition.parts : [condition]
  return [...raw, ...parts.map(part => ({ ...bracket(part), logical_operator: 'AND' as const }))]
}

/** One criterion that stands for the whole condition. */
function bracket(condition: Condition): Criterion {
  if (condition.kind === 'test') return bare(condition)
  const [first, ...rest] = testsFirst(condition.parts)
  if (first === undefined || first.kind !== 'test') {
    throw new RangeError('a nested group of search criteria needs at least one plain test')
  }
  const operator = operatorOf(condition)
  return { ...bare(first), children: rest.map(part => ({ ...bracket(part), logical_operator: operator })) }
}

function testsFirst(parts: Condition[]): Condition[] {
  return [...parts.filter(part => part.kind === 'test'), ...parts.filter(part => part.kind !== 'test')]
}

function operatorOf(condition: { kind: 'all' | 'any' }): 'AND' | 'OR' {
  return condition.kind === 'all' ? 'AND' : 'OR'
}

function bare({ field, condition, value, values }: Condition & { kind: 'test' }): Criterion {
  return {
    field,
    condition,
    ...(value === undefined ? {} : { value }),
    ...(values === undefined ? {} : { values }),
  }
}

/** Where a page starts. `page` counts from 1; `start_index` is sent because some sub-lists refuse `page` (3.1). */
export function paging(page: number, limit: number): Pick<ListInfo, 'row_count' | 'start_index'> {
  return { row_count: Math.min(limit, largestPage), start_index: (page - 1) * Math.min(limit, largestPage) + 1 }
}
