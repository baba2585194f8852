import type { Field, Fields, Module } from '../modules/module.ts'
import { rowById, rowsOf, type StoredRecord } from '../state.ts'
import type { Call, Reply } from './call.ts'
import { fail } from './failure.ts'
import { udfDefinitions, udfField } from './fields.ts'
import { moduleOfTable } from './module-index.ts'
import { optionsOf } from './references.ts'
import { listRows } from './verbs.ts'

const metaTypes: Record<Field['type'], string> = {
  id: 'long',
  text: 'string',
  html: 'html',
  flag: 'boolean',
  integer: 'integer',
  decimal: 'decimal',
  time: 'datetime',
  datestamp: 'date',
  ref: 'lookup',
  refs: 'lookup',
  texts: 'string',
  money: 'double',
  duration: 'long',
  group: 'object',
  files: 'lookup',
  rows: 'object',
  udf: 'object',
  any: 'object',
}

function displayName(key: string): string {
  const words = key.replace(/_/g, ' ')
  return words.charAt(0).toUpperCase() + words.slice(1)
}

function describeField(key: string, field: Field): Record<string, unknown> {
  const constraints: Record<string, unknown> = {}
  if (field.maxLength !== undefined) constraints.max_length = field.maxLength
  if (field.minimum !== undefined) constraints.min_value = field.minimum
  if (field.maximum !== undefined) constraints.max_value = field.maximum
  return {
    type: metaTypes[field.type],
    display_name: field.label ?? displayName(key),
    ...(field.to ? { lookup_entity: moduleOfTable(field.to)?.root ?? field.to } : {}),
    ...(field.type === 'refs' || field.type === 'texts' || field.type === 'files' ? { multiple: true } : {}),
    ...(field.readOnly ? { read_only: true } : {}),
    ...(field.mandatory ? { mandatory: true } : {}),
    ...(field.within ? { depends_on: [field.within] } : {}),
    ...(field.oneOf ? { allowed_values: field.oneOf } : {}),
    constraints,
  }
}

function describeFields(fields: Fields, call: Call): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).map(([key, field]) => {
      const inner = field.type === 'group' ? field.fields : field.type === 'udf' ? udfFieldsOf(call) : undefined
      const described = describeField(key, field)
      return [key, inner ? { ...described, fields: describeFields(inner, call) } : described]
    }),
  )
}

const udfFieldsOf = (call: Call): Fields =>
  Object.fromEntries(udfDefinitions(call).map(row => [String(row.field_key), udfField(row)]))

/** UI metadata may refuse OAuth tokens (docs/sdp-api.md 6). */
function checkMetadataOpen(call: Call): void {
  switch (call.world.faults.switches.metainfo) {
    case '401':
      throw fail.unauthorized()
    case '403':
      throw fail.notAllowed()
    case '404':
      throw fail.invalidUrl()
  }
}

const ok = (body: Record<string, unknown>): Reply => ({
  status: 200,
  body: { ...body, response_status: { status_code: 2000, status: 'success' } },
})

/** `GET /<plural>/_metainfo` */
export function metainfo(call: Call): Reply {
  checkMetadataOpen(call)
  return ok({ metainfo: { entity: call.module.root, fields: describeFields(call.module.fields, call) } })
}

/** What the caller may do, from the module's verbs and operations and the role. */
function permittedLinks(call: Call, module: Module, record: StoredRecord | undefined): Record<string, unknown>[] {
  const { caller } = call
  const mayWrite = caller.isAdmin || (caller.isTechnician && !module.adminOnly)
  const links: Record<string, unknown>[] = []
  const add = (name: string, method: string, more: object = {}) => links.push({ name, method, ...more })
  if (record) {
    if (module.verbs.includes('get')) add('get', 'get')
    if (mayWrite && module.verbs.includes('edit'))
      add('edit', 'put', { non_editable_fields: lockedFields(call, record) })
    if (mayWrite && module.verbs.includes('delete') && caller.mayDelete) add('delete', 'delete')
  } else {
    if (module.verbs.includes('list')) add('list', 'get')
    const mayAdd = mayWrite || module.forRequesters?.includes('add')
    const isRefused = module.path === 'notifications' && call.world.faults.switches.repliesRefused
    if (mayAdd && module.verbs.includes('add') && !isRefused) add('add', 'post')
  }
  const operations = record ? module.operations : module.collectionOperations
  for (const key of Object.keys(operations ?? {})) {
    const [method = '', name = ''] = key.split(' ')
    if (/^[_/]/.test(name)) continue
    if (method === 'GET' || mayWrite) add(name, method.toLowerCase())
  }
  return links
}

/** Fields the site does not let this caller change on this record now. */
export function lockedFields(call: Call, record: StoredRecord): string[] {
  const { switches } = call.world.faults
  const locked = new Set<string>()
  if (call.module.table !== 'requests') return []
  if (switches.priorityLocked || switches.priorityMatrix) locked.add('priority')
  const status = rowById(call.portal, 'statuses', record.status)
  if (switches.closedTicketsRefuseEdits && status?.name === 'Closed') {
    for (const [key, field] of Object.entries(call.module.fields)) {
      if (!field.readOnly && !editableWhenClosed.includes(key)) locked.add(key)
    }
  }
  return [...locked]
}

/** What a closed ticket still takes (18.9). */
export const editableWhenClosed = [
  'status',
  'closure_info',
  'resolution',
  'status_change_comments',
  'update_reason',
  'udf_fields',
  'is_fcr',
]

/** `GET .../_links`, for a record or a collection; `operations_required` narrows it. */
export function links(call: Call): Reply {
  checkMetadataOpen(call)
  const { operations_required: wanted, ...others } = call.input ?? {}
  for (const key of Object.keys(others)) throw fail.extraKey(key)
  const permitted = permittedLinks(call, call.module, call.record).filter(
    link => !Array.isArray(wanted) || wanted.includes(link.name),
  )
  return ok({ _links: { links: permitted } })
}

/** `GET .../_allowed_values_for_fields` with `{"list_info":{"for":"<template id>"}}` (7.1). */
export function allowedValues(call: Call): Reply {
  const { list_info: listInfo, ...others } = call.input ?? {}
  for (const key of Object.keys(others)) throw fail.extraKey(key)
  const template = (listInfo as { for?: unknown } | undefined)?.for
  if (template !== undefined && !rowById(call.portal, 'request_templates', String(template)))
    throw fail.unknownValue('for')
  const allowed: Record<string, unknown> = {}
  for (const [key, field] of Object.entries(call.module.fields)) {
    const isPeople = field.to === 'users'
    if (field.type !== 'ref' || field.readOnly || isPeople) continue
    allowed[key] = optionsOf(field, call).map(row => ({
      id: row.id,
      name: row.name ?? row.title ?? null,
      ...(row.deleted === true ? { deleted: true } : {}),
    }))
  }
  const choices = udfDefinitions(call).filter(row => Array.isArray(row.allowed_values))
  allowed.udf_fields = Object.fromEntries(choices.map(row => [row.field_key, row.allowed_values]))
  return ok({ allowed_values: allowed })
}

/**
 * `GET /requests/<field>` and `/requests/{id}/<field>`: the options of a lookup as this user sees them, with the
 * list's paging and criteria on the options (7.1). Needs only the scope of the module.
 */
export function fieldOptions(call: Call, path: string[]): Reply {
  const [name = '', key] = path
  const field = call.module.fields[name]
  if (field?.type === 'udf') return udfOptions(call, key ?? '')
  const lookup = field?.type === 'group' ? field.fields?.[key ?? ''] : field
  const module = moduleOfTable(lookup?.to ?? '')
  if (!lookup || !module) throw fail.invalidUrl()
  const rows = optionsOf(lookup, call).filter(row => row.deleted !== true && row.inactive !== true)
  const parentId = lookup.within ? call.record?.[lookup.within] : undefined
  const offered = parentId === undefined || parentId === null ? rows : rows.filter(row => row.parent === parentId)
  return listRows({ ...call, module }, offered, key ?? name, module.referenceFields)
}

function udfOptions(call: Call, key: string): Reply {
  const definition = udfDefinitions(call).find(row => row.field_key === key)
  if (!definition) throw fail.invalidUrl()
  const table = definition.reference_table
  if (typeof table === 'string') {
    const module = moduleOfTable(table)
    if (!module) throw fail.invalidUrl()
    return listRows({ ...call, module }, rowsOf(call.portal, table), key, module.referenceFields)
  }
  const values = (definition.allowed_values as unknown[] | undefined) ?? []
  return ok({ [key]: values, list_info: { has_more_rows: false, start_index: 1, row_count: values.length } })
}
