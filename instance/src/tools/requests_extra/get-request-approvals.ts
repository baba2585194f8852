import { text } from '../../sdp/json.ts'
import { defineTool } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { requestId } from '../params.ts'
import { nameLine, number, time } from '../request-view.ts'

export const getRequestApprovals = defineTool({
  name: 'get_request_approvals',
  title: 'Read the approvals of a ticket',
  toolset: 'requests_extra',
  description: 'Lists who must approve a ticket, level by level, with status, times and comments.',
  input: { request_id: requestId },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ request_id }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const [ticket, found, zone] = await Promise.all([
      call.requests.get(call.sdp, id),
      call.approvals.of(call.sdp, 'request', id),
      call.zone(),
    ])
    const approvals = found.map(({ approval, level, levelId, levelStatus }) => ({
      level,
      level_status: nameLine(levelStatus),
      level_id: levelId,
      approval_id: text(approval.id),
      approver: nameLine(approval.approver),
      status: nameLine(approval.status),
      sent: time(approval.sent_on, zone),
      acted: time(approval.action_taken_on, zone),
      comments: strangersLine(approval.comments),
    }))
    return {
      data: {
        number: number(ticket),
        approval_status: nameLine(ticket.approval_status),
        approvals: approvals.length > 0 ? approvals : 'none',
        url: call.site.link('requests', id),
      },
    }
  },
})
