import { z } from 'zod'
import { child } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import { defineTool } from '../define.ts'
import { dryRun, parentId, parentModule, projectId } from '../params.ts'
import { resolveParent } from '../parent.ts'
import { worklogRow } from '../rows.ts'
import { deleteAfterConsent } from './delete-below.ts'

export const deleteWorklog = defineTool({
  name: 'delete_worklog',
  title: 'Delete a worklog',
  toolset: 'destructive',
  description: 'Deletes logged time for good. Asks the person first.',
  input: {
    module: parentModule,
    parent_id: parentId,
    project_id: projectId,
    task_id: z.string().optional(),
    worklog_id: z.string().min(1),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  scopes: [],
  async run({ task_id, worklog_id, confirm_token, dry_run, ...where }, call) {
    const parent = await resolveParent(call, where)
    const holder = task_id ? child(parent.path, 'tasks', task_id) : parent.path
    const path = child(holder, 'worklogs', worklog_id)
    return deleteAfterConsent(call, {
      tool: 'delete_worklog',
      subject: { path: path.path },
      async prepare() {
        const [worklog, zone] = await Promise.all([call.sdp.get(path), call.zone()])
        const preview = worklogRow(entity(worklog, 'worklog'), zone)
        return { plan: { path, id: worklog_id }, preview, question: 'Delete this logged time for good?' }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
      url: parent.link,
    })
  },
})
