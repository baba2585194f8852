import { z } from 'zod'
import { cut } from '../../cut.ts'
import { isSdpError } from '../../sdp/errors.ts'
import { text } from '../../sdp/json.ts'
import { child, path, type SdpPath } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import { holds, settled } from '../../sdp/settle.ts'
import { after } from '../closing.ts'
import { consent } from '../consent.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine, textToHtml } from '../markdown.ts'
import { dryRun, person, requestId } from '../params.ts'
import { nameLine, number } from '../request-view.ts'
import { ToolError } from '../result.ts'

/** Levels go from 1 to 5 (docs/sdp-api.md 7.4). */
const highestLevel = 5

export const requestApproval = defineTool({
  name: 'request_approval',
  title: 'Ask for approval',
  toolset: 'requests_extra',
  description:
    'Adds a level of approval with these approvers to a ticket and mails them. Asks the person first; a sent mail cannot be taken back.',
  input: {
    request_id: requestId,
    approvers: z.array(person).min(1).max(10),
    message: z.string().max(4_000).optional().describe('Text of the mail'),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'write',
  openWorld: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, approvers, message, confirm_token, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const list = child(path`/requests/${id}`, 'approval_levels')
    const agreed = await consent(call, {
      tool: 'request_approval',
      subject: { id, approvers, message },
      async prepare() {
        const [ticket, people, level] = await Promise.all([
          call.records.head(call.sdp, 'request', id, ['display_id', 'subject']),
          Promise.all(approvers.map(who => call.people.resolve(call.sdp, who, 'any', 'approvers'))),
          nextLevel(call, list),
        ])
        const names = people.map(one => nameLine(one.person) ?? '')
        const subject = text(ticket.subject) ?? ''
        return {
          plan: { number: number(ticket), subject, people, level },
          preview: { ticket: number(ticket), subject: strangersLine(subject), level, approvers: names, message },
          question: `Ask ${names.join(', ')} to approve ticket #${number(ticket)}?`,
        }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    const { people, level, subject } = agreed.plan
    call.approvals.forget('request', id)
    const created = await settled(
      async () => entity(await call.sdp.post(list, { approval_level: { level } }), 'approval_level'),
      async () => {
        const page = await call.sdp.list(list, { row_count: 10, start_index: 1 })
        return page.rows.find(row => Number(text(row.level)) === level)
      },
    )
    const approvals = child(list, text(created.id) ?? '', 'approvals')
    const added: string[] = []
    const ids: string[] = []
    for (const { person: approver, reference } of people) {
      const step = () =>
        settled(
          async () => entity(await call.sdp.post(approvals, { approval: { approver: reference } }), 'approval'),
          async () => {
            const page = await call.sdp.list(approvals, { row_count: 50, start_index: 1 })
            return page.rows.find(row => holds(row, { approver: reference }))
          },
        )
      const done =
        added.length > 0 ? `Level ${level} holds ${added.join(', ')}.` : `Level ${level} was added, without approvers.`
      const approval = await after(done, step)
      added.push(nameLine(approval.approver) ?? nameLine(approver) ?? '')
      ids.push(text(approval.id) ?? '')
    }
    return {
      data: {
        done: true,
        number: agreed.plan.number,
        level,
        level_id: text(created.id),
        approvers: added,
        mail: await notify(call, approvals, ids, `Approval needed: ${subject}`, message),
        url: call.site.link('requests', id),
      },
    }
  },
})

async function nextLevel(call: ToolCall, list: SdpPath): Promise<number> {
  const levels = (await call.sdp.list(list, { row_count: 10, start_index: 1 })).rows
  const level = 1 + Math.max(0, ...levels.map(row => Number(text(row.level)) || 0))
  if (level <= highestLevel) return level
  throw new ToolError('The ticket has five levels of approval already.', 'Ask an approver of the last level.')
}

/** @returns what may be said about the mail */
async function notify(
  call: ToolCall,
  approvals: SdpPath,
  ids: string[],
  subject: string,
  message: string | undefined,
): Promise<string> {
  const body = {
    notification: {
      subject: cut(subject.toWellFormed(), 250),
      description: textToHtml(message ?? 'Please decide on this ticket.'),
    },
  }
  try {
    const query = { ids: ids.filter(id => id !== '').join(',') }
    await call.sdp.operate(approvals, 'send_notification', body, { query, repeatable: false })
    return 'sent'
  } catch (error) {
    if (!isSdpError(error) || error.kind === 'cancelled') throw error
    return `not confirmed (${error.message}); the site may mail approvers by itself. Do not say that a mail was sent.`
  }
}
