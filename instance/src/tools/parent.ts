import { path, type SdpPath } from '../sdp/path.ts'
import { recordPath } from '../sdp/records.ts'
import type { ToolCall } from './define.ts'
import type { ParentModule } from './params.ts'
import { ToolError } from './result.ts'

export type ParentInput = { module?: ParentModule; parent_id: string; project_id?: string }
export type Parent = { module: ParentModule; id: string; path: SdpPath; link: string | undefined }

/** The record that a task, worklog or attachment hangs on. */
export async function resolveParent(call: ToolCall, input: ParentInput): Promise<Parent> {
  const module = input.module ?? 'request'
  if (module === 'milestone') {
    if (!input.project_id) {
      throw new ToolError('A milestone is found through its project.', 'Give project_id too.', {
        fields: ['project_id'],
      })
    }
    const project = await call.records.id(call.sdp, 'project', input.project_id)
    return {
      module,
      id: input.parent_id,
      path: path`/projects/${project}/milestones/${input.parent_id}`,
      link: call.site.link('projects', project),
    }
  }
  const id = await call.records.id(call.sdp, module, input.parent_id)
  return { module, id, path: recordPath(module, id), link: call.site.link(`${module}s`, id) }
}
