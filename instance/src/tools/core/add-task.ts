import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { at, instant, type Json, text } from '../../sdp/json.ts'
import { child } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import { alike, settled } from '../../sdp/settle.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { diff } from '../diff.ts'
import { textToHtml } from '../markdown.ts'
import { dryRun, optionName, parentId, parentModule, projectId } from '../params.ts'
import { type Parent, resolveParent } from '../parent.ts'
import { taskRow } from '../rows.ts'
import { resolveTask, taskInputs } from '../task.ts'

export const addTask = defineTool({
  name: 'add_task',
  title: 'Add a task',
  toolset: 'core',
  description:
    'Adds a task to a ticket, problem, change, release, project or milestone. The site may notify its owner.',
  input: {
    module: parentModule,
    parent_id: parentId,
    project_id: projectId,
    title: z.string().min(1).max(250),
    description: z.string().optional().describe('Markdown'),
    type: optionName.optional(),
    ...taskInputs,
    estimate_minutes: z.int().min(1).max(100_000).optional(),
    dry_run: dryRun,
  },
  output: { task_id: z.string().optional(), title: z.string().optional(), status: z.string().optional() },
  effect: 'write',
  scopes: [],
  async run({ module, parent_id, project_id, description, dry_run, ...fields }, call) {
    const parent = await resolveParent(call, { module, parent_id, project_id })
    const { task, asked } = await resolveTask(call, fields)
    if (description) task.description = textToHtml(description)
    const head = { on: parent.module, parent_id: parent.id, url: parent.link }
    if (dry_run) return { data: { ...head, dry_run: true, nothing_sent: true, would_add: task } }
    const created = await create(call, parent, task)
    const id = text(created.id)
    const zone = await call.zone()
    const actual = id ? entity(await call.sdp.get(child(parent.path, 'tasks', id)), 'task') : created
    const { id: _, ...row } = taskRow(actual, zone)
    return {
      data: { task_id: id, ...row, changes: diff(asked, undefined, actual, zone).filter(({ note }) => note), ...head },
    }
  },
})

/** Where tasks belong to a stage and none is given, it is the stage the parent is in (docs/sdp-api.md 10). */
async function create(call: ToolCall, parent: Parent, task: Json): Promise<Json> {
  const list = child(parent.path, 'tasks')
  const startedAt = call.context.now()
  const add = async (body: Json) => entity(await call.sdp.post(list, { task: body }), 'task')
  const post = (body: Json) =>
    settled(
      () => add(body),
      async () => {
        const page = await call.sdp.list(list, { row_count: 100, start_index: 1 })
        return page.rows.findLast(
          row => alike(row.title, body.title) && (instant(row.created_time) ?? startedAt) >= startedAt - 30_000,
        )
      },
    )
  try {
    return await post(task)
  } catch (error) {
    const wantsStage = isSdpError(error, 'mandatory') && error.fields.includes('stage')
    if (!wantsStage || (parent.module !== 'release' && parent.module !== 'change')) throw error
    const record = await call.records.get(call.sdp, parent.module, parent.id)
    const stage = text(at(record, 'stage.id'))
    if (stage === undefined) throw error
    return post({ ...task, stage: { id: stage } })
  }
}
