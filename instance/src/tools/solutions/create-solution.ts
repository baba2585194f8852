import { z } from 'zod'
import { defineTool } from '../define.ts'
import { createRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { showSolution, solutionFields } from './solution.ts'

export const createSolution = defineTool({
  name: 'create_solution',
  title: 'Create an article',
  toolset: 'solutions',
  description: 'Creates an article of the knowledge base, not public unless said so and not yet approved.',
  input: {
    ...solutionFields.inputs,
    title: z.string().min(1).max(250),
    text: z.string().min(1).describe('Markdown'),
    dry_run: dryRun,
  },
  effect: 'write',
  scopes: ['solutions.CREATE'],
  run: (input, call) =>
    createRecord(call, { module: 'solution', fields: solutionFields, input, show: showSolution(call) }),
})
