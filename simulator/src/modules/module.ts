import type { Call, Reply } from '../api/call.ts'
import type { Portal, StoredRecord } from '../state.ts'

/**
 * The vocabulary of the module table. A field is described once and from that the engine knows how to check it,
 * keep it, show it, search it, sort by it and describe it in `_metainfo`.
 */
export type FieldType =
  | 'id'
  | 'text'
  | 'html'
  | 'flag'
  | 'integer'
  | 'decimal'
  | 'time'
  | 'datestamp'
  | 'ref'
  | 'refs'
  | 'texts'
  | 'money'
  | 'duration'
  | 'group'
  | 'files'
  | 'rows'
  | 'udf'
  | 'any'

export interface Field {
  type: FieldType
  /** Table a reference points to. */
  to?: string
  /** Which rows of that table may be chosen. */
  only?: (row: StoredRecord) => boolean
  /** The chosen row must belong to what another field of the same record holds (subcategory within category). */
  within?: string
  /** Fields of a group such as `root_cause`. */
  fields?: Fields
  mandatory?: boolean
  readOnly?: boolean
  unique?: boolean
  maxLength?: number
  minimum?: number
  maximum?: number
  /** Allowed texts, compared without case. */
  oneOf?: readonly string[]
  /** Taken on write, never shown (`update_reason`). */
  writeOnly?: boolean
  /** Refused on edit. */
  addOnly?: boolean
  /** Worked out when read instead of kept. Gets the record; returns a stored-form value of the field's type. */
  compute?: (record: StoredRecord, call: Call) => unknown
  /** Most files or elements a list may hold. */
  maxItems?: number
  label?: string
}

export type Fields = Record<string, Field>

export type Verb = 'list' | 'get' | 'add' | 'edit' | 'delete'
export const allVerbs: readonly Verb[] = ['list', 'get', 'add', 'edit', 'delete']
export const readVerbs: readonly Verb[] = ['list', 'get']

/** Keyed by method and pattern, for example `PUT close`, `GET _metainfo` or `GET /resolutions`; see `findOperation`. */
export type Operations = Record<string, (call: Call) => Reply>

export interface Module {
  /** Path segment, for example `requests`. */
  path: string
  /** Other segments that reach the same module. */
  aliases?: string[]
  /** Where the records are kept; several modules may look at one table. */
  table: string
  /** Which rows of the table this module shows. */
  only?: (row: StoredRecord) => boolean
  /** Root key of one record, written and read. */
  root: string
  /** Other roots accepted on writing. */
  otherRoots?: string[]
  /** Root of GET one, when it differs (request notes). */
  readRoot?: string
  /** Key of lists; the path when absent. */
  listKey?: string
  /** Scope modules of which one suffices (docs/sdp-api.md 2.9). Children inherit it. */
  scopes?: readonly string[]
  verbs: readonly Verb[]
  fields: Fields
  /** Keys of a default list row; all when absent. */
  listFields?: readonly string[]
  /** Keys of a reference to such a record. */
  referenceFields?: readonly string[]
  defaultSort?: { field: string; order: 'asc' | 'desc' }
  /** `filter_by` views. */
  views?: Record<string, (record: StoredRecord, call: Call) => boolean>
  children?: Module[]
  /** Operations on one record. */
  operations?: Operations
  /** Operations on the collection. */
  collectionOperations?: Operations
  /** Lookup options under `/<path>/<field>` and `/<path>/{id}/<field>`. */
  offersLookups?: boolean
  /** Numbers its records (`display_id`). */
  numbered?: boolean
  /** The module's name in `_metainfo`, udf_fields and templates, for example `request`. */
  entity?: string
  /** Only administrators write. */
  adminOnly?: boolean
  /** Requesters may read and add too. */
  forRequesters?: readonly Verb[]
  /** Operations on a record that requesters may carry out too. */
  requesterOperations?: readonly string[]
  /** Who sees a record, when not everybody. */
  isVisible?: (record: StoredRecord, call: Call) => boolean
  /** Which visible records a list shows; the rest is reached by id only (trash). */
  isListed?: (record: StoredRecord, call: Call) => boolean
  /** Rows that are below `parent` without being its direct children (tasks of a project's milestones). */
  isBelow?: (record: StoredRecord, parent: StoredRecord, portal: Portal) => boolean
  /** The rows of a collection that is gathered from other tables (conversations). */
  rows?: (call: Call) => StoredRecord[]
  /** Refuses `page` in list_info (3.1, project tasks). */
  refusesPage?: boolean
  /** Status of a create that the switch does not decide (task comments: 201). */
  createdStatus?: number
  /** Fields that count as absent on edit and add depending on the site; called before checks. */
  extraMandatory?: (input: Record<string, unknown>, call: Call) => string[]
  /** Values a new record starts with. */
  defaults?: (call: Call) => Record<string, unknown>
  /** Last look at a checked change, may throw a failure or return a whole reply instead of saving. */
  beforeSave?: (change: Change, call: Call) => Reply | undefined
  /** Follow-ups after a change was saved. */
  afterSave?: (change: Change, call: Call) => void
  /** Replaces removing the row. */
  onDelete?: (record: StoredRecord, call: Call) => void
}

export interface Change {
  /** The record as it will be; edit it in place. */
  record: StoredRecord
  /** Its former self; undefined for a new record. */
  before?: StoredRecord
  /** What was sent, in stored form; write-only fields included. */
  sent: Record<string, unknown>
}

type Options = Omit<Field, 'type'>

export const text = (options: Options = {}): Field => ({ type: 'text', maxLength: 250, ...options })
export const html = (options: Options = {}): Field => ({ type: 'html', ...options })
export const flag = (options: Options = {}): Field => ({ type: 'flag', ...options })
export const integer = (options: Options = {}): Field => ({ type: 'integer', ...options })
export const decimal = (options: Options = {}): Field => ({ type: 'decimal', ...options })
export const time = (options: Options = {}): Field => ({ type: 'time', ...options })
export const money = (options: Options = {}): Field => ({ type: 'money', ...options })
export const duration = (options: Options = {}): Field => ({ type: 'duration', ...options })
export const texts = (options: Options = {}): Field => ({ type: 'texts', ...options })
export const anything = (options: Options = {}): Field => ({ type: 'any', ...options })
export const group = (fields: Fields, options: Options = {}): Field => ({ type: 'group', fields, ...options })
export const ref = (to: string, options: Options = {}): Field => ({ type: 'ref', to, ...options })
export const refs = (to: string, options: Options = {}): Field => ({ type: 'refs', to, ...options })
export const files = (options: Options = {}): Field => ({ type: 'files', to: 'attachments', ...options })
/** A choice from fixed names that travels as `{"name": ...}`. */
export const oneOfNames = (names: readonly string[], options: Options = {}): Field =>
  group({ name: text({ oneOf: names }) }, options)
/** A list of small objects such as the lines of a purchase order. */
export const rows = (fields: Fields, options: Options = {}): Field => ({ type: 'rows', fields, ...options })
export const udfFields = (): Field => ({ type: 'udf' })
/** A person of the portal. */
export const user = (options: Options = {}): Field => ref('users', options)
/** A person who is a technician. */
export const technician = (options: Options = {}): Field =>
  ref('users', { only: row => row.is_technician === true, ...options })
export const id: Field = { type: 'id', readOnly: true }
export const displayId: Field = { type: 'id', readOnly: true, label: 'ID' }

/** Marks every field of a list as read only. */
export function readOnly(fields: Fields): Fields {
  return Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, { ...field, readOnly: true }]))
}

export const listKeyOf = (module: Module): string => module.listKey ?? module.path
