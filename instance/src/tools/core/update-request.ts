import { z } from 'zod'
import { SdpError } from '../../sdp/errors.ts'
import { at, type Json } from '../../sdp/json.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { diff, sideEffects } from '../diff.ts'
import { date, dryRun, optionName, requestId } from '../params.ts'
import { type Resolved, requestFieldInputs, resolveFields } from '../request-fields.ts'
import { nameLine, number } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { formatInstant, parseInstant } from '../time.ts'

/** Fields whose change by a rule of the site is worth telling. */
const watched = [
  'status',
  'priority',
  'group',
  'technician',
  'category',
  'subcategory',
  'item',
  'level',
  'sla',
  'due_by_time',
]

export const updateRequest = defineTool({
  name: 'update_request',
  title: 'Change a ticket',
  toolset: 'core',
  description:
    'Changes fields of a ticket, all or nothing; "none" empties a field. Answers with before, asked and actual of each field, and with what the site changed by itself. To close use close_request. The site may mail people about changes.',
  input: {
    request_id: requestId,
    ...requestFieldInputs,
    status: optionName.optional(),
    on_hold_until: date.optional().describe('With an on-hold status'),
    reason: z.string().max(250).optional().describe('Shown in the history'),
    dry_run: dryRun,
  },
  output: {
    number: z.string().optional(),
    id: z.string(),
    url: z.string(),
    changes: z.array(z.looseObject({})).optional(),
  },
  effect: 'write',
  idempotent: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, status, on_hold_until, reason, dry_run, ...fields }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const [before, zone] = await Promise.all([call.requests.get(call.sdp, id), call.zone()])
    const resolved = await resolveFields(call, fields, before)
    await addStatus(call, resolved, { status, on_hold_until, reason }, zone)
    const { payload, asked } = resolved
    if (Object.keys(asked).length === 0) {
      throw new ToolError('There is nothing to change.', 'Give at least one field besides request_id.')
    }
    const head = { number: number(before), id, url: call.site.link('requests', id) }
    if (dry_run) {
      const planned = Object.entries(asked).map(([field, wanted]) => ({
        field,
        before: nameLine(at(before, field)),
        asked: wanted,
      }))
      return { data: { ...head, dry_run: true, nothing_sent: true, changes: planned } }
    }
    const after = await send(call, id, payload)
    const changes = diff(asked, before, after, zone)
    call.undo.remember(id, before, Object.keys(asked))
    return {
      data: {
        ...head,
        done: changes.every(({ note }) => note === undefined),
        changes,
        changed_by_site: sideEffects(watched, asked, before, after, zone),
      },
    }
  },
})

/** Sends the change and reads the ticket back: the answer of a PUT may show less than the record holds. */
async function send(call: ToolCall, id: string, payload: Json): Promise<Json> {
  try {
    await call.requests.update(call.sdp, id, payload)
  } catch (error) {
    if (error instanceof SdpError && error.kind === 'denied' && error.fields.includes('priority')) {
      throw new SdpError('denied', 'This site does not let the priority be set here; nothing was changed.', {
        ...error.details,
        nextStep:
          'Leave priority out. On sites with a priority matrix it follows from urgency and impact: set those. A closed ticket must be reopened first.',
      })
    }
    throw error
  }
  return call.requests.get(call.sdp, id)
}

async function addStatus(
  call: ToolCall,
  { payload, asked }: Resolved,
  input: { status?: string; on_hold_until?: string; reason?: string },
  zone: string,
): Promise<void> {
  const status = input.status ? await call.names.resolve(call.sdp, 'status', input.status) : undefined
  if (status) {
    payload.status = { id: status.id }
    asked.status = status.name
  }
  if (input.on_hold_until !== undefined) {
    if (!status)
      throw new ToolError('on_hold_until needs status, the on-hold status to set.', 'Give status too.', {
        fields: ['status'],
      })
    const until = parseInstant(input.on_hold_until, { now: call.context.now(), zone }, 'end')
    // comments of an on-hold status travel in the scheduler (docs/sdp-api.md 18.6)
    payload.onhold_scheduler = {
      scheduled_time: { value: String(until) },
      ...(input.reason ? { comments: input.reason } : {}),
    }
    asked['onhold_scheduler.scheduled_time'] = formatInstant(until, zone)
  } else if (input.reason) {
    payload[status ? 'status_change_comments' : 'update_reason'] = input.reason
  }
}
