import { z } from 'zod'
import { type Approval, isPending } from '../../sdp/approvals.ts'
import { at, type Json, text } from '../../sdp/json.ts'
import { child } from '../../sdp/path.ts'
import type { Person } from '../../sdp/people.ts'
import { isPerson } from '../../sdp/people.ts'
import { recordPath } from '../../sdp/records.ts'
import { entity } from '../../sdp/requests.ts'
import { settled } from '../../sdp/settle.ts'
import { consent } from '../consent.ts'
import { defineTool } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { dryRun, parentId } from '../params.ts'
import { nameLine } from '../request-view.ts'
import { ToolError } from '../result.ts'

export const decideApproval = defineTool({
  name: 'decide_approval',
  title: 'Approve or reject',
  toolset: 'approvals',
  description:
    'Approves or rejects what waits for your approval on a ticket or change, with a comment. Asks the person first; cannot be taken back; refuses your own requests.',
  input: {
    module: z.enum(['request', 'change']).optional().describe('Default request'),
    parent_id: parentId,
    approval_id: z.string().optional().describe('When several wait'),
    decision: z.enum(['approve', 'reject']),
    comment: z.string().max(250).optional().describe('Needed to reject'),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  openWorld: true,
  scopes: ['requests.UPDATE'],
  async run({ module = 'request', parent_id, approval_id, decision, comment, confirm_token, dry_run }, call) {
    if (decision === 'reject' && !comment)
      throw new ToolError('A rejection needs a reason.', 'Give comment.', { fields: ['comment'] })
    const id = await call.records.id(call.sdp, module, parent_id)
    const agreed = await consent(call, {
      tool: 'decide_approval',
      subject: { module, id, approval_id, decision, comment },
      async prepare() {
        const [record, me] = await Promise.all([
          call.records.head(call.sdp, module, id, headFields[module]),
          call.people.me(call.sdp),
        ])
        refuseOwn(record, me)
        // what was listed a moment ago need not be read again: the site itself refuses a decision that was made since
        const { levelId, level, approval } = choose(await call.approvals.recent(call.sdp, module, id), me, approval_id)
        const number = text(record.display_id)
        return {
          plan: { levelId, approvalId: text(approval.id) ?? '', number },
          preview: {
            decision,
            [module]: number,
            subject: strangersLine(record.subject ?? record.title),
            requester: nameLine(record.requester) ?? nameLine(record.change_requester),
            level,
            comment,
          },
          question: `${decision === 'approve' ? 'Approve' : 'Reject'} ${module} ${number} in your name?`,
        }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    const { levelId, approvalId, number } = agreed.plan
    const path = child(recordPath(module, id), 'approval_levels', levelId, 'approvals', approvalId)
    const body = { approval: { comments: comment ?? '' } }
    call.approvals.forget(module, id)
    const read = async () => entity(await call.sdp.get(path), 'approval')
    await settled<unknown>(
      () => call.sdp.operate(path, decision, body, { repeatable: false }),
      async () => (isPending((await read()).status) ? undefined : true),
    )
    const after = await read()
    const status = nameLine(after.status)
    return {
      data: {
        done: new RegExp(`^${decision}`, 'i').test(status ?? ''),
        status,
        level_status: nameLine(at(after, 'approval_level.status')),
        [module]: number,
        url: call.site.link(`${module}s`, id),
      },
    }
  },
})

/** What the preview shows and the refusal of one's own requests looks at. */
const headFields = {
  request: ['display_id', 'subject', 'requester', 'on_behalf_of'],
  change: ['display_id', 'title', 'change_requester'],
}

/** Nobody approves what they asked for themselves. */
function refuseOwn(record: Json, me: Person): void {
  const asked = ['requester', 'change_requester', 'on_behalf_of']
  if (!asked.some(field => at(record, field) !== undefined && isPerson(record[field], me))) return
  throw new ToolError(
    'This is your own request; nobody approves their own.',
    'Somebody else must decide; change the approver in the portal if needed.',
  )
}

function choose(all: Approval[], me: Person, wanted: string | undefined): Approval {
  const waiting = all.filter(({ approval }) => isPerson(approval.approver, me) && isPending(approval.status))
  const found = wanted ? waiting.filter(({ approval }) => text(approval.id) === wanted) : waiting
  if (found.length === 1 && found[0]) return found[0]
  throw new ToolError(
    found.length > 1 ? 'Several approvals wait for you here.' : 'Nothing waits for your approval here.',
    found.length > 1 ? 'Give approval_id.' : 'See list_my_approvals. Only the approver may decide.',
    { fields: ['approval_id'], allowed: waiting.map(({ approval, level }) => `${text(approval.id)} (level ${level})`) },
  )
}
