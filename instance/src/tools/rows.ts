import { at, flag, isObject, type Json, rows, text } from '../sdp/json.ts'
import { strangersHtml, strangersLine } from './markdown.ts'
import { nameLine, plainValue, time } from './request-view.ts'

/** Rows of what hangs on a record: tasks, worklogs, notes, attachments. */
export function taskRow(row: Json, zone: string): Json {
  return {
    id: text(row.id),
    title: strangersLine(row.title),
    status: nameLine(row.status),
    owner: nameLine(row.owner),
    group: nameLine(row.group),
    due: time(row.scheduled_end_time, zone),
    percent: row.percentage_completion,
    overdue: flag(row.overdue) || undefined,
  }
}

export function worklogRow(row: Json, zone: string): Json {
  const { hours, minutes } = (isObject(row.time_spent) ? row.time_spent : {}) as Json
  return {
    id: text(row.id),
    owner: nameLine(row.owner),
    start: time(row.start_time, zone),
    minutes: Number(text(hours) ?? 0) * 60 + Number(text(minutes) ?? 0),
    type: nameLine(row.worklog_type),
    description: strangersLine(row.description, 300),
  }
}

export function noteRow(raw: Json, zone: string): Json {
  return {
    id: text(raw.id),
    author: plainValue(raw.created_by ?? raw.added_by ?? raw.performed_by, zone),
    at: plainValue(raw.created_time ?? raw.added_time ?? raw.performed_time, zone),
    text: strangersHtml(raw.description),
  }
}

export function attachments(raw: Json): Json[] {
  return rows(raw.attachments).map(row => ({
    id: text(row.id) ?? text(row.file_id),
    name: strangersLine(row.name),
    type: strangersLine(row.content_type),
    size: text(at(row, 'size.display_value')) ?? text(row.size) ?? text(at(row, 'size.value')),
  }))
}
