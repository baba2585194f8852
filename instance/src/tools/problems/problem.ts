import type { Json } from '../../sdp/json.ts'
import type { ToolCall } from '../define.ts'
import { fieldSet, flag, line, markdown, moment, option, references, who } from '../field-set.ts'
import { row } from '../record-view.ts'

/** docs/sdp-api.md 8. */
export const problemFields = fieldSet('problem', {
  title: line(),
  description: markdown(),
  status: option(),
  priority: option(),
  urgency: option(),
  impact: option(),
  category: option(),
  subcategory: option(),
  item: option(),
  group: option(),
  site: option(),
  technician: who(),
  due_by: moment('due_by_time', 'end'),
  assets: references(),
  symptoms: markdown('symptoms.symptoms_description'),
  impact_details: markdown('impact_details.impact_details_description'),
  root_cause: markdown('root_cause.root_cause_description'),
  workaround: markdown('workaround_details.workaround_details_description'),
  resolution: markdown('resolution_details.resolution_details_description'),
  known_error: flag('known_error_details.is_known_error'),
})

export const problemRow = row([
  'title',
  'status',
  'priority',
  'technician',
  'group',
  'category',
  'created_time',
  'due_by_time',
  'is_overdue',
])

export function showProblem(call: ToolCall): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({ ...problemRow(raw, zone), url: call.site.link('problems', String(raw.id)) })
}
