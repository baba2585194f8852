import { z } from 'zod'
import { defineTool } from '../define.ts'
import { updateRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { projectFields, showProject } from './project.ts'

export const updateProject = defineTool({
  name: 'update_project',
  title: 'Change a project',
  toolset: 'projects',
  description: 'Changes a project; answers with asked and actual.',
  input: { project_id: z.string().min(1), ...projectFields.inputs, dry_run: dryRun },
  effect: 'write',
  idempotent: true,
  scopes: ['projects.UPDATE'],
  async run(input, call) {
    const id = await call.records.id(call.sdp, 'project', input.project_id)
    return updateRecord(call, id, { module: 'project', fields: projectFields, input, show: showProject(call) })
  },
})
