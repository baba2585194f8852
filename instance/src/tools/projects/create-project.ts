import { z } from 'zod'
import { defineTool } from '../define.ts'
import { createRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { projectFields, showProject } from './project.ts'

export const createProject = defineTool({
  name: 'create_project',
  title: 'Create a project',
  toolset: 'projects',
  description: 'Creates a project.',
  input: { ...projectFields.inputs, title: z.string().min(1).max(250), dry_run: dryRun },
  effect: 'write',
  scopes: ['projects.CREATE'],
  run: (input, call) =>
    createRecord(call, { module: 'project', fields: projectFields, input, show: showProject(call) }),
})
