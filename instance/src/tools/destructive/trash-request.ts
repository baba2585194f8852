import { z } from 'zod'
import { isSdpError, SdpError } from '../../sdp/errors.ts'
import { flag } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { settled } from '../../sdp/settle.ts'
import { consent } from '../consent.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'
import { nameLine, number } from '../request-view.ts'

export const trashRequest = defineTool({
  name: 'trash_request',
  title: 'Move a ticket to the trash',
  toolset: 'destructive',
  description:
    'Moves a ticket to the trash, from where restore_request brings it back while the site keeps it. Asks the person first; never purges.',
  input: { request_id: requestId, confirm_token: z.string().optional().describe('From the preview'), dry_run: dryRun },
  effect: 'destructive',
  scopes: ['requests.DELETE'],
  async run({ request_id, confirm_token, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const agreed = await consent(call, {
      tool: 'trash_request',
      subject: { id },
      async prepare() {
        const ticket = await call.requests.get(call.sdp, id)
        const preview = {
          ticket: number(ticket),
          subject: strangersLine(ticket.subject),
          requester: nameLine(ticket.requester),
          status: nameLine(ticket.status),
        }
        return { plan: number(ticket), preview, question: `Move ticket #${number(ticket)} to the trash?` }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    await settled(
      () => trash(call, id),
      async () => ((await isGone(call, id)) ? null : undefined),
    )
    return { data: { done: await isGone(call, id), number: agreed.plan, id, back: 'restore_request with this id' } }
  },
})

/** Only the operation that certainly trashes: what a bare DELETE does on Cloud is unclear, it may purge (docs/sdp-api.md 7.1). */
async function trash(call: ToolCall, id: string): Promise<null> {
  try {
    await call.sdp.operate(path`/requests/${id}`, 'move_to_trash', undefined, { method: 'DELETE', repeatable: false })
    return null
  } catch (error) {
    if (!isSdpError(error, 'not-found')) throw error
    throw new SdpError('not-found', 'This site offers no trash operation by its API; nothing was deleted.', {
      ...error.details,
      nextStep: 'Delete the ticket in the portal.',
    })
  }
}

async function isGone(call: ToolCall, id: string): Promise<boolean> {
  try {
    return flag((await call.requests.get(call.sdp, id)).is_trashed) === true
  } catch (error) {
    if (isSdpError(error, 'not-found', 'denied')) return true
    throw error
  }
}
