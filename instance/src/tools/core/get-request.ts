import { z } from 'zod'
import type { Sdp } from '../../sdp/client.ts'
import { isSdpError } from '../../sdp/errors.ts'
import { at, flag, isObject, type Json, rows, text } from '../../sdp/json.ts'
import { path, type SdpPath } from '../../sdp/path.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersHtml, strangersLine } from '../markdown.ts'
import { requestId } from '../params.ts'
import { fieldAt, nameLine, plainValue, requestDetail, time } from '../request-view.ts'
import { attachments, taskRow, worklogRow } from '../rows.ts'

const includes = [
  'description',
  'resolution',
  'tasks',
  'worklogs',
  'approvals',
  'attachments',
  'linked',
  'sla',
  'custom',
  'allowed_actions',
] as const
type Include = (typeof includes)[number]

export const getRequest = defineTool({
  name: 'get_request',
  title: 'Read a ticket',
  toolset: 'core',
  description:
    'Reads one ticket with description, resolution, attachments and additional fields; include adds tasks, worklogs, approvals, linked tickets, SLA times or what you may do. Notes and mails: get_request_activity.',
  input: {
    request_id: requestId,
    include: z.array(z.enum(includes)).optional().describe('Replaces the default parts'),
    fields: z.array(z.string()).optional().describe('Only these SDP fields'),
    part: z.int().min(1).optional().describe('Next part of a long answer'),
  },
  output: {
    number: z.string().optional(),
    id: z.string(),
    subject: z.string().optional(),
    status: z.string().optional(),
    url: z.string(),
  },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ request_id, include, fields, part }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const [raw, zone] = await Promise.all([call.requests.get(call.sdp, id), call.zone()])
    const url = call.site.link('requests', id)
    const inParts = { tool: 'get_request', part }
    if (fields) {
      const picked = Object.fromEntries(fields.map(field => [field, plainValue(fieldAt(raw, field), zone)]))
      const missing = fields.filter(field => picked[field] === undefined || picked[field] === null)
      return { data: { id, url, ...picked, empty_or_unknown: missing }, inParts }
    }
    const wanted = new Set<Include>(include ?? ['description', 'resolution', 'attachments', 'custom'])
    const parts = await Promise.all([...wanted].map(async name => [name, await readPart(name, call, id, raw, zone)]))
    return { data: { ...requestDetail(raw, zone), id, url, ...Object.fromEntries(parts) }, inParts }
  },
})

async function readPart(part: Include, call: ToolCall, id: string, raw: Json, zone: string): Promise<unknown> {
  switch (part) {
    case 'description':
      return strangersHtml(raw.description)
    case 'resolution':
      return strangersHtml(at(raw, 'resolution.content'))
    case 'attachments':
      return attachments(raw)
    case 'custom':
      return custom(raw, zone)
    case 'sla':
      return {
        name: nameLine(raw.sla),
        first_response_due: time(raw.first_response_due_by_time, zone),
        responded: time(raw.responded_time, zone),
        due: time(raw.due_by_time, zone),
        overdue: flag(raw.is_overdue),
        first_response_overdue: flag(raw.is_first_response_overdue),
        escalated: flag(raw.is_escalated),
      }
    case 'tasks':
      return rowsOf(call.sdp, path`/requests/${id}/tasks`, row => taskRow(row, zone))
    case 'worklogs':
      return rowsOf(call.sdp, path`/requests/${id}/worklogs`, row => worklogRow(row, zone))
    case 'approvals':
      return approvals(call.sdp, id, zone)
    case 'linked':
      return linked(call.sdp, id)
    case 'allowed_actions': {
      const links = await call.requests.links(call.sdp, id)
      return links ? links.map(({ name, method }) => `${name} (${method})`) : 'the site does not tell'
    }
  }
}

/** A part the person may not see does not hide the rest of the ticket: it says so. */
async function rowsOf(sdp: Sdp, list: SdpPath, show: (row: Json) => Json): Promise<unknown> {
  try {
    const page = await sdp.list(list, { row_count: 50, start_index: 1 })
    return page.rows.length > 0 ? page.rows.map(show) : 'none'
  } catch (error) {
    return refusal(error)
  }
}

function refusal(error: unknown): string {
  if (!isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) throw error
  return `not available: ${error.message}`
}

async function approvals(sdp: Sdp, id: string, zone: string): Promise<unknown> {
  try {
    const levels = await sdp.list(path`/requests/${id}/approval_levels`, { row_count: 10, start_index: 1 })
    const detailed = await Promise.all(
      levels.rows.map(async level => {
        const levelId = text(level.id) ?? ''
        const found = await sdp.list(path`/requests/${id}/approval_levels/${levelId}/approvals`, {
          row_count: 50,
          start_index: 1,
        })
        return {
          level: text(level.level) ?? levelId,
          status: nameLine(level.status),
          approvals: found.rows.map(row => ({
            id: text(row.id),
            approver: nameLine(row.approver),
            status: nameLine(row.status),
            sent: time(row.sent_on, zone),
            acted: time(row.action_taken_on, zone),
            comments: strangersLine(row.comments),
          })),
        }
      }),
    )
    return detailed.length > 0 ? detailed : 'none'
  } catch (error) {
    return refusal(error)
  }
}

/** This list refuses any list_info (docs/sdp-api.md 18.15). */
async function linked(sdp: Sdp, id: string): Promise<unknown> {
  try {
    const body = await sdp.get(path`/requests/${id}/_link_requests`)
    const found = rows(body.link_requests).map(row => ({
      number: text(at(row, 'linked_request.display_id')),
      id: text(at(row, 'linked_request.id')),
      subject: strangersLine(at(row, 'linked_request.subject')),
      comments: strangersLine(row.comments),
    }))
    return found.length > 0 ? found : 'none'
  } catch (error) {
    return refusal(error)
  }
}

function custom(raw: Json, zone: string): Json | undefined {
  if (!isObject(raw.udf_fields)) return undefined
  return Object.fromEntries(Object.entries(raw.udf_fields).map(([key, value]) => [key, plainValue(value, zone)]))
}
