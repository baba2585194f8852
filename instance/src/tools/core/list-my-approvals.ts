import { z } from 'zod'
import { type ApprovalModule, approvalsOf, isPending } from '../../sdp/approvals.ts'
import { isSdpError } from '../../sdp/errors.ts'
import { type Json, name, text } from '../../sdp/json.ts'
import { contains, criteria } from '../../sdp/list-info.ts'
import { isPerson, type Person } from '../../sdp/people.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { time } from '../request-view.ts'

const modules = ['request', 'change'] as const
/** Each record costs at least two calls, so only the newest are looked at. */
const mostRecords = 15

export const listMyApprovals = defineTool({
  name: 'list_my_approvals',
  title: 'List approvals that wait for me',
  toolset: 'core',
  description:
    'Lists approvals of requests or changes in which you are the approver, with the ids decide_approval needs. Looks at the newest records that wait for approval.',
  input: {
    status: z.enum(['pending', 'any']).optional().describe('Default pending'),
    module: z.enum(modules).optional().describe('Default request'),
  },
  output: { approvals: z.array(z.looseObject({})) },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ status = 'pending', module = 'request' }, call) {
    const [me, zone, waiting] = await Promise.all([call.people.me(call.sdp), call.zone(), candidates(call, module)])
    let done = 0
    const found = await Promise.all(
      waiting.rows.map(async row => {
        const mine = await ofMine(call, module, row, me, status === 'pending', zone)
        await call.progress(++done, waiting.rows.length, 'records read')
        return mine
      }),
    )
    return {
      data: {
        approvals: found.flat(),
        looked_at: `${waiting.rows.length} records that wait for approval${waiting.hasMore ? ', the newest; there are more' : ''}`,
      },
    }
  },
})

/** Records on their way through approval: by the named view, which other clients use too (fact sheet 3.4), else by their status. */
async function candidates(call: ToolCall, module: (typeof modules)[number]) {
  const info = { row_count: mostRecords, start_index: 1, sort_field: 'created_time', sort_order: 'desc' } as const
  if (module === 'request') {
    try {
      return await call.records.list(call.sdp, module, { ...info, filter_by: { name: 'Requests_Pending_Approval' } })
    } catch (error) {
      if (!isSdpError(error, 'invalid-value', 'not-found', 'denied')) throw error
    }
    return call.records.list(call.sdp, module, {
      ...info,
      search_criteria: criteria(contains('approval_status.name', 'pending')),
    })
  }
  return call.records.list(call.sdp, module, {
    ...info,
    search_criteria: criteria(contains('approval_status.name', 'pending')),
  })
}

async function ofMine(
  call: ToolCall,
  module: ApprovalModule & (typeof modules)[number],
  row: Json,
  me: Person,
  isOnlyPending: boolean,
  zone: string,
): Promise<Json[]> {
  const id = text(row.id) ?? ''
  const all = await approvalsOf(call.sdp, module, id)
  return all
    .filter(({ approval }) => isPerson(approval.approver, me))
    .filter(({ approval }) => !isOnlyPending || isPending(approval.status))
    .map(({ approval, levelId, level }) => ({
      module,
      number: text(row.display_id),
      id,
      subject: strangersLine(row.subject ?? row.title),
      requester: name(row.requester) ?? name(row.change_requester),
      status: name(approval.status),
      level,
      level_id: levelId,
      approval_id: text(approval.id),
      sent: time(approval.sent_on, zone),
      url: call.site.link(`${module}s`, id),
    }))
}
