import type { Json } from '../../sdp/json.ts'
import type { ToolCall } from '../define.ts'
import { fieldSet, flag, line, markdown, moment, option, references, who } from '../field-set.ts'
import { row } from '../record-view.ts'

/** docs/sdp-api.md 9. */
export const changeFields = fieldSet('change', {
  title: line(),
  description: markdown(),
  stage: option(),
  status: option(),
  change_type: option(),
  reason_for_change: option(),
  risk: option(),
  priority: option(),
  urgency: option(),
  impact: option(),
  category: option(),
  subcategory: option(),
  item: option(),
  group: option(),
  site: option(),
  change_requester: who('any'),
  change_owner: who(),
  change_manager: who(),
  start: moment('scheduled_start_time'),
  end: moment('scheduled_end_time', 'end'),
  services: references(),
  assets: references(),
  emergency: flag(),
  roll_out_plan: markdown('roll_out_plan.roll_out_plan_description'),
  back_out_plan: markdown('back_out_plan.back_out_plan_description'),
  impact_details: markdown('impact_details.impact_details_description'),
  checklist: markdown('checklist.checklist_description'),
})

export const changeRow = row([
  'title',
  'stage',
  'status',
  'change_type',
  'risk',
  'priority',
  'change_owner',
  'group',
  'scheduled_start_time',
  'scheduled_end_time',
  'emergency',
])

export function showChange(call: ToolCall): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({ ...changeRow(raw, zone), url: call.site.link('changes', String(raw.id)) })
}
