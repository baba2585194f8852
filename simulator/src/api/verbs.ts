import { listKeyOf, type Module, type Verb } from '../modules/module.ts'
import { childrenOf, insert, nextDisplayId, nextId, remove, rowsOf, type StoredRecord } from '../state.ts'
import type { Call, Reply } from './call.ts'
import { bulk, done, many, one } from './envelope.ts'
import { ApiFailure, fail } from './failure.ts'
import { parseFields, showFields } from './fields.ts'
import { parseFieldsRequired, parseListInput } from './list-info.ts'
import { parseId } from './references.ts'

/** The five generic actions of every module (docs/sdp-api.md 6), driven by its entry in the module table. */
export const verbs: Record<Verb, (call: Call) => Reply> = { list, get, add, edit, delete: deleteOne }

/** Rows of the addressed collection that the caller may see. */
export function visibleRows(call: Call): StoredRecord[] {
  const { module, portal, trail } = call
  if (module.rows) return module.rows(call)
  const parent = trail.at(-1)?.record
  const isBelow = (row: StoredRecord) =>
    !parent || row.parent === parent.id || (module.isBelow?.(row, parent, portal) ?? false)
  return rowsOf(portal, module.table).filter(
    row => isBelow(row) && (module.only?.(row) ?? true) && (module.isVisible?.(row, call) ?? true),
  )
}

function list(call: Call): Reply {
  const { module } = call
  const rows = visibleRows(call).filter(row => module.isListed?.(row, call) ?? true)
  if (module.table !== 'statuses') return listRows(call, rows, listKeyOf(module), module.listFields)
  const { statusesEndpoint, statusesListKey } = call.world.faults.switches
  return listRows(call, statusesEndpoint === 'empty' ? [] : rows, statusesListKey)
}

/** Filters, sorts, pages and shows rows as the call's `list_info` asks. */
export function listRows(call: Call, rows: StoredRecord[], key: string, rowKeys?: readonly string[]): Reply {
  const query = parseListInput(call)
  const found = rows.filter(row => query.tests.every(test => test(row))).sort(query.compare)
  const start = query.startIndex - 1
  const page = found.slice(start, start + query.rowCount)
  const keys = query.fieldsRequired ?? rowKeys
  const shown = page.map(row => showFields(row, call.module.fields, call, keys))
  if (call.world.faults.switches.nullDateText) {
    for (const row of shown) if (row.last_updated_time === null) row.last_updated_time = 'null'
  }
  return many(key, shown, {
    has_more_rows: start + page.length < found.length,
    start_index: query.startIndex,
    row_count: page.length,
    ...query.echo,
    ...(query.wantsTotal ? { total_count: found.length } : {}),
  })
}

export function show(record: StoredRecord, call: Call, keys?: readonly string[]): Record<string, unknown> {
  return showFields(record, call.module.fields, call, keys)
}

export function recordOf(call: Call): StoredRecord {
  if (!call.record) throw fail.invalidUrl()
  return call.record
}

function get(call: Call): Reply {
  const { fields_required: wanted, ...others } = call.input ?? {}
  for (const key of Object.keys(others)) throw fail.extraKey(key)
  return one(
    call.module.readRoot ?? call.module.root,
    show(recordOf(call), call, parseFieldsRequired(wanted, call.module)),
  )
}

/**
 * The object under the module's root key.
 * @throws ApiFailure EXTRA_KEY for another root, 4012 when there is none
 */
export function rootInput(call: Call, roots: readonly string[] = rootsOf(call.module, call)): Record<string, unknown> {
  for (const key of Object.keys(call.input ?? {})) if (!roots.includes(key)) throw fail.extraKey(key)
  const root = roots.find(key => call.input?.[key] !== undefined)
  if (root === undefined) throw fail.mandatory([roots[0] ?? ''])
  const given = call.input?.[root]
  if (typeof given !== 'object' || given === null || Array.isArray(given)) throw fail.unparsableJson(root)
  return given as Record<string, unknown>
}

function rootsOf(module: Module, call: Call): string[] {
  const roots = [module.root, ...(module.otherRoots ?? [])]
  if (module.root !== 'request_note') return roots
  const { noteRoot } = call.world.faults.switches
  return noteRoot === 'both' ? ['request_note', 'note'] : [noteRoot]
}

const isEmpty = (value: unknown) => value == null || value === '' || (Array.isArray(value) && value.length === 0)

function checkMandatory(module: Module, record: Record<string, unknown>, extra: string[]): void {
  const mandatory = Object.keys(module.fields).filter(key => module.fields[key]?.mandatory)
  const missing = [...new Set([...mandatory, ...extra])].filter(key => isEmpty(record[key]))
  if (missing.length > 0) throw fail.mandatory(missing)
}

function checkUnique(module: Module, record: StoredRecord, sent: Record<string, unknown>, call: Call): void {
  for (const key of Object.keys(sent)) {
    if (!module.fields[key]?.unique || isEmpty(sent[key])) continue
    const text = String(sent[key]).toLowerCase()
    const isTaken = rowsOf(call.portal, module.table).some(
      row => row.id !== record.id && row.parent === record.parent && String(row[key]).toLowerCase() === text,
    )
    if (isTaken) throw fail.notUnique(key)
  }
}

/** A subcategory must be one of the category's; a new category clears what no longer fits. */
function settleDependents(module: Module, record: StoredRecord, sent: Record<string, unknown>, call: Call): void {
  for (const [key, field] of Object.entries(module.fields)) {
    if (!field.within || isEmpty(record[key])) continue
    const chosen = rowsOf(call.portal, field.to ?? '').find(row => row.id === record[key])
    if (chosen?.parent === record[field.within]) continue
    if (sent[key] === undefined) record[key] = null
    else if (isEmpty(record[field.within])) record[field.within] = chosen?.parent ?? null
    else throw fail.unknownValue(key)
  }
}

/** Keeps what belongs to the record and drops what is only an instruction. */
function keep(record: StoredRecord, sent: Record<string, unknown>, module: Module): void {
  for (const [key, value] of Object.entries(sent)) {
    const field = module.fields[key]
    if (!field || field.writeOnly) continue
    const isGroup = (field.type === 'group' || field.type === 'udf') && value !== null
    record[key] = isGroup ? { ...(record[key] as object | undefined), ...(value as object) } : value
  }
}

/** Adds a record to the addressed collection from already checked values; operations use it too. */
export function addRecord(call: Call, sent: Record<string, unknown>): StoredRecord | Reply {
  const { module, portal, world } = call
  const parent = call.trail.at(-1)
  const record: StoredRecord = {
    id: nextId(portal),
    ...(parent ? { parent: parent.record.id, parentTable: parent.module.table } : {}),
    created_time: world.now(),
    created_by: call.caller.row.id,
    ...module.defaults?.(call),
  }
  keep(record, sent, module)
  checkMandatory(module, record, module.extraMandatory?.(sent, call) ?? [])
  settleDependents(module, record, sent, call)
  checkUnique(module, record, sent, call)
  const instead = module.beforeSave?.({ record, sent }, call)
  if (instead) return instead
  if (module.numbered) record.display_id = nextDisplayId(portal, module.table)
  insert(portal, module.table, record)
  module.afterSave?.({ record, sent }, call)
  world.changed()
  return record
}

export const isReply = (value: StoredRecord | Reply): value is Reply =>
  'status' in value && typeof value.status === 'number'

function add(call: Call): Reply {
  const { module, world } = call
  const added = addRecord(call, parseFields(rootInput(call), module.fields, call))
  if (isReply(added)) return added
  const status = module.createdStatus ?? Number(world.faults.switches.createdStatus)
  return one(module.root, show(added, call), status)
}

/** Changes a record by already checked values: only sent keys change, null clears (docs/sdp-api.md 5). */
export function editRecord(call: Call, record: StoredRecord, sent: Record<string, unknown>): StoredRecord | Reply {
  const { module, portal, world } = call
  for (const key of Object.keys(sent)) if (module.fields[key]?.addOnly) throw fail.notEditable(key)
  const changed = structuredClone(record)
  keep(changed, sent, module)
  const cleared = Object.keys(sent).filter(key => module.fields[key]?.mandatory && isEmpty(changed[key]))
  if (cleared.length > 0) throw fail.mandatory(cleared)
  settleDependents(module, changed, sent, call)
  checkUnique(module, changed, sent, call)
  const change = { record: changed, before: record, sent }
  const instead = module.beforeSave?.(change, call)
  if (instead) return instead
  insert(portal, module.table, changed)
  module.afterSave?.(change, call)
  world.changed()
  return changed
}

function edit(call: Call): Reply {
  const { module } = call
  const edited = editRecord(call, recordOf(call), parseFields(rootInput(call), module.fields, call))
  if (isReply(edited)) return edited
  const keys = call.world.faults.switches.editAnswer === 'id' ? ['id'] : undefined
  return one(module.root, show(edited, call, keys))
}

/** Removes a record and everything below it. */
export function removeDeep(call: Call, record: StoredRecord, module: Module = call.module): void {
  for (const child of module.children ?? []) {
    for (const row of childrenOf(call.portal, child.table, record.id)) removeDeep(call, row, child)
  }
  remove(call.portal, module.table, record.id)
}

function deleteRecord(call: Call, record: StoredRecord): void {
  if (call.module.onDelete) call.module.onDelete(record, call)
  else removeDeep(call, record)
  call.world.changed()
}

/** DELETE of one record, or of several with `?ids=`. */
function deleteOne(call: Call): Reply {
  if (call.record) {
    deleteRecord(call, call.record)
    return call.world.faults.switches.emptyDelete ? { status: 204 } : done()
  }
  const ids = (call.form.ids ?? '').split(',').filter(Boolean)
  if (ids.length === 0) throw fail.invalidUrl()
  const results = ids.map(id => {
    try {
      const record = visibleRows(call).find(row => row.id === parseId(id))
      if (!record) throw fail.invalidUrl()
      deleteRecord(call, record)
      return { id }
    } catch (failure) {
      if (failure instanceof ApiFailure) return { id, failure }
      throw failure
    }
  })
  return bulk(results)
}
