import { z } from 'zod'
import { type ApprovalModule, isPending } from '../../sdp/approvals.ts'
import type { SdpPage } from '../../sdp/client.ts'
import { isSdpError } from '../../sdp/errors.ts'
import { instant, type Json, text } from '../../sdp/json.ts'
import { contains, criteria, type ListInfo } from '../../sdp/list-info.ts'
import { isPerson, type Person } from '../../sdp/people.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { nameLine, time } from '../request-view.ts'

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

/** Records on their way through approval: by the named view, which other clients use too (docs/sdp-api.md 3.4), else by their status. */
async function candidates(call: ToolCall, module: (typeof modules)[number]): Promise<SdpPage> {
  const info = { row_count: mostRecords, start_index: 1, sort_field: 'created_time', sort_order: 'desc' } as const
  const byView = { filter_by: { name: 'Requests_Pending_Approval' } }
  const byStatus = { search_criteria: criteria(contains('approval_status.name', 'pending')) }
  const fields_required = rowFields[module]
  const attempts: ListInfo[] = [
    ...(module === 'request' ? [{ ...byView, fields_required }] : []),
    { ...byStatus, fields_required },
    byStatus,
  ]
  for (const attempt of attempts.slice(0, -1)) {
    try {
      return await call.records.list(call.sdp, module, { ...info, ...attempt })
    } catch (error) {
      if (!isSdpError(error, 'invalid-value', 'not-found', 'denied')) throw error
    }
  }
  return call.records.list(call.sdp, module, { ...info, ...attempts.at(-1) })
}

/** What is shown, and what decide_approval looks at, so that it need not read the record again. */
const rowFields = {
  request: ['id', 'display_id', 'subject', 'requester', 'on_behalf_of', 'last_updated_time'],
  change: ['id', 'display_id', 'title', 'change_requester', 'last_updated_time'],
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
  const version = instant(row.last_updated_time)
  const all = await call.approvals.recent(call.sdp, module, id, version === undefined ? undefined : String(version))
  return all
    .filter(({ approval }) => isPerson(approval.approver, me))
    .filter(({ approval }) => !isOnlyPending || isPending(approval.status))
    .map(({ approval, levelId, level }) => ({
      module,
      number: text(row.display_id),
      id,
      subject: strangersLine(row.subject ?? row.title),
      requester: nameLine(row.requester) ?? nameLine(row.change_requester),
      status: nameLine(approval.status),
      level,
      level_id: levelId,
      approval_id: text(approval.id),
      sent: time(approval.sent_on, zone),
      url: call.site.link(`${module}s`, id),
    }))
}
