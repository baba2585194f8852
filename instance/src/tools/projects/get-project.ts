import { z } from 'zod'
import { recordPath } from '../../sdp/records.ts'
import { defineTool } from '../define.ts'
import { below, detail } from '../record-view.ts'
import { plainValue } from '../request-view.ts'
import { taskRow } from '../rows.ts'
import { milestoneRow } from './project.ts'

const includes = ['milestones', 'tasks', 'members'] as const

export const getProject = defineTool({
  name: 'get_project',
  title: 'Read a project',
  toolset: 'projects',
  description: 'Reads one project with milestones and tasks; include chooses the parts.',
  input: { project_id: z.string().min(1).describe('Number, id or URL'), include: z.array(z.enum(includes)).optional() },
  effect: 'read',
  scopes: ['projects.READ'],
  async run({ project_id, include }, call) {
    const id = await call.records.id(call.sdp, 'project', project_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'project', id), call.zone()])
    const show = {
      milestones: milestoneRow,
      tasks: taskRow,
      members: (row: Record<string, unknown>) => ({
        user: plainValue(row.user, zone),
        role: plainValue(row.project_role, zone),
      }),
    }
    const parts = await Promise.all(
      (include ?? (['milestones', 'tasks'] as const)).map(async part => [
        part,
        await below(call, recordPath('project', id), part, show[part]),
      ]),
    )
    return {
      data: { ...detail(raw, zone), ...Object.fromEntries(parts), url: call.site.link('projects', id) },
      rest: ({ path }) =>
        path === 'tasks' ? 'search_tasks with project_id lists them in pages' : 'open the project in the portal',
    }
  },
})
