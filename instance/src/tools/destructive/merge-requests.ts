import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import type { Json } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { settled } from '../../sdp/settle.ts'
import { consent } from '../consent.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'
import { nameLine, number } from '../request-view.ts'
import { ToolError } from '../result.ts'

export const mergeRequests = defineTool({
  name: 'merge_requests',
  title: 'Merge tickets',
  toolset: 'destructive',
  description:
    'Merges tickets into one: their mails and notes move there and they are gone. Cannot be undone. Asks the person first.',
  input: {
    request_id: requestId.describe('The ticket that stays'),
    others: z.array(z.string().min(1)).min(1).max(10).describe('Tickets that are merged into it'),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  scopes: ['requests.UPDATE'],
  async run({ request_id, others, confirm_token, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const ids = await call.requests.ids(call.sdp, others)
    if (ids.includes(id))
      throw new ToolError('A ticket cannot be merged into itself.', 'Take it out of others.', { fields: ['others'] })
    const agreed = await consent(call, {
      tool: 'merge_requests',
      subject: { id, ids },
      async prepare() {
        const [survivor, ...merged] = await tickets(call, [id, ...ids])
        const plan = { stays: survivor && line(survivor), goes: merged.map(line) }
        return {
          plan,
          preview: { ...plan, cannot_be_undone: true },
          question: `Merge ${merged.map(ticket => `#${number(ticket)}`).join(', ')} into #${survivor && number(survivor)}? This cannot be undone.`,
        }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    const merge = () =>
      call.sdp.operate(
        path`/requests/${id}`,
        'merge_requests',
        { merge_requests: ids.map(one => ({ id: one })) },
        { repeatable: false },
      )
    await settled<unknown>(merge, async () => ((await areGone(call, ids)) ? true : undefined))
    return {
      data: {
        done: await areGone(call, ids),
        stays: agreed.plan.stays,
        merged: agreed.plan.goes,
        url: call.site.link('requests', id),
      },
    }
  },
})

function line(ticket: Json): string {
  return `#${number(ticket)} ${strangersLine(ticket.subject, 80)} (${nameLine(ticket.requester)}, ${nameLine(ticket.status)})`
}

const lineFields = ['display_id', 'subject', 'requester', 'status']

/** In the given order. @throws SdpError `not-found` for one that is not there any more */
async function tickets(call: ToolCall, ids: string[]): Promise<Json[]> {
  const found = await call.records.many(call.sdp, 'request', ids, lineFields)
  // what the list does not show is asked for by itself, so that the failure names the reason
  return Promise.all(ids.map(async id => found.get(id) ?? call.requests.get(call.sdp, id)))
}

/** A merged ticket cannot be fetched any more (docs/sdp-api.md 7.1); several are looked for in one list. */
async function areGone(call: ToolCall, ids: string[]): Promise<boolean> {
  const [only, ...others] = ids
  if (only === undefined || others.length > 0)
    return (await call.records.many(call.sdp, 'request', ids, ['display_id'])).size === 0
  try {
    await call.requests.get(call.sdp, only)
    return false
  } catch (error) {
    if (isSdpError(error, 'not-found', 'denied')) return true
    throw error
  }
}
