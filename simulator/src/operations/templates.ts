import type { Call, Reply } from '../api/call.ts'
import { one } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { udfDefinitions } from '../api/fields.ts'
import type { Module } from '../modules/module.ts'
import { rowById, type StoredRecord } from '../state.ts'

const requesterFields = ['subject', 'description', 'category', 'urgency', 'impact', 'site', 'attachments']
const technicianSections: Record<string, string[]> = {
  'Requester Details': ['requester', 'on_behalf_of', 'site', 'email_ids_to_notify'],
  Details: [
    'subject',
    'description',
    'request_type',
    'mode',
    'level',
    'category',
    'subcategory',
    'item',
    'attachments',
  ],
  Assignment: ['status', 'group', 'technician', 'priority', 'urgency', 'impact', 'impact_details'],
  Schedule: ['due_by_time', 'scheduled_start_time', 'scheduled_end_time'],
  Assets: ['assets', 'configuration_items'],
  Resolution: ['resolution.content'],
}

/** The two layouts of a request template: sections of fields, each with its mandatory mark (docs/sdp-api.md 7.6). */
export function layoutsOf(template: StoredRecord, call: Call): Record<string, unknown>[] {
  const additional = udfDefinitions(call).map(row => `udf_fields.${String(row.field_key)}`)
  const mandatory = ['subject', ...call.world.faults.switches.mandatoryRequestFields]
  const fieldsOf = (names: string[]) => names.map(name => ({ name, mandatory: mandatory.includes(name) }))
  const section = (name: string, names: string[], i: number) => ({
    id: `${template.id.slice(0, -2)}${String(10 + i)}`,
    name,
    fields: fieldsOf(names),
  })
  const technician = { ...technicianSections, ...(additional.length > 0 ? { 'Additional Fields': additional } : {}) }
  return [
    {
      name: 'technician_layout',
      sections: Object.entries(technician).map(([name, names], i) => section(name, names, i)),
    },
    { name: 'requester_layout', sections: [section('Details', requesterFields, 0)] },
  ]
}

export function templateNamed(call: Call, id: string): StoredRecord {
  const template = rowById(call.portal, 'request_templates', id)
  if (!template) throw fail.invalidUrl()
  return template
}

/** The whole template with its layouts, seen from a request or from /request_templates. `module` is the requests module. */
export function templateWithLayout(call: Call, templateId: string, module: Module): Reply {
  const template = templateNamed(call, templateId)
  return one('request_template', {
    id: template.id,
    name: template.name,
    comments: template.comments ?? null,
    is_service_template: template.is_service_template === true,
    show_to_requester: template.show_to_requester !== false,
    is_default: template.is_default === true,
    inactive: template.inactive === true,
    request: template.request ?? {},
    has_tasks: false,
    has_checklists: false,
    layouts: layoutsOf(template, { ...call, module }),
  })
}
