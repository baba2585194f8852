import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { type Json, name } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { consent } from '../consent.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'
import { number } from '../request-view.ts'
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
    const ids = [...new Set(await Promise.all(others.map(other => call.requests.id(call.sdp, other))))]
    if (ids.includes(id))
      throw new ToolError('A ticket cannot be merged into itself.', 'Take it out of others.', { fields: ['others'] })
    const [survivor, ...merged] = await Promise.all([id, ...ids].map(one => call.requests.get(call.sdp, one)))
    const answer = await consent(call, {
      tool: 'merge_requests',
      subject: { id, ids },
      preview: { stays: survivor && line(survivor), goes: merged.map(line), cannot_be_undone: true },
      question: `Merge ${merged.map(ticket => `#${number(ticket)}`).join(', ')} into #${survivor && number(survivor)}? This cannot be undone.`,
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if (answer) return answer
    await call.sdp.operate(
      path`/requests/${id}`,
      'merge_requests',
      { merge_requests: ids.map(one => ({ id: one })) },
      { repeatable: false },
    )
    const gone = await Promise.all(ids.map(one => isGone(call, one)))
    return {
      data: {
        done: gone.every(Boolean),
        stays: survivor && line(survivor),
        merged: merged.map(line),
        url: call.site.link('requests', id),
      },
    }
  },
})

function line(ticket: Json): string {
  return `#${number(ticket)} ${strangersLine(ticket.subject, 80)} (${name(ticket.requester)}, ${name(ticket.status)})`
}

async function isGone(call: ToolCall, id: string): Promise<boolean> {
  try {
    await call.requests.get(call.sdp, id)
    return false
  } catch (error) {
    if (isSdpError(error, 'not-found', 'denied')) return true
    throw error
  }
}
