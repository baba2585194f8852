import { z } from 'zod'
import { isSdpError, SdpError } from '../../sdp/errors.ts'
import { at, type Json, text } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { holds, settled } from '../../sdp/settle.ts'
import { defineTool } from '../define.ts'
import { diff } from '../diff.ts'
import { dryRun, optionName, person, requestId } from '../params.ts'
import { resolveFields } from '../request-fields.ts'
import { nameLine, number } from '../request-view.ts'
import { ToolError } from '../result.ts'

export const assignRequest = defineTool({
  name: 'assign_request',
  title: 'Assign a ticket',
  toolset: 'core',
  description:
    'Assigns a ticket to a technician, a group or both; technician "me" picks it up, "none" takes it away. The site may notify the new owner.',
  input: { request_id: requestId, technician: person.optional(), group: optionName.optional(), dry_run: dryRun },
  output: {
    number: z.string().optional(),
    id: z.string(),
    url: z.string(),
    changes: z.array(z.looseObject({})).optional(),
  },
  effect: 'write',
  idempotent: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, technician, group, dry_run }, call) {
    if (technician === undefined && group === undefined) {
      throw new ToolError('Nobody to assign to.', 'Give technician, group or both.', {
        fields: ['technician', 'group'],
      })
    }
    const id = await call.requests.id(call.sdp, request_id)
    const [before, zone] = await Promise.all([call.requests.get(call.sdp, id), call.zone()])
    const { payload, asked } = await resolveFields(call, { technician, group }, before)
    const head = { number: number(before), id, url: call.site.link('requests', id) }
    if (dry_run) {
      const planned = Object.entries(asked).map(([field, wanted]) => ({
        field,
        before: nameLine(at(before, field)),
        asked: wanted,
      }))
      return { data: { ...head, dry_run: true, nothing_sent: true, changes: planned } }
    }
    const isPickup =
      technician?.trim().toLowerCase() === 'me' &&
      group === undefined &&
      text(at(before, 'technician.id')) === undefined
    const parent = path`/requests/${id}`
    const edit = async () => void (await call.requests.update(call.sdp, id, payload))
    try {
      const assign = () =>
        isPickup ? call.sdp.operate(parent, 'pickup') : call.sdp.operate(parent, 'assign', { request: payload })
      await settled<unknown>(assign, async () => holds(await call.requests.get(call.sdp, id), payload) || undefined)
    } catch (error) {
      // assigning is an edit of these fields under another name (docs/sdp-api.md 7.1)
      if (isSdpError(error, 'denied')) throw refused(error, before)
      if (!isSdpError(error, 'not-found') && !isUnknownShape(error)) throw error
      await edit()
    }
    const after = await call.requests.get(call.sdp, id)
    call.undo.remember(id, before, Object.keys(asked))
    const changes = diff(asked, before, after, zone)
    return {
      data: {
        ...head,
        done: changes.every(({ note }) => note === undefined),
        picked_up: isPickup || undefined,
        changes,
        status: nameLine(after.status),
      },
    }
  },
})

/** The operation exists but does not take this body: nothing was changed. */
function isUnknownShape(error: unknown): boolean {
  return isSdpError(error, 'invalid-value') && /EXTRA_(KEY|PARAM)/.test(error.details.said ?? '')
}

/** Some sites assign only what has a category (docs/sdp-api.md 18.11). */
function refused(error: SdpError, ticket: Json): SdpError {
  if (text(at(ticket, 'category.id')) !== undefined && text(at(ticket, 'subcategory.id')) !== undefined) return error
  return new SdpError('denied', error.message, {
    ...error.details,
    nextStep:
      'The ticket has no category or subcategory; some sites assign only with them. Set both together with technician by update_request.',
  })
}
