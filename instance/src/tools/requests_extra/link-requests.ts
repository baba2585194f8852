import { z } from 'zod'
import { at, rows, text } from '../../sdp/json.ts'
import { child, path } from '../../sdp/path.ts'
import { settled } from '../../sdp/settle.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { dryRun, requestId } from '../params.ts'
import { ToolError } from '../result.ts'

export const linkRequests = defineTool({
  name: 'link_requests',
  title: 'Link tickets',
  toolset: 'requests_extra',
  description: 'Links tickets to one ticket, or removes the links. The tickets stay as they are.',
  input: {
    request_id: requestId,
    others: z.array(z.string().min(1)).min(1).max(25).describe('Ticket numbers or ids'),
    comments: z.string().max(250).optional(),
    remove: z.boolean().optional(),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, others, comments, remove = false, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const wanted = await Promise.all(others.map(other => call.requests.id(call.sdp, other)))
    if (wanted.includes(id))
      throw new ToolError('A ticket cannot be linked to itself.', 'Take it out of others.', { fields: ['others'] })
    const present = await linked(call, id)
    // what is as asked already is left out, so that the call can be repeated
    const open = wanted.filter(other => present.includes(other) === remove)
    const head = { id, url: call.site.link('requests', id) }
    if (dry_run)
      return { data: { ...head, dry_run: true, nothing_sent: true, would: remove ? 'unlink' : 'link', ids: open } }
    if (open.length > 0) {
      const link_requests = open.map(other => ({
        linked_request: { id: other },
        ...(comments && !remove ? { comments } : {}),
      }))
      const method = remove ? 'DELETE' : 'POST'
      const options = { method, repeatable: false } as const
      await settled<unknown>(
        () => call.sdp.operate(path`/requests/${id}`, 'link_requests', { link_requests }, options),
        async () => {
          const now = await linked(call, id)
          return wanted.every(other => now.includes(other) !== remove) || undefined
        },
      )
    }
    const after = await linked(call, id)
    return {
      data: {
        ...head,
        done: wanted.every(other => after.includes(other) !== remove),
        linked: after.length > 0 ? after : 'none',
      },
    }
  },
})

/** The list refuses any input (docs/sdp-api.md 18.15). */
async function linked(call: ToolCall, id: string): Promise<string[]> {
  const body = await call.sdp.get(child(path`/requests/${id}`, '_link_requests'))
  return rows(body.link_requests)
    .map(row => text(at(row, 'linked_request.id')))
    .filter(other => other !== undefined)
}
