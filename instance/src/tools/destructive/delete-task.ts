import { z } from 'zod'
import { child } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import { defineTool } from '../define.ts'
import { dryRun, parentId, parentModule, projectId } from '../params.ts'
import { resolveParent } from '../parent.ts'
import { taskRow } from '../rows.ts'
import { deleteAfterConsent } from './delete-below.ts'

export const deleteTask = defineTool({
  name: 'delete_task',
  title: 'Delete a task',
  toolset: 'destructive',
  description: 'Deletes a task with its worklogs and comments for good. Asks the person first.',
  input: {
    module: parentModule,
    parent_id: parentId,
    project_id: projectId,
    task_id: z.string().min(1),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  scopes: [],
  async run({ task_id, confirm_token, dry_run, ...where }, call) {
    const parent = await resolveParent(call, where)
    const path = child(parent.path, 'tasks', task_id)
    return deleteAfterConsent(call, {
      tool: 'delete_task',
      subject: { path: path.path },
      async prepare() {
        const [task, zone] = await Promise.all([call.sdp.get(path), call.zone()])
        const preview = taskRow(entity(task, 'task'), zone)
        return { plan: { path, id: task_id }, preview, question: 'Delete this task for good?' }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
      url: parent.link,
    })
  },
})
