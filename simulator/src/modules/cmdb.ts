import type { Call } from '../api/call.ts'
import { fail } from '../api/failure.ts'
import { childrenOf } from '../state.ts'
import {
  allVerbs,
  anything,
  type Change,
  type Field,
  flag,
  group,
  html,
  id,
  integer,
  type Module,
  oneOfNames,
  readOnly,
  ref,
  text,
  time,
  user,
} from './module.ts'

/** CI types of the seed by API name, with their attributes. */
const ciTypes: Record<string, { label: string; attributes: Record<string, Field> }> = {
  ci_computer: {
    label: 'Computer',
    attributes: { txt_operating_system: text(), num_memory_gb: integer(), ref_asset: ref('assets') },
  },
  ci_server: {
    label: 'Server',
    attributes: { txt_operating_system: text(), num_cores: integer(), bool_virtual: flag(), date_patched: time() },
  },
  ci_network_device: {
    label: 'Network Device',
    attributes: { txt_firmware: text(), txt_ip_address: text(), num_ports: integer() },
  },
  ci_application: { label: 'Application', attributes: { txt_version: text(), txt_vendor: text() } },
  ci_business_service: { label: 'Business Service', attributes: { txt_tier: text() } },
}

const relationshipTypes = ['Depends on', 'Runs on', 'Connected to', 'Used by', 'Hosts']

function refuseSelf({ record }: Change, call: Call): undefined {
  if (record.ci === record.parent) throw fail.unknownValue('ci')
  const isKnown = childrenOf(call.portal, 'ci_relationships', String(record.parent)).some(
    one => one.id !== record.id && one.ci === record.ci,
  )
  if (isKnown) throw fail.notUnique('ci')
  return undefined
}

const relationships: Module = {
  path: 'ci_relationships',
  table: 'ci_relationships',
  root: 'ci_relationship',
  listKey: 'ci_relationships',
  verbs: ['list', 'get', 'add', 'delete'],
  fields: {
    id,
    relationship_type: oneOfNames(relationshipTypes, { mandatory: true }),
    ci: ref('cis', { mandatory: true }),
    parent_ci: ref('cis', { readOnly: true, compute: row => row.parent }),
    created_time: time({ readOnly: true }),
  },
  beforeSave: refuseSelf,
}

/** `/cmdb/{api name}`: root and list key are the API name of the type (docs/sdp-api.md 14). */
export const cmdbModules: Module[] = Object.entries(ciTypes).map(([name, { label, attributes }]) => ({
  path: `cmdb/${name}`,
  table: 'cis',
  only: row => row.ci_type_name === name,
  root: name,
  listKey: name,
  scopes: ['cmdb'],
  verbs: allVerbs,
  fields: {
    id,
    name: text({ mandatory: true, unique: true }),
    description: html(),
    ci_attributes: group(attributes),
    linked_entity: anything(),
    linked_instance: anything(),
    linked_instance_data: anything(),
    ...readOnly({
      ci_type: anything({ compute: row => typeShown(String(row.ci_type_name)) }),
      created_by: user(),
      created_time: time(),
      last_updated_by: user(),
      last_updated_time: time(),
    }),
  },
  listFields: ['id', 'name', 'description', 'ci_type', 'created_time'],
  referenceFields: ['id', 'name', 'ci_type_name'],
  defaultSort: { field: 'name', order: 'asc' } as const,
  defaults: () => ({ ci_type_name: name, ci_type_label: label }),
  beforeSave({ record, before }, call) {
    if (before) Object.assign(record, { last_updated_by: call.caller.row.id, last_updated_time: call.world.now() })
    return undefined
  },
  children: [relationships],
}))

function typeShown(name: string): Record<string, unknown> {
  return { api_name: name, name: ciTypes[name]?.label ?? name }
}
