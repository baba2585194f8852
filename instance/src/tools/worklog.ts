import { at, type Json, text } from '../sdp/json.ts'
import { child, type SdpPath } from '../sdp/path.ts'
import { entity } from '../sdp/requests.ts'
import { holds, settled } from '../sdp/settle.ts'
import type { ToolCall } from './define.ts'
import { nameLine } from './request-view.ts'
import { ToolError } from './result.ts'
import { formatInstant, parseInstant } from './time.ts'

export type WorklogInput = {
  minutes?: number
  start?: string
  end?: string
  description?: string
  type?: string
  technician?: string
}

/** A worklog ready to send, with its owner's name for the preview. */
export type PlannedWorklog = { worklog: Json; owner: string; minutes: number; start: string; end: string }

/**
 * Works out owner, start, end and length. Without times the work ended now.
 * @throws ToolError for times that contradict each other
 */
export async function planWorklog(call: ToolCall, input: WorklogInput): Promise<PlannedWorklog> {
  const zone = await call.zone()
  const clock = { now: call.context.now(), zone }
  const given = {
    start: input.start && parseInstant(input.start, clock),
    end: input.end && parseInstant(input.end, clock, 'end'),
  }
  const length = input.minutes === undefined ? undefined : input.minutes * 60_000
  if (length === undefined && !(typeof given.start === 'number' && typeof given.end === 'number')) {
    throw new ToolError('It is not clear how long the work took.', 'Give minutes, or start and end.', {
      fields: ['minutes'],
    })
  }
  const end =
    typeof given.end === 'number'
      ? given.end
      : typeof given.start === 'number'
        ? given.start + (length ?? 0)
        : clock.now
  const start = typeof given.start === 'number' ? given.start : end - (length ?? 0)
  if (end <= start)
    throw new ToolError('The work ends before it starts.', 'Correct start and end.', { fields: ['start', 'end'] })
  const minutes = Math.round((length ?? end - start) / 60_000)
  if (minutes * 60_000 > end - start + 60_000) {
    throw new ToolError('minutes is more than lies between start and end.', 'Leave one of them out.', {
      fields: ['minutes'],
    })
  }
  const { person, reference } = await call.people.resolve(
    call.sdp,
    input.technician ?? 'me',
    'technician',
    'technician',
  )
  const type = input.type ? await call.names.reference(call.sdp, 'worklog_type', input.type) : undefined
  return {
    owner: nameLine(person) ?? '',
    minutes,
    start: formatInstant(start, zone),
    end: formatInstant(end, zone),
    worklog: {
      owner: reference,
      ...(input.description ? { description: input.description } : {}),
      start_time: { value: String(start) },
      end_time: { value: String(end) },
      // both as strings, as the wire examples have them (docs/sdp-api.md 5)
      time_spent: { hours: String(Math.floor(minutes / 60)), minutes: String(minutes % 60) },
      ...(type ? { worklog_type: type } : {}),
    },
  }
}

/** Adds the worklog and reads it back. */
export async function addWorklog(call: ToolCall, parent: SdpPath, planned: PlannedWorklog): Promise<Json> {
  const list = child(parent, 'worklogs')
  const add = async () => entity(await call.sdp.post(list, { worklog: planned.worklog }), 'worklog')
  const { start_time, end_time } = planned.worklog
  const created = await settled(add, async () => {
    const page = await call.sdp.list(list, { row_count: 100, start_index: 1 })
    // the very same times, to the millisecond, are no coincidence
    return page.rows.find(row => holds(row, { start_time, end_time }))
  })
  const actual =
    Number(text(at(created, 'time_spent.hours')) ?? 0) * 60 + Number(text(at(created, 'time_spent.minutes')) ?? 0)
  return {
    worklog_id: text(created.id),
    minutes: planned.minutes,
    owner: nameLine(created.owner) ?? planned.owner,
    start: planned.start,
    end: planned.end,
    warning:
      actual > 0 && actual !== planned.minutes
        ? `Asked for ${planned.minutes} minutes, the site shows ${actual}.`
        : undefined,
  }
}
