import { z } from 'zod'
import type { FormField } from '../sdp/forms.ts'
import { at, isObject, type Json, name as nameOf, text } from '../sdp/json.ts'
import type { Reference } from '../sdp/names.ts'
import { closest, plain } from '../sdp/similar.ts'
import type { ToolCall } from './define.ts'
import { textToHtml } from './markdown.ts'
import { customFields, date, optionName, person } from './params.ts'
import { nameLine } from './request-view.ts'
import { ToolError } from './result.ts'
import { formatInstant, parseInstant } from './time.ts'

/** Ticket fields that create_request and update_request share. */
export const requestFieldInputs = {
  subject: z.string().min(1).max(250).optional(),
  description: z.string().min(1).optional().describe('Markdown'),
  requester: person.optional(),
  technician: person.optional(),
  group: optionName.optional(),
  category: optionName.optional(),
  subcategory: optionName.optional(),
  item: optionName.optional(),
  priority: optionName.optional(),
  urgency: optionName.optional(),
  impact: optionName.optional(),
  level: optionName.optional(),
  mode: optionName.optional(),
  request_type: optionName.optional(),
  site: optionName.optional(),
  due_by: date.optional().describe('ISO or relative: +2d, tomorrow 17:00'),
  custom_fields: customFields,
}
export type RequestFieldInput = { [K in keyof typeof requestFieldInputs]?: z.output<(typeof requestFieldInputs)[K]> }

/** `asked` shows each field as the person would read it, for the diff after the write. */
export type Resolved = { payload: Json; asked: Record<string, string | null> }

const lookups = ['priority', 'urgency', 'impact', 'level', 'mode', 'request_type', 'group', 'site'] as const
/** Clears a field where the site has no value of that name. */
const none = /^(none|unassigned|nobody|-)$/i

/**
 * Resolves names of ticket fields to references, before anything is sent.
 *
 * @param current - the ticket as it is, for fields whose choices depend on another field
 * @throws SdpError `invalid-value` with close matches for a name that does not exist
 * @throws ToolError for an unknown custom field
 */
export async function resolveFields(call: ToolCall, input: RequestFieldInput, current?: Json): Promise<Resolved> {
  const payload: Json = {}
  const asked: Record<string, string | null> = {}
  const set = (key: string, value: unknown, shown: string | null) => {
    payload[key] = value
    asked[key] = shown
  }
  if (input.subject !== undefined) set('subject', input.subject.trim(), input.subject.trim())
  if (input.description !== undefined) set('description', textToHtml(input.description), input.description)
  for (const field of lookups) {
    const reference = await optional(call, field, input[field])
    if (reference !== undefined) set(field, reference && { id: reference.id }, reference?.name ?? null)
  }
  await resolveCategories(call, input, current, set)
  for (const field of ['requester', 'technician'] as const) {
    const who = input[field]
    if (who === undefined) continue
    if (none.test(who) && field === 'technician') {
      set(field, null, null)
      continue
    }
    const { person, reference } = await call.people.resolve(call.sdp, who, field, field)
    set(field, reference, nameLine(person) ?? null)
  }
  if (input.due_by !== undefined) {
    const zone = await call.zone()
    const due = parseInstant(input.due_by, { now: call.context.now(), zone }, 'end')
    set('due_by_time', { value: String(due) }, formatInstant(due, zone))
  }
  if (input.custom_fields !== undefined) await resolveOtherFields(call, input.custom_fields, payload, asked)
  return { payload, asked }
}

type Set = (key: string, value: unknown, shown: string | null) => void

async function optional(
  call: ToolCall,
  field: string,
  value: string | undefined,
  parent?: Reference,
): Promise<Reference | null | undefined> {
  if (value === undefined) return undefined
  try {
    return await call.names.resolve(call.sdp, field, value, { parent })
  } catch (error) {
    if (none.test(value)) return null
    throw error
  }
}

/** A subcategory is looked up under its category, an item under its subcategory: given, or as the ticket has it. */
async function resolveCategories(call: ToolCall, input: RequestFieldInput, current: Json | undefined, set: Set) {
  let parent: Reference | undefined
  for (const field of ['category', 'subcategory', 'item'] as const) {
    const reference = await optional(call, field, input[field], field === 'category' ? undefined : parent)
    if (reference !== undefined) set(field, reference && { id: reference.id }, reference?.name ?? null)
    parent = reference === undefined ? referenceIn(current?.[field]) : (reference ?? undefined)
  }
}

function referenceIn(value: unknown): Reference | undefined {
  const id = text(at(value, 'id'))
  return id === undefined ? undefined : { id, name: nameOf(value) ?? id }
}

/**
 * Adds fields that have no parameter of their own: additional ones, by key or label, under `udf_fields`, and other
 * fields of the form by key, each in the shape its type wants (docs/sdp-api.md 5).
 * @throws ToolError for a key the form does not have, a read-only field, or one with a parameter of its own; none is
 *   ever dropped
 */
export async function resolveOtherFields(
  call: ToolCall,
  given: Record<string, unknown>,
  payload: Json,
  asked: Record<string, string | null>,
  module: { plural: string; singular: string } = { plural: 'requests', singular: 'request' },
): Promise<void> {
  const form = await call.forms.form(call.sdp, module.plural, module.singular)
  const clock = { now: call.context.now(), zone: await call.zone() }
  const custom: Json = {}
  for (const [name, value] of Object.entries(given)) {
    const field = fieldOf(form.fields, name)
    if (!field && (form.fields.length > 0 || !looksLikeKey(name)))
      throw unknownField(name, form.fields, module.singular)
    if (field?.isReadOnly) {
      throw new ToolError(`The field "${name}" is read-only.`, 'Leave it out.', { fields: ['custom_fields'] })
    }
    const key = field?.key ?? name
    if (field && !field.isCustom && (key in payload || ownParameters.has(key))) {
      throw new ToolError(`"${name}" has a parameter of its own.`, `Give it as ${key}, not in custom_fields.`, {
        fields: ['custom_fields'],
      })
    }
    const { value: sent, shown } = fieldValue(field, key, value, clock)
    if (field && !field.isCustom) {
      payload[key] = sent
      asked[key] = shown
    } else {
      custom[key] = sent
      asked[`udf_fields.${key}`] = shown
    }
  }
  if (Object.keys(custom).length > 0) payload.udf_fields = custom
}

/** Names are checked for these; here they would pass unchecked. */
const ownParameters = new Set([
  ...['subject', 'title', 'description', 'status', 'priority', 'urgency', 'impact', 'level', 'mode', 'request_type'],
  ...['category', 'subcategory', 'item', 'group', 'site', 'technician', 'requester', 'template', 'stage'],
])

function fieldOf(fields: FormField[], name: string): FormField | undefined {
  return (
    fields.find(({ key }) => key === name) ??
    fields.find(({ label, isCustom }) => isCustom && plain(label) === plain(name))
  )
}

function unknownField(name: string, fields: FormField[], module: string): ToolError {
  const labels = fields.filter(({ isCustom }) => isCustom).map(({ key, label }) => `${key} (${label})`)
  return new ToolError(
    `There is no field "${name}".`,
    `Use the key of a field; get_form_fields with module "${module}" lists them.`,
    { fields: ['custom_fields'], allowed: closest(name, labels, 5).concat(labels).slice(0, 10) },
  )
}

function looksLikeKey(name: string): boolean {
  return /^(txt|num|dbl|date|dt|bool|ref|udf)_[a-z0-9_]+$|^udf_(char|long|date|double|boolean)\d+$/i.test(name)
}

function fieldValue(
  field: FormField | undefined,
  key: string,
  value: unknown,
  clock: { now: number; zone: string },
): { value: unknown; shown: string | null } {
  if (value === null) return { value, shown: null }
  const plainly = (sent: unknown) => ({
    value: sent,
    shown: typeof value === 'object' ? JSON.stringify(value) : String(value),
  })
  if (isObject(value)) return plainly(value)
  const type = field?.type ?? ''
  if (type === 'datestamp' || type === 'date') {
    // a day without a time travels as a day (docs/sdp-api.md 5)
    const day = formatInstant(parseInstant(String(value), clock), clock.zone).slice(0, 10)
    return { value: { value: day }, shown: day }
  }
  if (type === 'datetime' || (type === '' && /^(date_|dt_|udf_date)/.test(key))) {
    const instant = parseInstant(String(value), clock)
    return { value: { value: String(instant) }, shown: formatInstant(instant, clock.zone) }
  }
  if (type === 'lookup' || type === 'refered_field' || (type === '' && key.startsWith('ref_'))) {
    const reference = (item: unknown) =>
      /^\d{12,}$/.test(String(item)) ? { id: String(item) } : { name: String(item) }
    return plainly(Array.isArray(value) ? value.map(reference) : reference(value))
  }
  return plainly(field?.takesMany && !Array.isArray(value) ? [value] : value)
}
