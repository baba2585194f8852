import { z } from 'zod'
import type { Json } from '../../sdp/json.ts'
import type { ToolCall } from '../define.ts'
import { amount, fieldSet, line, markdown, moment, option, who } from '../field-set.ts'
import { row } from '../record-view.ts'

const schedule = {
  description: markdown(),
  status: option('project_status'),
  priority: option(),
  owner: who(),
  start: moment('scheduled_start_time'),
  end: moment('scheduled_end_time', 'end'),
  percent: amount('percentage_completion', z.int().min(0).max(100)),
  estimated_hours: amount(),
}

/** docs/sdp-api.md 11. */
export const projectFields = fieldSet('project', {
  title: line(),
  code: line({ key: 'project_code', longest: 50 }),
  ...schedule,
  project_type: option(),
  site: option(),
  department: option('department'),
})

/** Without `project`, which is refused inside a milestone (docs/sdp-api.md 11). */
export const milestoneFields = fieldSet('project', { title: line(), ...schedule })

const shown = [
  'title',
  'status',
  'priority',
  'owner',
  'percentage_completion',
  'scheduled_start_time',
  'scheduled_end_time',
]
export const projectRow = row(['project_code', ...shown])
export const milestoneRow = row(shown)

export function showProject(call: ToolCall): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({ ...projectRow(raw, zone), url: call.site.link('projects', String(raw.id)) })
}
