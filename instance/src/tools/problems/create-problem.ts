import { z } from 'zod'
import { defineTool } from '../define.ts'
import { createRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { problemFields, showProblem } from './problem.ts'

export const createProblem = defineTool({
  name: 'create_problem',
  title: 'Create a problem',
  toolset: 'problems',
  description: 'Creates a problem. Names are checked first; the site may notify the technician.',
  input: { ...problemFields.inputs, title: z.string().min(1).max(250), dry_run: dryRun },
  effect: 'write',
  scopes: ['problems.CREATE'],
  run: (input, call) =>
    createRecord(call, { module: 'problem', fields: problemFields, input, show: showProblem(call) }),
})
