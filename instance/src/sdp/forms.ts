import { Cache } from './cache.ts'
import type { Sdp } from './client.ts'
import { isSdpError } from './errors.ts'
import { at, flag, isObject, type Json, name as nameOf, rows, text } from './json.ts'
import { criteria, is, largestPage } from './list-info.ts'
import { child, path } from './path.ts'

export type FormField = {
  key: string
  label: string
  /** string, html, lookup, boolean, integer, decimal, datetime, date, ... as the site calls it */
  type: string
  isCustom: boolean
  isMandatory: boolean
  isReadOnly: boolean
  /** fixed choices of a custom pick list */
  allowed?: string[]
  takesMany?: boolean
}

/** `complete` is false when the site tells nothing about its form: then nothing may be concluded from absence. */
export type Form = { fields: FormField[]; complete: boolean }

export interface Forms {
  /** Fields of a module's form, from `_metainfo`, else from `/udf_fields` (docs/sdp-api.md 6, 17.2). */
  form(sdp: Sdp, plural: string, singular: string): Promise<Form>
  /** Keys a template makes mandatory for technicians; undefined where the site does not tell. */
  templateMandatory(sdp: Sdp, templateId: string): Promise<string[] | undefined>
}

const maxAgeMs = 10 * 60_000
const silence = ['missing-scope', 'not-found', 'denied', 'invalid-value', 'drift'] as const

export function createForms(options: { now: () => number }): Forms {
  const forms = new Cache<Form>({ size: 30, maxAgeMs, now: options.now })
  const templates = new Cache<{ mandatory: string[] | undefined }>({ size: 200, maxAgeMs, now: options.now })

  return {
    async form(sdp, plural, singular) {
      const known = forms.get(plural)
      if (known) return known
      const described = (await fromMetainfo(sdp, plural)) ?? (await fromUdfFields(sdp, singular))
      return forms.set(plural, described ?? { fields: [], complete: false })
    },
    async templateMandatory(sdp, templateId) {
      const known = templates.get(templateId)
      if (known) return known.mandatory
      return templates.set(templateId, { mandatory: await mandatoryOf(sdp, templateId) }).mandatory
    },
  }
}

async function fromMetainfo(sdp: Sdp, plural: string): Promise<Form | undefined> {
  const body = await quietly(() =>
    sdp.request({ method: 'GET', path: child(path``, plural, '_metainfo'), probe: true }),
  )
  const fields = at(body, 'metainfo.fields')
  if (!isObject(fields)) return undefined
  const custom = at(fields, 'udf_fields.fields')
  return {
    fields: [
      ...Object.entries(fields)
        .filter(([key]) => key !== 'udf_fields')
        .map(([key, field]) => described(key, field, false)),
      ...(isObject(custom) ? Object.entries(custom).map(([key, field]) => described(key, field, true)) : []),
    ],
    complete: true,
  }
}

async function fromUdfFields(sdp: Sdp, singular: string): Promise<Form | undefined> {
  const info = { row_count: largestPage, start_index: 1, search_criteria: criteria(is('module.name', singular)) }
  const body = await quietly(() =>
    sdp.request({ method: 'GET', path: path`/udf_fields`, input: { list_info: info }, probe: true }),
  )
  if (!Array.isArray(body?.udf_fields)) return undefined
  const fields = rows(body.udf_fields).map(row => described(text(row.field_key) ?? '', row, true))
  return { fields: fields.filter(({ key }) => key !== ''), complete: false }
}

function described(key: string, field: unknown, isCustom: boolean): FormField {
  const row: Json = isObject(field) ? field : {}
  const allowed = Array.isArray(row.allowed_values)
    ? row.allowed_values.map(value => nameOf(value)).filter(value => value !== undefined)
    : undefined
  const type = text(row.type) ?? 'string'
  return {
    key,
    label: text(row.display_name) ?? text(row.name) ?? key,
    type,
    isCustom,
    isMandatory: flag(row.mandatory) ?? flag(row.is_mandatory) ?? flag(at(row, 'constraints.mandatory')) ?? false,
    isReadOnly: flag(row.read_only) ?? flag(row.is_read_only) ?? false,
    allowed,
    takesMany: flag(row.multiple) ?? type === 'multi_select',
  }
}

/** `layouts[]` of a template: the technician's one, else the first (docs/sdp-api.md 7.1, 7.6). */
async function mandatoryOf(sdp: Sdp, templateId: string): Promise<string[] | undefined> {
  const parent = path`/request_templates/${templateId}`
  const body =
    (await quietly(() =>
      sdp.request({ method: 'GET', path: child(parent, '_get_template_with_layout'), probe: true }),
    )) ?? (await quietly(() => sdp.request({ method: 'GET', path: parent, probe: true })))
  const layouts = rows(at(body, 'request_template.layouts'))
  if (layouts.length === 0) return undefined
  const layout = layouts.find(({ name }) => /technician/i.test(text(name) ?? '')) ?? layouts[0]
  return rows(layout?.sections)
    .flatMap(section => rows(section.fields))
    .filter(field => flag(field.mandatory))
    .map(field => text(field.name) ?? '')
    .filter(key => key !== '')
}

/** The body, or undefined where the site refuses such metadata to OAuth clients. */
async function quietly(call: () => Promise<{ body: Json }>): Promise<Json | undefined> {
  try {
    return (await call()).body
  } catch (error) {
    if (isSdpError(error, ...silence)) return undefined
    throw error
  }
}
