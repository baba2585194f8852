import { z } from 'zod'
import { recordPath } from '../../sdp/records.ts'
import { defineTool } from '../define.ts'
import { below, detail } from '../record-view.ts'
import { noteRow, taskRow, worklogRow } from '../rows.ts'

const includes = ['tasks', 'notes', 'worklogs'] as const

export const getProblem = defineTool({
  name: 'get_problem',
  title: 'Read a problem',
  toolset: 'problems',
  description:
    'Reads one problem with root cause, symptoms, impact, workaround and resolution; include adds tasks, notes or worklogs.',
  input: { problem_id: z.string().min(1).describe('Number, id or URL'), include: z.array(z.enum(includes)).optional() },
  effect: 'read',
  scopes: ['problems.READ'],
  async run({ problem_id, include = [] }, call) {
    const id = await call.records.id(call.sdp, 'problem', problem_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'problem', id), call.zone()])
    const show = { tasks: taskRow, notes: noteRow, worklogs: worklogRow }
    const parts = await Promise.all(
      include.map(async part => [part, await below(call, recordPath('problem', id), part, show[part])]),
    )
    return {
      data: { ...detail(raw, zone), ...Object.fromEntries(parts), url: call.site.link('problems', id) },
      rest: 'open the problem in the portal',
    }
  },
})
