import { z } from 'zod'
import { type Json, name, text } from '../../sdp/json.ts'
import { consent } from '../consent.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { dryRun } from '../params.ts'
import { ToolError } from '../result.ts'
import { showChange } from './change.ts'

export const submitChange = defineTool({
  name: 'submit_change',
  title: 'Submit a change',
  toolset: 'changes',
  description:
    'Moves a change to its next stage, so that managers or approvers see it; the site may mail them. Asks the person first. Going back is up to the workflow of the site.',
  input: {
    change_id: z.string().min(1),
    comment: z.string().min(1).max(4_000),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'write',
  openWorld: true,
  scopes: ['changes.UPDATE'],
  async run({ change_id, comment, confirm_token, dry_run }, call) {
    const id = await call.records.id(call.sdp, 'change', change_id)
    const agreed = await consent(call, {
      tool: 'submit_change',
      subject: { id, comment },
      async prepare() {
        const change = await call.records.get(call.sdp, 'change', id)
        const next = await nextStage(call, change)
        const from = name(change.stage)
        const number = text(change.display_id)
        return {
          plan: { next, from },
          preview: { change: number, title: strangersLine(change.title), from, to: next.name, comment },
          question: `Submit change ${number} from "${from}" to "${next.name}"?`,
        }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    const { next, from } = agreed.plan
    await call.records.update(call.sdp, 'change', id, { stage: { id: next.id }, comment })
    const after = await call.records.get(call.sdp, 'change', id)
    const zone = await call.zone()
    return {
      data: {
        done: text(name(after.stage)) === next.name,
        stage_before: from,
        ...showChange(call)(after, zone),
      },
    }
  },
})

/** The stage after the present one, in the order of the site's list. */
async function nextStage(call: ToolCall, change: Json): Promise<{ id: string; name: string }> {
  const { options } = await call.names.options(call.sdp, 'stage', { module: 'change' })
  const present = options.findIndex(option => option.name === name(change.stage))
  const next = present < 0 ? undefined : options[present + 1]
  if (next) return { id: next.id, name: next.name }
  throw new ToolError(
    `After "${name(change.stage)}" no further stage is known.`,
    'Use update_change with stage and comment.',
    {
      fields: ['stage'],
      allowed: options.map(option => option.name),
    },
  )
}
