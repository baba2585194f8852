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

/** A list of choices an administrator keeps (docs/sdp-api.md 17.2): readable with setup.READ, changed by administrators. */
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

/** Subcategories and items are kept under their parent and name it; new ones may lag in lists (18.12). */
function dependent(path: string, root: string, parentKey: string, parentTable: string, children: Module[]): Module {
  const parent = ref(parentTable, { readOnly: true, compute: row => row.parent })
  return lookup(
    path,
    root,
    { description, deleted, [parentKey]: parent },
    {
      referenceFields: ['id', 'name'],
      children,
      defaults: () => ({ isFresh: true }),
      isListed: (row, call) => !call.world.faults.switches.subcategoryLag || row.isFresh !== true,
    },
  )
}
const items = dependent('items', 'item', 'subcategory', 'subcategories', [])
const subcategories = dependent('subcategories', 'subcategory', 'category', 'categories', [items])

function stages(path: string, root: string): Module {
  return lookup(path, root, { internal_name: text({ readOnly: true }), stage_index: integer({ readOnly: true }) })
}

function stagedStatuses(path: string, root: string, stageTable: string): Module {
  return lookup(
    path,
    root,
    { internal_name: text({ readOnly: true }), stage: ref(stageTable) },
    { referenceFields: ['id', 'name', 'internal_name', 'stage'] },
  )
}

export const lookupModules: Module[] = [
  lookup(
    'categories',
    'category',
    { description, deleted, technician: technician() },
    { children: [subcategories], referenceFields: ['id', 'name', 'deleted'] },
  ),
  { ...subcategories, verbs: readVerbs },
  { ...items, verbs: readVerbs },
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
  lookup('checklist_templates', 'checklist_template', { description }, { referenceFields: ['id', 'name'] }),
  lookup('space_campuses', 'space_campus', { site: ref('sites') }),
  lookup('space_buildings', 'space_building', { campus: ref('space_campuses') }),
  lookup('space_floors', 'space_floor', { building: ref('space_buildings') }),
  lookup('space_rooms', 'space_room', { floor: ref('space_floors') }),
  lookup('slas', 'sla', { description, due_by_hours: integer() }, { verbs: [], referenceFields: ['id', 'name'] }),
  lookup('approval_statuses', 'approval_status', {}, { verbs: [] }),
  lookup(
    'change_types',
    'change_type',
    { description, color, pre_approved: flag() },
    { referenceFields: ['id', 'name', 'color', 'pre_approved'] },
  ),
  lookup('change_risks', 'change_risk', { description }, { referenceFields: ['id', 'name'] }),
  lookup('reason_for_changes', 'reason_for_change', { description }, { referenceFields: ['id', 'name'] }),
  stages('change_stages', 'change_stage'),
  stagedStatuses('change_statuses', 'change_status', 'change_stages'),
  stages('release_stages', 'release_stage'),
  stagedStatuses('release_statuses', 'release_status', 'release_stages'),
  lookup('release_types', 'release_type', { description, color }, { referenceFields: ['id', 'name', 'color'] }),
  lookup('reason_for_releases', 'reason_for_release', { description }, { referenceFields: ['id', 'name'] }),
  lookup('project_statuses', 'project_status', { color }, { referenceFields: ['id', 'name', 'color'] }),
  lookup('project_types', 'project_type', { description }, { referenceFields: ['id', 'name'] }),
  lookup('project_roles', 'project_role', { description }, { referenceFields: ['id', 'name'] }),
  lookup('project_templates', 'project_template', {}),
  lookup('solution_statuses', 'solution_status', {}, { verbs: [] }),
  lookup('solution_templates', 'solution_template', {}),
  lookup('contract_types', 'contract_type', {}),
  lookup('contract_statuses', 'contract_status', {}, { verbs: [] }),
  lookup('purchase_order_statuses', 'purchase_order_status', {}, { verbs: [] }),
  lookup('purchase_order_templates', 'purchase_order_template', {}),
  lookup('services', 'service', { description }, { referenceFields: ['id', 'name'] }),
]
