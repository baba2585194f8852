import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { type Json, text } from '../../sdp/json.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { diff } from '../diff.ts'
import { strangersLine } from '../markdown.ts'
import { optionName, person } from '../params.ts'
import { resolveFields } from '../request-fields.ts'
import { number } from '../request-view.ts'
import { ToolError } from '../result.ts'

const most = 25

export const bulkUpdateRequests = defineTool({
  name: 'bulk_update_requests',
  title: 'Change many tickets',
  toolset: 'requests_extra',
  description:
    'Sets the same fields on up to 25 tickets. First a dry run (default) that shows every ticket and gives a plan_token; then dry_run=false with that token. Stops at the first limit of the site; the site may mail people for each.',
  input: {
    requests: z.array(z.string().min(1)).min(1).max(most).describe('Ticket numbers or ids'),
    status: optionName.optional(),
    priority: optionName.optional(),
    category: optionName.optional(),
    subcategory: optionName.optional(),
    group: optionName.optional(),
    technician: person.optional(),
    reason: z.string().max(250).optional(),
    dry_run: z.boolean().optional().describe('Default true'),
    plan_token: z.string().optional().describe('From the dry run'),
  },
  effect: 'destructive',
  scopes: ['requests.UPDATE'],
  async run({ requests, reason, dry_run = true, plan_token, status, ...fields }, call) {
    const ids = await call.requests.ids(call.sdp, requests)
    const { payload, asked } = await resolveFields(call, fields)
    if (status) {
      const reference = await call.names.resolve(call.sdp, 'status', status)
      payload.status = { id: reference.id }
      asked.status = reference.name
    }
    if (Object.keys(asked).length === 0) throw new ToolError('There is nothing to change.', 'Give at least one field.')
    if (reason) payload[status ? 'status_change_comments' : 'update_reason'] = reason
    const subject = { ids, payload: JSON.stringify(payload) }
    if (dry_run)
      return {
        data: {
          ...(await plan(call, ids, asked)),
          plan_token: call.confirmations.issue('bulk_update_requests', subject),
        },
      }
    if (!plan_token || !call.confirmations.redeem(plan_token, 'bulk_update_requests', subject)) {
      throw new ToolError(
        'The plan_token is missing, used up, older than ten minutes, or tickets or fields changed. Nothing was done.',
        'Call with dry_run=true, show the plan to the person, then call with the same input and its plan_token.',
        { fields: ['plan_token'] },
      )
    }
    return { data: await carryOut(call, ids, payload, asked) }
  },
})

async function plan(call: ToolCall, ids: string[], asked: Record<string, string | null>): Promise<Json> {
  const zone = await call.zone()
  const present = await read(call, ids, asked)
  const tickets = present.map(ticket => {
    // the present value stands where the value after the write would
    const now = diff(asked, undefined, ticket, zone).filter(({ note }) => note !== undefined)
    return {
      number: number(ticket),
      id: text(ticket.id),
      subject: strangersLine(ticket.subject, 80),
      changes: now.map(({ field, actual, asked: wanted }) => `${field}: ${actual} -> ${wanted ?? 'empty'}`),
    }
  })
  return {
    dry_run: true,
    nothing_sent: true,
    tickets,
    next: 'Show this to the person; only when they agree, call again with the same input, dry_run=false and this plan_token.',
  }
}

/** All of them in one list, in the given order. @throws SdpError `not-found` for one that is not there any more */
async function read(call: ToolCall, ids: string[], asked: Record<string, string | null>): Promise<Json[]> {
  const fields = ['display_id', 'subject', ...Object.keys(asked)]
  const found = await call.records.many(call.sdp, 'request', ids, fields)
  await call.progress(found.size, ids.length, 'tickets read')
  // what the list does not show is asked for by itself, so that the failure names the reason
  return Promise.all(ids.map(async id => found.get(id) ?? call.requests.get(call.sdp, id)))
}

/** One after the other, so that a cancelled call stops between two tickets. */
async function carryOut(
  call: ToolCall,
  ids: string[],
  payload: Json,
  asked: Record<string, string | null>,
): Promise<Json> {
  const zone = await call.zone()
  const tickets: Json[] = []
  for (const [index, before] of (await read(call, ids, asked)).entries()) {
    const id = ids[index] ?? ''
    const result = await one(call, id, before, payload, asked, zone)
    tickets.push(result.shown)
    await call.progress(index + 1, ids.length, `ticket ${result.shown.number ?? id}`)
    if (result.isEnd) break
  }
  const failed = tickets.filter(({ done }) => done !== true).length
  return {
    done: failed === 0 && tickets.length === ids.length,
    changed: tickets.length - failed,
    failed,
    not_tried: ids.slice(tickets.length),
    tickets,
  }
}

async function one(
  call: ToolCall,
  id: string,
  before: Json,
  payload: Json,
  asked: Record<string, string | null>,
  zone: string,
) {
  try {
    const after = await call.requests.change(call.sdp, id, payload)
    call.undo.remember(id, before, Object.keys(asked))
    const different = diff(asked, before, after, zone).filter(({ note }) => note !== undefined)
    return { shown: { number: number(after), id, done: different.length === 0, not_as_asked: different }, isEnd: false }
  } catch (error) {
    if (!isSdpError(error) || call.signal.aborted) throw error
    // what stops one will stop all
    const isEnd = isSdpError(error, 'limited', 'missing-scope', 'down', 'drift')
    return { shown: { id, done: false, error: error.message, fields: error.fields } as Json, isEnd }
  }
}
