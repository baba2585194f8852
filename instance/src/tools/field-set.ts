import { z } from 'zod'
import { at, type Json, text } from '../sdp/json.ts'
import type { Module } from '../sdp/names.ts'
import type { PersonKind } from '../sdp/people.ts'
import { type RecordModule, recordModules } from '../sdp/records.ts'
import type { ToolCall } from './define.ts'
import { diff } from './diff.ts'
import { textToHtml } from './markdown.ts'
import { customFields, optionName, person } from './params.ts'
import { resolveOtherFields } from './request-fields.ts'
import { nameLine } from './request-view.ts'
import { ToolError } from './result.ts'
import { formatInstant, parseInstant } from './time.ts'

/** How one input of a tool becomes one field of a record. */
type Field = {
  schema: z.ZodType
  /** SDP's key, dotted for grouped fields; the input's own name when absent */
  key?: string
  write: (
    value: never,
    call: ToolCall,
    field: { name: string; module: RecordModule; parent?: { id: string; name: string } },
  ) => Promise<{ value: unknown; shown: string | null }> | { value: unknown; shown: string | null }
}

const none = /^(none|nobody|unassigned|-)$/i

/** A single line. */
export function line(options: { key?: string; longest?: number; about?: string } = {}): Field {
  const { key, longest = 250, about } = options
  const schema = z.string().max(longest)
  return {
    schema: about ? schema.describe(about) : schema,
    key,
    write: (value: string) => ({ value: value.trim(), shown: value.trim() }),
  }
}

/** Markdown, kept as HTML. */
export function markdown(key?: string): Field {
  return { schema: z.string(), key, write: (value: string) => ({ value: textToHtml(value), shown: value }) }
}

/** A name from a list of the site; "none" empties it. */
export function option(lookup?: string, key?: string): Field {
  return {
    schema: optionName,
    key,
    async write(value: string, call, { name, module, parent }) {
      const isNone = none.test(value)
      const known = module in lookupModules ? (module as Module) : undefined
      try {
        const reference = await call.names.reference(call.sdp, lookup ?? name, value, { module: known, parent })
        if (isNone && !('id' in reference)) return { value: null, shown: null }
        return { value: reference, shown: value }
      } catch (error) {
        if (isNone) return { value: null, shown: null }
        throw error
      }
    },
  }
}
const lookupModules: Partial<Record<RecordModule, true>> = {
  request: true,
  problem: true,
  change: true,
  release: true,
  project: true,
  asset: true,
  solution: true,
}

export function who(kind: PersonKind = 'technician', key?: string): Field {
  return {
    schema: person,
    key,
    async write(value: string, call, { name }) {
      if (none.test(value)) return { value: null, shown: null }
      const found = await call.people.resolve(call.sdp, value, kind, name)
      return { value: found.reference, shown: nameLine(found.person) ?? null }
    },
  }
}

export function moment(key?: string, edge: 'start' | 'end' = 'start'): Field {
  return {
    schema: z.string().describe('ISO or relative'),
    key,
    async write(value: string, call) {
      if (none.test(value)) return { value: null, shown: null }
      const zone = await call.zone()
      const instant = parseInstant(value, { now: call.context.now(), zone }, edge)
      return { value: { value: String(instant) }, shown: formatInstant(instant, zone) }
    },
  }
}

export function flag(key?: string): Field {
  return { schema: z.boolean(), key, write: (value: boolean) => ({ value, shown: String(value) }) }
}

export function amount(key?: string, schema: z.ZodType = z.number().min(0)): Field {
  return { schema, key, write: (value: number) => ({ value, shown: String(value) }) }
}

/** Assets, services and the like, by name or id. */
export function references(key?: string): Field {
  return {
    schema: z.array(z.string().min(1)).describe('Names or ids'),
    key,
    write: (values: string[]) => ({ value: values.map(reference), shown: values.join(', ') }),
  }
}

export function reference(value: string): { id: string } | { name: string } {
  return /^\d{12,}$/.test(value) ? { id: value } : { name: value }
}

export type FieldSet<K extends string> = {
  /** one optional parameter for each field, and `custom_fields` where the module has them */
  inputs: Record<K | 'custom_fields', z.ZodOptional<z.ZodType>>
  /**
   * Turns the given inputs into what SDP takes. Nothing is sent before every name is resolved.
   * @throws SdpError `invalid-value`, ToolError
   */
  resolve(
    call: ToolCall,
    input: Record<string, unknown>,
    current?: Json,
  ): Promise<{ payload: Json; asked: Record<string, string | null> }>
}

/** Which field narrows the choices of another. */
const parents: Record<string, string> = { subcategory: 'category', item: 'subcategory' }

/** Declares the fields a module's tools can write: their parameters, and how each value travels. */
export function fieldSet<K extends string>(module: RecordModule, fields: Record<K, Field>): FieldSet<K> {
  const inputs = Object.fromEntries(
    Object.entries<Field>(fields).map(([name, field]) => [name, field.schema.optional()]),
  ) as Record<K, z.ZodOptional<z.ZodType>>
  return {
    inputs: { ...inputs, custom_fields: customFields },
    async resolve(call, input, current) {
      const payload: Json = {}
      const asked: Record<string, string | null> = {}
      for (const [name, field] of Object.entries<Field>(fields)) {
        const given = input[name]
        if (given === undefined) continue
        const key = field.key ?? name
        const parent = parentOf(name, payload, asked, current)
        const { value, shown } = await field.write(given as never, call, { name, module, parent })
        place(payload, key, value)
        asked[key] = shown
      }
      if (input.custom_fields !== undefined) {
        const { plural } = recordModules[module]
        const other = input.custom_fields as Json
        await resolveOtherFields(call, other, payload, asked, { plural, singular: module })
      }
      return { payload, asked }
    },
  }
}

function parentOf(name: string, payload: Json, asked: Record<string, string | null>, current: Json | undefined) {
  const above = parents[name]
  if (!above) return undefined
  const given = text(at(payload, `${above}.id`))
  if (given) return { id: given, name: asked[above] ?? given }
  const id = text(at(current, `${above}.id`))
  return id ? { id, name: text(at(current, `${above}.name`)) ?? id } : undefined
}

/** Puts a value under a dotted key: `root_cause.root_cause_description`. */
function place(payload: Json, key: string, value: unknown): void {
  const [first = key, ...rest] = key.split('.')
  if (rest.length === 0) payload[first] = value
  else payload[first] = { ...((payload[first] as Json | undefined) ?? {}), [rest.join('.')]: value }
}

type WriteOptions<K extends string> = {
  module: RecordModule
  fields: FieldSet<K>
  input: Record<string, unknown> & { dry_run?: boolean }
  /** what the answer shows of the record besides the diff */
  show: (record: Json, zone: string) => Json
  /** added to what is sent, never compared */
  extra?: Json
  /** the record as it is, where it was read already; else it is read */
  before?: Json
}

/** Creates a record, reads it back and tells what the site made of it. */
export async function createRecord<K extends string>(
  call: ToolCall,
  options: WriteOptions<K>,
): Promise<{ data: Json }> {
  const { module, fields, input, show, extra = {} } = options
  const zone = await call.zone()
  const { payload, asked } = await fields.resolve(call, input)
  const record = { ...payload, ...extra }
  if (input.dry_run) return { data: { dry_run: true, nothing_sent: true, would_create: record } }
  const created = await call.records.create(call.sdp, module, record)
  const id = text(created.id)
  const after = id ? await call.records.get(call.sdp, module, id) : created
  const changes = diff(asked, undefined, after, zone).filter(({ note }) => note)
  return { data: { done: true, ...show(after, zone), changes: changes.length > 0 ? changes : undefined } }
}

/** Changes a record, reads it back and compares asked with actual. */
export async function updateRecord<K extends string>(
  call: ToolCall,
  id: string,
  options: WriteOptions<K>,
): Promise<{ data: Json }> {
  const { module, fields, input, show, extra = {} } = options
  const [before, zone] = await Promise.all([options.before ?? call.records.get(call.sdp, module, id), call.zone()])
  const { payload, asked } = await fields.resolve(call, input, before)
  if (Object.keys(asked).length === 0) throw new ToolError('There is nothing to change.', 'Give at least one field.')
  const planned = Object.entries(asked).map(([field, wanted]) => ({ field, asked: wanted }))
  if (input.dry_run) return { data: { ...show(before, zone), dry_run: true, nothing_sent: true, changes: planned } }
  await call.records.update(call.sdp, module, id, { ...payload, ...extra })
  const after = await call.records.get(call.sdp, module, id)
  const changes = diff(asked, before, after, zone)
  return { data: { done: changes.every(({ note }) => note === undefined), ...show(after, zone), changes } }
}
