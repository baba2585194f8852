import { z } from 'zod'
import { child } from '../../sdp/path.ts'
import { defineTool } from '../define.ts'
import { dryRun, optionName, parentId, parentModule, person, projectId } from '../params.ts'
import { resolveParent } from '../parent.ts'
import { ToolError } from '../result.ts'
import { addWorklog, planWorklog } from '../worklog.ts'

export const logTime = defineTool({
  name: 'log_time',
  title: 'Log time',
  toolset: 'core',
  description:
    'Adds a worklog to a ticket, problem, change or release, or to a task of one of these or of a project. Without times the work ended now. Calling twice logs twice.',
  input: {
    module: parentModule,
    parent_id: parentId,
    project_id: projectId,
    task_id: z.string().optional(),
    minutes: z.int().min(1).max(14_400).optional(),
    start: z.string().optional().describe('ISO or relative: today 09:00'),
    end: z.string().optional(),
    description: z.string().max(2_000).optional(),
    type: optionName.optional(),
    technician: person.optional().describe('Default me'),
    dry_run: dryRun,
  },
  output: { worklog_id: z.string().optional(), minutes: z.number(), owner: z.string() },
  effect: 'write',
  scopes: [],
  async run({ module, parent_id, project_id, task_id, dry_run, ...work }, call) {
    if ((module === 'project' || module === 'milestone') && !task_id) {
      throw new ToolError('Time on a project is logged on one of its tasks.', 'Give task_id.', { fields: ['task_id'] })
    }
    const parent = await resolveParent(call, { module, parent_id, project_id })
    const planned = await planWorklog(call, work)
    const { owner, minutes, start, end } = planned
    const head = { on: `${parent.module}${task_id ? ' task' : ''}`, id: task_id ?? parent.id, url: parent.link }
    if (dry_run) return { data: { ...head, dry_run: true, nothing_sent: true, owner, minutes, start, end } }
    const target = task_id ? child(parent.path, 'tasks', task_id) : parent.path
    return { data: { ...(await addWorklog(call, target, planned)), ...head } }
  },
})
