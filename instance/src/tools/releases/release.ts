import type { Json } from '../../sdp/json.ts'
import type { ToolCall } from '../define.ts'
import { fieldSet, line, markdown, moment, option, references, who } from '../field-set.ts'
import { row } from '../record-view.ts'

/** docs/sdp-api.md 10. */
export const releaseFields = fieldSet('release', {
  title: line(),
  description: markdown(),
  stage: option(),
  status: option(),
  release_type: option(),
  risk: option(),
  priority: option(),
  urgency: option(),
  impact: option(),
  category: option(),
  group: option(),
  site: option(),
  release_requester: who('any'),
  release_engineer: who(),
  release_manager: who(),
  start: moment('scheduled_start_time'),
  end: moment('scheduled_end_time', 'end'),
  services: references(),
  roll_out_plan: markdown('roll_out_plan.roll_out_plan_description'),
  back_out_plan: markdown('back_out_plan.back_out_plan_description'),
})

export const releaseRow = row([
  'title',
  'stage',
  'status',
  'release_type',
  'risk',
  'priority',
  'release_engineer',
  'scheduled_start_time',
  'scheduled_end_time',
])

export function showRelease(call: ToolCall): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({ ...releaseRow(raw, zone), url: call.site.link('releases', String(raw.id)) })
}
