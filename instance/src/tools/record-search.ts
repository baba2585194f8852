import { z } from 'zod'
import type { Json } from '../sdp/json.ts'
import { all, any, atLeast, atMost, type Condition, contains, criteria, is, isEmpty, paging } from '../sdp/list-info.ts'
import type { Module } from '../sdp/names.ts'
import { personIs } from '../sdp/people.ts'
import type { RecordModule } from '../sdp/records.ts'
import type { ToolCall } from './define.ts'
import { date, defaultLimit, limit, optionName, page, person } from './params.ts'
import type { Outcome } from './result.ts'
import { parseInstant } from './time.ts'

/** Parameters that the search tools of all modules share. */
export const searchInputs = {
  text: z.string().min(1).optional(),
  status: z.array(optionName).optional(),
  priority: z.array(optionName).optional(),
  created_from: date.optional().describe('ISO or relative: today, -7d'),
  created_to: date.optional(),
  page,
  limit,
  total: z.boolean().optional().describe('Also count all hits'),
}
export const pagingInputs = { page, limit, total: searchInputs.total }
export const personInput = person.optional().describe('me, e-mail, name, id, or none')
export const namesInput = z.array(optionName).optional()

export type SearchInput = { page?: number; limit?: number; total?: boolean }

type SearchOptions = {
  module: RecordModule
  /** key of the rows in the answer */
  key: string
  input: SearchInput
  conditions: (Condition | undefined)[]
  row: (record: Json, zone: string) => Json
  sort?: { field: string; order: 'asc' | 'desc' }
  fields?: string[]
}

/** One page of a module, searched on the server. */
export async function searchRecords(call: ToolCall, options: SearchOptions): Promise<Outcome> {
  const { module, key, input, conditions, row, sort = { field: 'created_time', order: 'desc' } } = options
  const zone = await call.zone()
  const number = input.page ?? 1
  const size = input.limit ?? defaultLimit
  const found = await call.records.list(call.sdp, module, {
    ...paging(number, size),
    sort_field: sort.field,
    sort_order: sort.order,
    ...(input.total ? { get_total_count: true } : {}),
    ...(options.fields ? { fields_required: options.fields } : {}),
    search_criteria: criteria(all(...conditions)),
  })
  return {
    data: {
      [key]: found.rows.length > 0 ? found.rows.map(record => row(record, zone)) : 'none',
      total: found.total,
      has_more: found.hasMore,
      next_page: found.hasMore ? number + 1 : undefined,
    },
    paged: { key, page: number, limit: size },
  }
}

/** Words in any of the fields. */
export function textIn(text: string | undefined, ...fields: string[]): Condition | undefined {
  return text === undefined ? undefined : any(...fields.map(field => contains(field, text)))
}

/** Any of the given names of a lookup field; "none" means empty. */
export async function namedAny(
  call: ToolCall,
  field: string,
  names: string[] | undefined,
  module?: Module,
): Promise<Condition | undefined> {
  if (!names || names.length === 0) return undefined
  const isNone = (name: string) => /^(none|empty)$/i.test(name)
  const found = await Promise.all(
    names.filter(name => !isNone(name)).map(name => call.names.reference(call.sdp, field, name, { module })),
  )
  const ids = found.flatMap(reference => ('id' in reference ? [reference.id] : []))
  const rest = found.flatMap(reference => ('name' in reference ? [reference.name] : []))
  return any(
    ids.length > 0 ? is(`${field}.id`, ...ids) : undefined,
    rest.length > 0 ? is(`${field}.name`, ...rest) : undefined,
    names.some(isNone) ? isEmpty(field) : undefined,
  )
}

export async function byPerson(
  call: ToolCall,
  field: string,
  who: string | undefined,
  kind: 'technician' | 'requester' | 'any' = 'technician',
): Promise<Condition | undefined> {
  if (who === undefined) return undefined
  if (/^(none|nobody|unassigned)$/i.test(who.trim())) return isEmpty(field)
  const { reference } = await call.people.resolve(call.sdp, who, kind, field)
  return personIs(field, reference)
}

export async function between(
  call: ToolCall,
  field: string,
  from: string | undefined,
  to: string | undefined,
): Promise<Condition | undefined> {
  if (from === undefined && to === undefined) return undefined
  const clock = { now: call.context.now(), zone: await call.zone() }
  return all(
    from === undefined ? undefined : atLeast(field, parseInstant(from, clock, 'start')),
    to === undefined ? undefined : atMost(field, parseInstant(to, clock, 'end')),
  )
}
