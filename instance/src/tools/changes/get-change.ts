import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { recordPath } from '../../sdp/records.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { below, detail, unavailable } from '../record-view.ts'
import { nameLine, time } from '../request-view.ts'
import { noteRow, taskRow, worklogRow } from '../rows.ts'

const includes = ['tasks', 'notes', 'worklogs', 'approvals', 'downtimes'] as const

export const getChange = defineTool({
  name: 'get_change',
  title: 'Read a change',
  toolset: 'changes',
  description:
    'Reads one change with plans, schedule, risk and stage; include adds tasks, notes, worklogs, approvals or downtimes.',
  input: { change_id: z.string().min(1).describe('Number, id or URL'), include: z.array(z.enum(includes)).optional() },
  effect: 'read',
  scopes: ['changes.READ'],
  async run({ change_id, include = [] }, call) {
    const id = await call.records.id(call.sdp, 'change', change_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'change', id), call.zone()])
    const parent = recordPath('change', id)
    const read = {
      tasks: () => below(call, parent, 'tasks', taskRow),
      notes: () => below(call, parent, 'notes', noteRow),
      worklogs: () => below(call, parent, 'worklogs', worklogRow),
      downtimes: () =>
        below(call, parent, 'downtimes', row => ({
          id: text(row.id),
          start: time(row.scheduled_start_time, zone),
          end: time(row.scheduled_end_time, zone),
        })),
      approvals: () => approvals(call, id, zone),
    }
    const parts = await Promise.all(include.map(async part => [part, await read[part]()]))
    return {
      data: { ...detail(raw, zone), ...Object.fromEntries(parts), url: call.site.link('changes', id) },
      rest: 'open the change in the portal',
    }
  },
})

async function approvals(call: ToolCall, id: string, zone: string): Promise<unknown> {
  try {
    const found = await call.approvals.of(call.sdp, 'change', id)
    const shown = found.map(({ approval, level, levelId }) => ({
      level,
      level_id: levelId,
      approval_id: text(approval.id),
      approver: nameLine(approval.approver),
      status: nameLine(approval.status),
      acted: time(approval.action_taken_on, zone),
      comments: strangersLine(approval.comments),
    }))
    return shown.length > 0 ? shown : 'none'
  } catch (error) {
    return unavailable(error)
  }
}
