import { at, isObject, type Json, text } from '../../sdp/json.ts'
import { defineTool } from '../define.ts'
import { diff } from '../diff.ts'
import { htmlToMarkdown } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'
import { nameLine, number, plainValue } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { formatInstant } from '../time.ts'

export const revertChange = defineTool({
  name: 'revert_change',
  title: 'Undo the last change',
  toolset: 'requests_extra',
  description:
    'Puts back the fields of the last update_request or assign_request made on a ticket through this server within the hour. Mails that went out stay out.',
  input: { request_id: requestId, dry_run: dryRun },
  effect: 'write',
  scopes: ['requests.UPDATE'],
  async run({ request_id, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const last = call.undo.last(id)
    if (!last) {
      throw new ToolError(
        'No change of this ticket is remembered: only the last one made through this server within the hour can be undone.',
        'Read the history with get_request_activity and set the old values with update_request.',
      )
    }
    const [before, zone] = await Promise.all([call.requests.get(call.sdp, id), call.zone()])
    const payload: Json = {}
    const asked: Record<string, string | null> = {}
    for (const field of last.fields) {
      const old = last.before[field]
      const shown = plainValue(old, zone)
      asked[field] =
        old === null || shown === undefined
          ? null
          : field === 'description'
            ? htmlToMarkdown(String(old))
            : String(shown)
      place(payload, field, written(old))
    }
    const head = {
      number: number(before),
      id,
      changed_at: formatInstant(last.at, zone),
      url: call.site.link('requests', id),
    }
    if (dry_run) {
      const planned = Object.entries(asked).map(([field, wanted]) => ({
        field,
        now: nameLine(at(before, field)),
        back_to: wanted ?? 'empty',
      }))
      return { data: { ...head, dry_run: true, nothing_sent: true, changes: planned } }
    }
    await call.requests.update(call.sdp, id, payload)
    call.undo.forget(id)
    const after = await call.requests.get(call.sdp, id)
    const changes = diff(asked, before, after, zone)
    return { data: { ...head, done: changes.every(({ note }) => note === undefined), changes } }
  },
})

/** A read value in the form a write takes. */
function written(old: unknown): unknown {
  if (Array.isArray(old)) return old.map(written)
  if (!isObject(old)) return old
  const id = text(old.id)
  if (id !== undefined) return { id }
  return 'value' in old ? { value: old.value } : old
}

function place(payload: Json, key: string, value: unknown): void {
  const [first = key, ...rest] = key.split('.')
  payload[first] =
    rest.length === 0 ? value : { ...((payload[first] as Json | undefined) ?? {}), [rest.join('.')]: value }
}
