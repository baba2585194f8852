import { z } from 'zod'
import { flag } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { settled } from '../../sdp/settle.ts'
import { defineTool } from '../define.ts'
import { dryRun } from '../params.ts'
import { nameLine, number } from '../request-view.ts'

export const restoreRequest = defineTool({
  name: 'restore_request',
  title: 'Bring a ticket back from the trash',
  toolset: 'destructive',
  description: 'Brings a ticket back from the trash.',
  input: { request_id: z.string().min(1).describe('Long id, as trash_request gave it'), dry_run: dryRun },
  effect: 'write',
  idempotent: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    if (dry_run) return { data: { dry_run: true, nothing_sent: true, would_restore: id } }
    const before = await call.requests.get(call.sdp, id).catch(() => undefined)
    // takes no body at all (docs/sdp-api.md 18.15)
    if (!before || flag(before.is_trashed) === true) {
      await settled<unknown>(
        () => call.sdp.operate(path`/requests/${id}`, 'restore_from_trash', undefined, { repeatable: false }),
        async () => flag((await call.requests.get(call.sdp, id)).is_trashed) !== true || undefined,
      )
    }
    const ticket = await call.requests.get(call.sdp, id)
    return {
      data: {
        done: flag(ticket.is_trashed) !== true,
        number: number(ticket),
        status: nameLine(ticket.status),
        url: call.site.link('requests', id),
      },
    }
  },
})
