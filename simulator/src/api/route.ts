import type { Module, Operations, Verb } from '../modules/module.ts'
import { type Portal, rowById, type StoredRecord } from '../state.ts'
import type { Call, Reply, Step } from './call.ts'
import { fail } from './failure.ts'
import { parseId } from './references.ts'

/** What a path below /api/v3 means. */
export type Target = {
  module: Module
  /** Modules and records on the way, outermost first. */
  trail: Step[]
  record?: StoredRecord
} & (
  | { what: 'verb'; verb: Verb }
  | { what: 'operation'; run: (call: Call) => Reply; params: Record<string, string>; name: string }
  | { what: 'lookup'; field: string[] }
)

export interface RouteOptions {
  /** Whether `close` is as good as `_close` (docs/sdp-api.md 6). */
  plainOperationNames: boolean
}

const collectionVerbs: Record<string, Verb> = { GET: 'list', POST: 'add', DELETE: 'delete' }
const recordVerbs: Record<string, Verb> = { GET: 'get', PUT: 'edit', DELETE: 'delete' }

/**
 * Finds module, record and action for a method and path segments.
 * @throws ApiFailure 4007 for an unknown path, operation or record, 4001 for an id that is no number
 */
export function route(
  modules: readonly Module[],
  portal: Portal,
  method: string,
  segments: string[],
  options: RouteOptions,
): Target {
  const [head = '', type, ...rest] = segments
  // A CI type's API name is part of its module's path (14).
  const joined = head === 'cmdb' && type ? [`cmdb/${type}`, ...rest] : segments
  return walk(modules, portal, method, joined, [], options)
}

function walk(
  modules: readonly Module[],
  portal: Portal,
  method: string,
  [head = '', ...rest]: string[],
  trail: Step[],
  options: RouteOptions,
): Target {
  const module = modules.find(one => one.path === head || one.aliases?.includes(head))
  if (!module) throw fail.invalidUrl()
  const base = { module, trail }
  if (rest.length === 0) return verb(base, collectionVerbs[method])

  const onCollection = findOperation(module.collectionOperations, method, rest, options)
  if (onCollection) return { ...base, ...onCollection }
  const first = rest[0] ?? ''
  if (first.startsWith('_')) throw fail.invalidUrl()
  if (module.offersLookups && method === 'GET' && isLookupPath(module, rest))
    return { ...base, what: 'lookup', field: rest }

  const id = parseId(first)
  const record = rowById(portal, module.table, id)
  if (!record || !isInPlace(module, record, trail, portal)) throw fail.invalidUrl()
  const below = rest.slice(1)
  if (below.length === 0) return verb({ ...base, record }, recordVerbs[method])

  const onRecord = findOperation(module.operations, method, below, options)
  if (onRecord) return { ...base, record, ...onRecord }
  const children = module.children ?? []
  if (children.some(child => child.path === below[0] || child.aliases?.includes(below[0] ?? '')))
    return walk(children, portal, method, below, [...trail, { module, record }], options)
  if (module.offersLookups && method === 'GET' && isLookupPath(module, below))
    return { ...base, record, what: 'lookup', field: below }
  throw fail.invalidUrl()
}

/** Whether a record is one of the module's, below the record before it. */
function isInPlace(module: Module, record: StoredRecord, trail: Step[], portal: Portal): boolean {
  if (!(module.only?.(record) ?? true)) return false
  const parent = trail.at(-1)?.record
  return !parent || record.parent === parent.id || (module.isBelow?.(record, parent, portal) ?? false)
}

function verb(base: { module: Module; trail: Step[]; record?: StoredRecord }, wanted: Verb | undefined): Target {
  if (!wanted || !base.module.verbs.includes(wanted)) throw fail.invalidUrl()
  return { ...base, what: 'verb', verb: wanted }
}

function isLookupPath(module: Module, [name = '', key, ...more]: string[]): boolean {
  const field = Object.hasOwn(module.fields, name) ? module.fields[name] : undefined
  if (field?.type === 'udf') return key !== undefined && more.length === 0
  if (field?.type === 'group') return key !== undefined && field.fields?.[key] !== undefined && more.length === 0
  return (field?.type === 'ref' || field?.type === 'refs') && key === undefined
}

/**
 * Matches segments against `METHOD pattern` keys. A pattern is an operation name (`close` is reached as `_close` and,
 * where the site still serves them, as `close`), a name that needs its underscore (`_metainfo`), or a path written
 * with a leading slash that is taken as it stands, `:name` being a number.
 */
function findOperation(
  operations: Operations | undefined,
  method: string,
  segments: string[],
  { plainOperationNames }: RouteOptions,
): Found | undefined {
  for (const [key, run] of Object.entries(operations ?? {})) {
    const [operationMethod, pattern = ''] = key.split(' ')
    if (operationMethod !== method) continue
    const params = pattern.startsWith('/')
      ? matchPath(pattern.slice(1).split('/'), segments)
      : matchName(pattern, segments, plainOperationNames)
    if (params) return { what: 'operation', run, params, name: pattern }
  }
  return undefined
}

type Found = { what: 'operation'; run: (call: Call) => Reply; params: Record<string, string>; name: string }

function matchPath(wanted: string[], given: string[]): Record<string, string> | undefined {
  if (wanted.length !== given.length) return undefined
  const params: Record<string, string> = {}
  for (const [i, segment] of wanted.entries()) {
    const value = given[i] ?? ''
    if (segment.startsWith(':') && /^\d+$/.test(value)) params[segment.slice(1)] = value
    else if (segment !== value) return undefined
  }
  return params
}

function matchName(name: string, given: string[], plainOperationNames: boolean): Record<string, string> | undefined {
  if (given.length !== 1) return undefined
  const names = name.startsWith('_') ? [name] : plainOperationNames ? [`_${name}`, name] : [`_${name}`]
  return names.includes(given[0] ?? '') ? {} : undefined
}
