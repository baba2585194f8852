import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { all, criteria, paging } from '../../sdp/list-info.ts'
import { path } from '../../sdp/path.ts'
import { defineTool } from '../define.ts'
import { date, defaultLimit } from '../params.ts'
import { between, byPerson, namedAny, namesInput, pagingInputs, personInput, textIn } from '../record-search.ts'
import { nameLine } from '../request-view.ts'
import { taskRow } from '../rows.ts'

const modules = ['request', 'problem', 'change', 'release', 'project', 'milestone'] as const

export const searchTasks = defineTool({
  name: 'search_tasks',
  title: 'Search tasks',
  toolset: 'projects',
  description: 'Searches tasks of all modules, or of one project, by owner, status, words or due date.',
  input: {
    project_id: z.string().optional().describe('Only this project'),
    owner: personInput,
    status: namesInput,
    text: z.string().min(1).optional(),
    due_from: date.optional(),
    due_to: date.optional(),
    ...pagingInputs,
  },
  effect: 'read',
  scopes: ['projects.READ'],
  async run({ project_id, page = 1, limit = defaultLimit, total, ...input }, call) {
    const zone = await call.zone()
    const project = project_id ? await call.records.id(call.sdp, 'project', project_id) : undefined
    const conditions = all(
      textIn(input.text, 'title'),
      await byPerson(call, 'owner', input.owner),
      await namedAny(call, 'status', input.status, 'task'),
      await between(call, 'scheduled_end_time', input.due_from, input.due_to),
    )
    const found = await call.sdp.list(project ? path`/projects/${project}/tasks` : path`/tasks`, {
      // by start_index: project tasks refuse `page` (docs/sdp-api.md 11)
      ...paging(page, limit),
      sort_field: 'scheduled_end_time',
      sort_order: 'asc',
      ...(total ? { get_total_count: true } : {}),
      search_criteria: criteria(conditions),
    })
    const tasks = found.rows.map(row => {
      const module = modules.find(key => row[key])
      return {
        ...taskRow(row, zone),
        on: module,
        parent: module && nameLine(row[module]),
        parent_id: module && text((row[module] as { id?: unknown }).id),
      }
    })
    return {
      data: {
        tasks: tasks.length > 0 ? tasks : 'none',
        total: found.total,
        has_more: found.hasMore,
        next_page: found.hasMore ? page + 1 : undefined,
      },
      paged: { key: 'tasks', page, limit },
    }
  },
})
