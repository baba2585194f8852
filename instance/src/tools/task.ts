import { z } from 'zod'
import type { Json } from '../sdp/json.ts'
import type { ToolCall } from './define.ts'
import { optionName, person } from './params.ts'
import { nameLine } from './request-view.ts'
import { formatInstant, parseInstant } from './time.ts'

/** Fields that add_task and update_task share. */
export const taskInputs = {
  status: optionName.optional(),
  owner: person.optional(),
  group: optionName.optional(),
  priority: optionName.optional(),
  start: z.string().optional().describe('ISO or relative'),
  due: z.string().optional(),
  percent: z.int().min(0).max(100).optional(),
}
export type TaskInput = {
  title?: string
  status?: string
  owner?: string
  group?: string
  priority?: string
  type?: string
  start?: string
  due?: string
  percent?: number
  estimate_minutes?: number
}

/** Resolves names; `asked` is what the diff after the write compares. */
export async function resolveTask(
  call: ToolCall,
  input: TaskInput,
): Promise<{ task: Json; asked: Record<string, string | null> }> {
  const task: Json = {}
  const asked: Record<string, string | null> = {}
  const set = (key: string, value: unknown, shown: string | null) => {
    task[key] = value
    asked[key] = shown
  }
  if (input.title) set('title', input.title.trim(), input.title.trim())
  for (const [key, field] of [
    ['status', 'status'],
    ['group', 'group'],
    ['priority', 'priority'],
    ['task_type', 'type'],
  ] as const) {
    const value = input[field]
    if (value === undefined) continue
    set(key, await call.names.reference(call.sdp, field, value, { module: 'task' }), value)
  }
  if (input.owner) {
    const isNobody = /^(none|nobody|unassigned)$/i.test(input.owner)
    const found = isNobody ? undefined : await call.people.resolve(call.sdp, input.owner, 'technician', 'owner')
    set('owner', found ? found.reference : null, found ? (nameLine(found.person) ?? null) : null)
  }
  const clock = { now: call.context.now(), zone: await call.zone() }
  for (const [key, value, edge] of [
    ['scheduled_start_time', input.start, 'start'],
    ['scheduled_end_time', input.due, 'end'],
  ] as const) {
    if (value === undefined) continue
    const instant = parseInstant(value, clock, edge)
    set(key, { value: String(instant) }, formatInstant(instant, clock.zone))
  }
  if (input.percent !== undefined) set('percentage_completion', input.percent, String(input.percent))
  if (input.estimate_minutes !== undefined) {
    const minutes = input.estimate_minutes
    task.estimated_effort_days = 0
    task.estimated_effort_hours = Math.floor(minutes / 60)
    task.estimated_effort_minutes = minutes % 60
  }
  return { task, asked }
}
