import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { consent } from '../consent.ts'
import { defineTool } from '../define.ts'
import { strangersLine, textToHtml } from '../markdown.ts'
import { date, dryRun } from '../params.ts'
import { plainValue, time } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { formatInstant, parseInstant } from '../time.ts'

export const createAnnouncement = defineTool({
  name: 'create_announcement',
  title: 'Publish an announcement',
  toolset: 'announcements',
  description: 'Publishes an announcement that everybody of the portal may see. Asks the person first.',
  input: {
    title: z.string().min(1).max(250),
    text: z.string().min(1).max(20_000).describe('Markdown'),
    from: date.optional().describe('Default now'),
    to: date.describe('End; ISO or relative'),
    state: z.string().optional().describe('Default Published; Draft shows it to nobody'),
    banner: z.boolean().optional(),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'write',
  openWorld: true,
  scopes: [],
  async run({ title, text: body, from = 'now', to, state = 'Published', banner, confirm_token, dry_run }, call) {
    const zone = await call.zone()
    const clock = { now: call.context.now(), zone }
    const [start, end] = [parseInstant(from, clock), parseInstant(to, clock, 'end')]
    if (end <= start) throw new ToolError('It ends before it starts.', 'Correct from and to.', { fields: ['to'] })
    const preview = { title, text: body, from: formatInstant(start, zone), to: formatInstant(end, zone), state, banner }
    const agreed = await consent(call, {
      tool: 'create_announcement',
      // without the start, which moves on when it is "now"
      subject: { title, body, from, to, state, banner },
      prepare: async () => ({
        plan: undefined,
        preview,
        question: 'Publish this announcement to everybody of the portal?',
      }),
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    const created = await call.records.create(call.sdp, 'announcement', {
      title,
      description: textToHtml(body),
      from_date: { value: String(start) },
      to_date: { value: String(end) },
      state,
      ...(banner === undefined ? {} : { isbannerenabled: banner }),
    })
    const id = text(created.id)
    const actual = id ? await call.records.get(call.sdp, 'announcement', id) : created
    return {
      data: {
        done: true,
        id,
        title: strangersLine(actual.title),
        state: plainValue(actual.state, zone),
        from: time(actual.from_date, zone),
        to: time(actual.to_date, zone),
      },
    }
  },
})
