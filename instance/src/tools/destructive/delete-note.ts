import { z } from 'zod'
import { flag, text } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { defineTool } from '../define.ts'
import { htmlToMarkdown, strangersLine } from '../markdown.ts'
import { dryRun, requestId } from '../params.ts'
import { nameLine } from '../request-view.ts'
import { deleteAfterConsent } from './delete-below.ts'

export const deleteNote = defineTool({
  name: 'delete_note',
  title: 'Delete a note',
  toolset: 'destructive',
  description: 'Deletes a note of a ticket for good. Asks the person first.',
  input: {
    request_id: requestId,
    note_id: z.string().min(1),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  scopes: ['requests.DELETE'],
  async run({ request_id, note_id, confirm_token, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    return deleteAfterConsent(call, {
      tool: 'delete_note',
      subject: { id, note_id },
      async prepare() {
        const note = await call.requests.note(call.sdp, id, note_id)
        const preview = {
          author: nameLine(note.created_by) ?? nameLine(note.added_by),
          visible_to_requester: flag(note.show_to_requester),
          text: strangersLine(htmlToMarkdown(text(note.description) ?? ''), 300),
        }
        const plan = { path: path`/requests/${id}/notes/${note_id}`, id: note_id }
        return { plan, preview, question: 'Delete this note for good?' }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
      url: call.site.link('requests', id),
    })
  },
})
