import { Cache } from './cache.ts'
import type { Sdp } from './client.ts'
import { isSdpError, SdpError } from './errors.ts'
import { at, flag, isObject, type Json, text } from './json.ts'
import { all, type Condition, criteria, is, largestPage } from './list-info.ts'
import { child, path, type SdpPath } from './path.ts'
import { closest, plain } from './similar.ts'

/** One choice of a lookup field. `parent` is the category of a subcategory, the subcategory of an item. */
export type Option = { id: string; name: string; parent?: string; note?: string }
export type Reference = { id: string; name: string }
export type Module = 'request' | 'problem' | 'change' | 'release' | 'project' | 'asset' | 'solution' | 'task'

type Lookup = {
  /** admin lists, tried in order; most need setup.READ (docs/sdp-api.md 17.2) */
  admin: (parentId?: string) => SdpPath[]
  /** field name of the request-scoped lookup, which needs only requests.READ (7.1) */
  requestField?: string
  /** the field whose value narrows this one */
  parent?: string
  /** records of this module show values in use, the last resort (17.2 on `/statuses`) */
  seenOn?: string
  /** keeps the rows of one module where one list serves several */
  moduleField?: string
}

const lists = (...names: string[]) => names.map(name => child(path``, name))
const simple = (list: string, requestField: string | undefined, rest: Partial<Lookup> = {}): Lookup => ({
  admin: () => lists(list),
  requestField,
  ...rest,
})

const lookups: Record<string, Lookup> = {
  status: simple('statuses', 'status', { seenOn: 'requests' }),
  priority: simple('priorities', 'priority', { seenOn: 'requests' }),
  urgency: simple('urgencies', 'urgency'),
  impact: simple('impacts', 'impact'),
  level: simple('levels', 'level'),
  mode: simple('modes', 'mode'),
  request_type: simple('request_types', 'request_type'),
  category: simple('categories', 'category'),
  subcategory: {
    admin: parentId => (parentId ? [path`/categories/${parentId}/subcategories`] : lists('subcategories')),
    requestField: 'subcategory',
    parent: 'category',
  },
  item: {
    admin: parentId => (parentId ? [path`/subcategories/${parentId}/items`] : lists('items')),
    requestField: 'item',
    parent: 'subcategory',
  },
  group: { admin: () => lists('support_groups', 'groups'), requestField: 'group' },
  site: simple('sites', 'site'),
  department: simple('departments', undefined),
  template: simple('request_templates', 'template'),
  service_category: simple('service_categories', 'service_category'),
  sla: simple('slas', 'sla'),
  closure_code: simple('closure_codes', 'closure_code', { moduleField: 'module' }),
  worklog_type: simple('worklog_types', undefined),
  task_type: simple('task_types', undefined),
  task_status: simple('task_statuses', undefined, { seenOn: 'tasks' }),
  user_group: simple('user_groups', undefined),
  role: simple('roles', undefined),
  tag: simple('tags', undefined),
  topic: simple('topics', undefined),
  change_type: simple('change_types', undefined),
  change_risk: simple('change_risks', undefined),
  change_stage: simple('change_stages', undefined, { seenOn: 'changes' }),
  change_status: simple('change_statuses', undefined, { seenOn: 'changes' }),
  change_template: simple('change_templates', undefined),
  reason_for_change: simple('reason_for_changes', undefined),
  problem_status: simple('problem_statuses', 'status', { seenOn: 'problems' }),
  release_type: simple('release_types', undefined),
  release_stage: simple('release_stages', undefined, { seenOn: 'releases' }),
  release_status: simple('release_statuses', undefined, { seenOn: 'releases' }),
  project_status: simple('project_statuses', undefined, { seenOn: 'projects' }),
  project_type: simple('project_types', undefined),
  asset_state: simple('asset_states', undefined, { seenOn: 'assets' }),
  product: simple('products', undefined),
  product_type: simple('product_types', undefined),
  vendor: simple('vendors', undefined),
}
export const lookupFields = Object.keys(lookups)

/** Fields whose list differs by module: `status` of a change is not the `status` of a request. */
const byModule: Partial<Record<Module, Record<string, string>>> = {
  problem: { status: 'problem_status' },
  change: {
    status: 'change_status',
    stage: 'change_stage',
    template: 'change_template',
    risk: 'change_risk',
  },
  release: { status: 'release_status', stage: 'release_stage', risk: 'change_risk' },
  project: { status: 'project_status' },
  asset: { state: 'asset_state' },
  task: { status: 'task_status', type: 'task_type' },
}

export type LookupQuery = { module?: Module; parent?: Reference; query?: string }

export interface Names {
  /**
   * Choices of a field, as this person may see them. A list is read once and kept for ten minutes.
   * @throws SdpError `invalid-value` for a field that has no list
   */
  options(sdp: Sdp, field: string, query?: LookupQuery): Promise<{ options: Option[]; complete: boolean }>
  /**
   * Turns a name as a person writes it into a reference. Case, accents and sorting prefixes do not matter.
   * @throws SdpError `invalid-value` with close matches in `allowed`, when none or several match
   */
  resolve(sdp: Sdp, field: string, name: string, query?: LookupQuery): Promise<Reference>
  /**
   * The same for a write, where the site can decide: a name that cannot be looked up, because the list is refused or
   * not read whole, is sent as it is, and SDP answers 4001 when it does not exist.
   */
  reference(sdp: Sdp, field: string, name: string, query?: LookupQuery): Promise<{ id: string } | { name: string }>
}

const maxAgeMs = 10 * 60_000
/** A list that refused us is asked again only after a while: each refusal costs a call (docs/sdp-api.md 18.16). */
const refusedForMs = 30 * 60_000
const mostPages = 5

/** Turns names into references; one per instance, shared by all sessions of the person. */
export function createNames(options: { now: () => number }): Names {
  const loaded = new Cache<Promise<Loaded>>({ size: 200, maxAgeMs, now: options.now })
  const refused = new Cache<true>({ size: 500, maxAgeMs: refusedForMs, now: options.now })

  async function read(sdp: Sdp, field: string, query: LookupQuery): Promise<Loaded> {
    const key = listKey(field, query)
    const lookup = lookups[key]
    if (!lookup) throw unknownField(field)
    const cacheKey = [key, query.parent?.id ?? '', lookup.moduleField ? (query.module ?? 'request') : ''].join('|')
    const found = await shared(loaded, cacheKey, () => load(sdp, key, field, lookup, query))
    const search = query.query?.trim()
    if (found.complete || !search) return found
    // too long to read whole: let the site search; it searches what is written, so another spelling is another question
    return shared(loaded, `${cacheKey}|${search.toLowerCase()}`, () => load(sdp, key, field, lookup, query, search))
  }

  async function load(
    sdp: Sdp,
    key: string,
    field: string,
    lookup: Lookup,
    query: LookupQuery,
    search?: string,
  ): Promise<Loaded> {
    let last: unknown
    for (const source of sources(key, field, lookup, query)) {
      if (refused.get(source.path.path)) continue
      try {
        const found = await readAll(sdp, source, search)
        if (found.options.length > 0 || search) return keepModule(found, lookup, query)
        last = undefined
      } catch (error) {
        if (!isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) throw error
        if (isSdpError(error, 'missing-scope', 'not-found')) refused.set(source.path.path, true)
        last = error
      }
    }
    if (last) throw last
    return { options: [], complete: true }
  }

  const names: Names = {
    async options(sdp, field, query = {}) {
      const { options, complete } = await read(sdp, field, query)
      const wanted = query.query ? plain(query.query) : ''
      return { options: options.filter(option => plain(option.name).includes(wanted)), complete }
    },

    async resolve(sdp, field, name, query = {}) {
      const { options, complete } = await read(sdp, field, { ...query, query: name })
      const found = match(options, name)
      if (found.length === 1 && found[0]) return { id: found[0].id, name: found[0].name }
      const allowed = found.length > 1 ? found.map(label) : closest(name, options.map(label), 8)
      const under = query.parent ? ` under "${query.parent.name}"` : ''
      throw new SdpError(
        'invalid-value',
        found.length > 1
          ? `"${name}" fits several values of ${field}${under}.`
          : `There is no ${field} "${name}"${under} on this site.`,
        {
          fields: [field],
          allowed: allowed.length > 0 || !complete ? allowed : options.slice(0, 15).map(label),
          nextStep: `Use one of the allowed values; list_field_options with field "${field}" shows all.`,
        },
      )
    },

    async reference(sdp, field, name, query = {}) {
      const found = await read(sdp, field, { ...query, query: name }).catch(error => {
        if (isSdpError(error, 'missing-scope', 'not-found', 'denied', 'drift')) return undefined
        throw error
      })
      const isOpen = found === undefined || !found.complete || found.options.length === 0
      if (isOpen && match(found?.options ?? [], name).length === 0) return { name: name.trim() }
      return { id: (await names.resolve(sdp, field, name, query)).id }
    },
  }
  return names
}

type Loaded = { options: (Option & { module?: string })[]; complete: boolean }
/** `probe`: an admin list whose refusal says nothing about the token. */
type Source = { path: SdpPath; condition?: Condition; seenField?: string; probe?: boolean }

function listKey(field: string, query: LookupQuery): string {
  return byModule[query.module ?? 'request']?.[field] ?? field
}

function sources(key: string, field: string, lookup: Lookup, query: LookupQuery): Source[] {
  const found: Source[] = lookup.admin(query.parent?.id).map(path => ({ path, probe: true }))
  if (lookup.requestField) {
    const narrowed = lookup.parent && query.parent ? is(`${lookup.parent}.id`, query.parent.id) : undefined
    found.push({ path: child(path`/requests`, lookup.requestField), condition: narrowed })
  }
  const { module } = query
  if (module && module !== 'request' && module !== 'task') {
    // the record lookups of docs/sdp-api.md 7.1 are offered by other modules too, on some sites
    found.push({ path: child(path``, `${module}s`, field), probe: true })
  }
  if (lookup.seenOn) {
    found.push({ path: child(path``, lookup.seenOn), seenField: key.replace(/^[a-z]+_(?=status|stage|state)/, '') })
  }
  return found
}

async function readAll(sdp: Sdp, source: Source, search?: string): Promise<Loaded> {
  if (source.seenField) return seen(sdp, source, source.seenField)
  const found: Loaded['options'] = []
  const named = search ? ({ kind: 'test', field: 'name', condition: 'contains', value: search } as const) : undefined
  for (let pages = 0; ; pages++) {
    const page = await sdp.list(
      source.path,
      {
        row_count: largestPage,
        start_index: pages * largestPage + 1,
        search_criteria: criteria(all(source.condition, named)),
      },
      { probe: source.probe },
    )
    found.push(...page.rows.filter(isOffered).map(option).filter(isComplete))
    if (!page.hasMore) return { options: found, complete: true }
    if (pages + 1 >= mostPages) return { options: found, complete: false }
  }
}

/** Values in use on the newest records; never the whole list. */
async function seen(sdp: Sdp, source: Source, field: string): Promise<Loaded> {
  const page = await sdp.list(source.path, {
    row_count: largestPage,
    start_index: 1,
    sort_field: 'id',
    sort_order: 'desc',
    fields_required: [field],
  })
  const values = page.rows
    .map(row => row[field])
    .filter(isObject)
    .map(option)
    .filter(isComplete)
  return { options: [...new Map(values.map(value => [value.id, value])).values()], complete: false }
}

function keepModule(found: Loaded, lookup: Lookup, query: LookupQuery): Loaded {
  if (!lookup.moduleField) return found
  const wanted = query.module ?? 'request'
  return { ...found, options: found.options.filter(({ module }) => !module || plain(module) === wanted) }
}

/** Deleted choices stay in SDP's lists, marked (docs/sdp-api.md 17.2). */
function isOffered(row: Json): boolean {
  return flag(row.deleted) !== true && flag(row.inactive) !== true
}

function option(row: Json): Partial<Loaded['options'][number]> {
  return {
    id: text(row.id),
    name: text(row.name) ?? text(row.display_name) ?? text(row.title),
    parent: text(at(row, 'category.name')) ?? text(at(row, 'subcategory.name')),
    note: note(row),
    module: text(at(row, 'module.name')) ?? text(row.module),
  }
}

function note(row: Json): string | undefined {
  if (flag(row.is_service_template)) return 'service request'
  if (flag(row.in_progress) === false) return 'ends the work'
  if (flag(row.stop_timer)) return 'stops the SLA timer'
  return undefined
}

function isComplete(value: Partial<Option>): value is Option {
  return value.id !== undefined && value.name !== undefined
}

function label(value: Option): string {
  return value.parent ? `${value.name} (${value.parent})` : value.name
}

/** Exact spelling wins, then spelling without case, then without accents, punctuation and prefixes; else the id. */
function match(options: Option[], name: string): Option[] {
  const wanted = name.trim()
  const rules: ((value: Option) => boolean)[] = [
    value => value.id === wanted,
    value => value.name === wanted,
    value => value.name.toLowerCase() === wanted.toLowerCase(),
    value => plain(value.name) === plain(wanted) && plain(wanted) !== '',
  ]
  for (const rule of rules) {
    const found = options.filter(rule)
    if (found.length > 0) return found
  }
  return []
}

function unknownField(field: string): SdpError {
  return new SdpError('invalid-value', `"${field}" is not a field with a list of values.`, {
    fields: ['field'],
    allowed: closest(field, lookupFields, 8).concat(closest(field, lookupFields).length > 0 ? [] : lookupFields),
    nextStep: 'get_form_fields shows the fields of a form and their types.',
  })
}

/** One load for all who ask at the same time; a failed load is not kept, and one that its caller cancelled is redone. */
function shared<V>(cache: Cache<Promise<V>>, key: string, load: () => Promise<V>): Promise<V> {
  const known = cache.get(key)
  if (known) {
    return known.catch(error => {
      if (isSdpError(error, 'cancelled')) return shared(cache, key, load)
      throw error
    })
  }
  const loading = load()
  cache.set(key, loading)
  loading.catch(() => {
    if (cache.get(key) === loading) cache.delete(key)
  })
  return loading
}
