import {
  allVerbs,
  type Fields,
  flag,
  group,
  id,
  integer,
  type Module,
  readVerbs,
  ref,
  refs,
  technician,
  text,
  user,
} from './module.ts'

const setup = ['setup'] as const

/** A list of choices an administrator keeps (fact sheet 17.2): readable with setup.READ, changed by administrators. */
function lookup(path: string, root: string, more: Fields = {}, options: Partial<Module> = {}): Module {
  const extras = Object.keys(more).filter(key => more[key]?.type !== 'refs')
  return {
    path,
    table: path,
    root,
    scopes: setup,
    verbs: allVerbs,
    adminOnly: true,
    forRequesters: readVerbs,
    fields: { id, name: text({ mandatory: true, unique: true, maxLength: 100 }), ...more },
    referenceFields: ['id', 'name', ...extras],
    defaultSort: { field: 'id', order: 'asc' },
    ...options,
  }
}

const description = text()
const deleted = flag({ readOnly: true })
const inactive = flag()
const color = text({ maxLength: 20 })

const items: Module = lookup('items', 'item', { description, deleted, subcategory: ref('subcategories') })
const subcategories: Module = lookup('subcategories', 'subcategory', {
  description,
  deleted,
  category: ref('categories'),
})

/** Children are kept under their parent record; the top-level twins show the same rows and name the parent. */
const parentRef = (to: string) => ref(to, { readOnly: true, compute: row => row.parent })
const nestedItems: Module = {
  ...items,
  scopes: undefined,
  fields: { ...items.fields, subcategory: parentRef('subcategories') },
  referenceFields: ['id', 'name'],
  isVisible: (row, call) => !call.world.faults.switches.subcategoryLag || row.isFresh !== true,
}
const nestedSubcategories: Module = {
  ...nestedItems,
  ...subcategories,
  scopes: undefined,
  isVisible: nestedItems.isVisible,
  fields: { ...subcategories.fields, category: parentRef('categories') },
  referenceFields: ['id', 'name'],
  defaults: () => ({ isFresh: true }),
  children: [nestedItems],
}

export const lookupModules: Module[] = [
  lookup(
    'categories',
    'category',
    { description, deleted, technician: technician() },
    { children: [nestedSubcategories], referenceFields: ['id', 'name', 'deleted'] },
  ),
  { ...nestedSubcategories, verbs: readVerbs, scopes: setup, defaults: undefined },
  { ...nestedItems, verbs: readVerbs, scopes: setup },
  lookup('priorities', 'priority', { description, color, deleted }, { referenceFields: ['id', 'name', 'color'] }),
  lookup('urgencies', 'urgency', { description, deleted }, { referenceFields: ['id', 'name'] }),
  lookup('impacts', 'impact', { description, deleted }, { referenceFields: ['id', 'name'] }),
  lookup('levels', 'level', { description, deleted }, { referenceFields: ['id', 'name'] }),
  lookup('modes', 'mode', { description, deleted }, { referenceFields: ['id', 'name'] }),
  lookup('request_types', 'request_type', { description, deleted }, { referenceFields: ['id', 'name'] }),
  lookup(
    'statuses',
    'status',
    { internal_name: text(), color, in_progress: flag(), stop_timer: flag(), description, deleted },
    { referenceFields: ['id', 'name', 'internal_name', 'color', 'in_progress', 'stop_timer'] },
  ),
  lookup(
    'support_groups',
    'support_group',
    { description, deleted, site: ref('sites'), technicians: refs('users') },
    { aliases: ['groups'], referenceFields: ['id', 'name', 'site', 'deleted'] },
  ),
  lookup(
    'sites',
    'site',
    { description, deleted, region: ref('regions') },
    { referenceFields: ['id', 'name', 'deleted'] },
  ),
  lookup(
    'departments',
    'department',
    { description, site: ref('sites'), head: user() },
    {
      referenceFields: ['id', 'name', 'site'],
    },
  ),
  lookup('regions', 'region', { description }),
  lookup('user_groups', 'user_group', { description }, { referenceFields: ['id', 'name'] }),
  lookup(
    'roles',
    'role',
    {
      description,
      view: text({ readOnly: true }),
      is_admin: flag({ readOnly: true }),
      may_delete: flag({ readOnly: true }),
    },
    { referenceFields: ['id', 'name'] },
  ),
  lookup(
    'closure_codes',
    'closure_code',
    {
      description,
      inactive,
      module: group({ name: text({ oneOf: ['request', 'change', 'release', 'problem'] }) }, { mandatory: true }),
    },
    { referenceFields: ['id', 'name'] },
  ),
  lookup(
    'service_categories',
    'service_category',
    { description, inactive },
    { referenceFields: ['id', 'name', 'inactive'] },
  ),
  lookup('worklog_types', 'worklog_type', { description, color }, { referenceFields: ['id', 'name'] }),
  lookup('task_types', 'task_type', { description, color }, { referenceFields: ['id', 'name', 'color'] }),
  lookup('tags', 'tag', {}),
  lookup('slas', 'sla', { description, due_by_hours: integer() }, { verbs: [], referenceFields: ['id', 'name'] }),
  lookup('approval_statuses', 'approval_status', {}, { verbs: [] }),
  lookup('services', 'service', { description }, { referenceFields: ['id', 'name'] }),
]
