import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { flag, type Json, text } from '../../sdp/json.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { textToHtml } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'

export const addNote = defineTool({
  name: 'add_note',
  title: 'Add a note',
  toolset: 'core',
  description:
    'Adds a note to a ticket: private (default) or visible to the requester. Sends no mail of its own; to mail the requester use reply_to_requester.',
  input: {
    request_id: requestId,
    text: z.string().min(1).max(60_000).describe('Markdown'),
    visibility: z.enum(['private', 'requester']).optional().describe('Default private'),
    notify: z.boolean().optional().describe('Notify the assigned technician'),
    dry_run: dryRun,
  },
  output: { note_id: z.string().optional(), visibility: z.string().optional(), url: z.string() },
  effect: 'write',
  scopes: ['requests.CREATE'],
  async run({ request_id, text: body, visibility = 'private', notify = false, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const url = call.site.link('requests', id)
    const note = {
      description: textToHtml(body),
      show_to_requester: visibility === 'requester',
      notify_technician: notify,
    }
    if (dry_run) return { data: { dry_run: true, nothing_sent: true, id, url, would_add: note } }
    const created = await call.requests.addNote(call.sdp, id, note)
    const noteId = text(created.id)
    const actual = noteId ? await readBack(call, id, noteId, created) : created
    const isVisible = flag(actual.show_to_requester)
    const shown = isVisible === undefined ? undefined : isVisible ? 'requester' : 'private'
    return {
      data: {
        added: true,
        note_id: noteId,
        visibility: shown ?? `asked: ${visibility}; the site does not say what it became`,
        warning:
          shown !== undefined && shown !== visibility
            ? `Asked for ${visibility}, the site made it ${shown}.`
            : undefined,
        mail:
          visibility === 'requester'
            ? 'Visible in the portal; whether the site mails it depends on its notification rules.'
            : undefined,
        id,
        url,
      },
    }
  },
})

async function readBack(call: ToolCall, id: string, noteId: string, created: Json): Promise<Json> {
  try {
    return { ...created, ...(await call.requests.note(call.sdp, id, noteId)) }
  } catch (error) {
    if (isSdpError(error, 'cancelled')) throw error
    // the note is there; only its second look failed
    return created
  }
}
