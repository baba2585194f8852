import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { at, text } from '../../sdp/json.ts'
import { child, type SdpPath } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import { alike, holds, settled } from '../../sdp/settle.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { diff } from '../diff.ts'
import { escapeHtml } from '../markdown.ts'
import { dryRun, parentId, parentModule, projectId } from '../params.ts'
import { resolveParent } from '../parent.ts'
import { nameLine } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { taskRow } from '../rows.ts'
import { resolveTask, taskInputs } from '../task.ts'

export const updateTask = defineTool({
  name: 'update_task',
  title: 'Change a task',
  toolset: 'core',
  description:
    'Changes status, owner, dates or progress of a task, or comments on it; status "closed" completes it. The description is left alone.',
  input: {
    task_id: z.string().min(1),
    module: parentModule,
    parent_id: parentId,
    project_id: projectId,
    title: z.string().min(1).max(250).optional(),
    ...taskInputs,
    comment: z.string().max(4_000).optional(),
    dry_run: dryRun,
  },
  output: {
    task_id: z.string().optional(),
    status: z.string().optional(),
    changes: z.array(z.looseObject({})).optional(),
  },
  effect: 'write',
  scopes: [],
  async run({ task_id, module, parent_id, project_id, comment, dry_run, ...fields }, call) {
    const parent = await resolveParent(call, { module, parent_id, project_id })
    const path = child(parent.path, 'tasks', task_id)
    const before = entity(await call.sdp.get(path), 'task')
    const { task, asked } = await resolveTask(call, fields)
    if (Object.keys(asked).length === 0 && !comment)
      throw new ToolError('There is nothing to change.', 'Give a field or a comment.')
    const head = { task_id: text(before.id) ?? task_id, on: parent.module, parent_id: parent.id, url: parent.link }
    if (dry_run) {
      const planned = Object.entries(asked).map(([field, wanted]) => ({
        field,
        before: nameLine(at(before, field)),
        asked: wanted,
      }))
      return { data: { ...head, dry_run: true, nothing_sent: true, changes: planned, comment } }
    }
    if (Object.keys(asked).length > 0) {
      const look = async () => {
        const present = entity(await call.sdp.get(path), 'task')
        return holds(present, task) ? present : undefined
      }
      await settled(() => call.sdp.put(path, { task }), look)
    }
    const commented = comment ? await addComment(call, path, comment) : undefined
    const zone = await call.zone()
    const actual = entity(await call.sdp.get(path), 'task')
    const { id: _, ...row } = taskRow(actual, zone)
    const changes = diff(asked, before, actual, zone)
    return {
      data: { ...head, ...row, done: changes.every(({ note }) => note === undefined), changes, comment: commented },
    }
  },
})

/** `task_comment {comment}` on Cloud, `comment {content}` on premises (docs/sdp-api.md 7.4). */
async function addComment(call: ToolCall, task: SdpPath, comment: string): Promise<string> {
  const content = escapeHtml(comment).replaceAll('\n', '<br>')
  const list = child(task, 'comments')
  const look = async () => {
    const page = await call.sdp.list(list, { row_count: 100, start_index: 1 })
    return page.rows.find(row => alike(row.comment ?? row.content, content))
  }
  try {
    await settled(() => call.sdp.post(list, { task_comment: { comment: content } }), look)
  } catch (error) {
    if (!isSdpError(error, 'invalid-value') || !/EXTRA_KEY/.test(error.details.said ?? '')) throw error
    await call.sdp.post(list, { comment: { content } })
  }
  return 'added'
}
