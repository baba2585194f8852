import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { flag, type Json, text } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { holds, settled } from '../../sdp/settle.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { htmlToMarkdown, textToHtml } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'
import { ToolError } from '../result.ts'

export const editNote = defineTool({
  name: 'edit_note',
  title: 'Change a note',
  toolset: 'requests_extra',
  description:
    'Replaces the text of a note or changes who sees it. Making it visible to the requester cannot be unseen.',
  input: {
    request_id: requestId,
    note_id: z.string().min(1),
    text: z.string().min(1).max(60_000).optional().describe('Markdown, the whole note'),
    visibility: z.enum(['private', 'requester']).optional(),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, note_id, text: body, visibility, dry_run }, call) {
    if (body === undefined && visibility === undefined)
      throw new ToolError('There is nothing to change.', 'Give text or visibility.')
    const id = await call.requests.id(call.sdp, request_id)
    const before = await call.requests.note(call.sdp, id, note_id)
    const wasVisible = flag(before.show_to_requester) ?? false
    const note: Json = {
      description: body === undefined ? before.description : textToHtml(body),
      show_to_requester: visibility === undefined ? wasVisible : visibility === 'requester',
    }
    const head = { note_id, url: call.site.link('requests', id) }
    if (dry_run) {
      return {
        data: {
          ...head,
          dry_run: true,
          nothing_sent: true,
          text_before: htmlToMarkdown(text(before.description) ?? ''),
          would_send: note,
        },
      }
    }
    await settled<unknown>(
      () => put(call, id, note_id, note),
      async () => holds(await call.requests.note(call.sdp, id, note_id), note) || undefined,
    )
    const after = await call.requests.note(call.sdp, id, note_id)
    const isVisible = flag(after.show_to_requester) ?? false
    const took = htmlToMarkdown(text(after.description) ?? '') === htmlToMarkdown(text(note.description) ?? '')
    return {
      data: {
        ...head,
        done: took && isVisible === note.show_to_requester,
        visibility: isVisible ? 'requester' : 'private',
      },
    }
  },
})

/** `request_note` on Cloud, `note` elsewhere (docs/sdp-api.md 7.3). */
async function put(call: ToolCall, id: string, noteId: string, note: Json): Promise<void> {
  try {
    await call.sdp.put(path`/requests/${id}/notes/${noteId}`, { request_note: note })
  } catch (error) {
    if (!isSdpError(error, 'invalid-value') || !error.fields.includes('request_note')) throw error
    await call.sdp.put(path`/requests/${id}/notes/${noteId}`, { note })
  }
}
