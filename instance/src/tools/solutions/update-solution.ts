import { z } from 'zod'
import { defineTool } from '../define.ts'
import { updateRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { showSolution, solutionFields } from './solution.ts'

export const updateSolution = defineTool({
  name: 'update_solution',
  title: 'Change an article',
  toolset: 'solutions',
  description: 'Changes an article of the knowledge base; text replaces the whole text.',
  input: { solution_id: z.string().min(1), ...solutionFields.inputs, dry_run: dryRun },
  effect: 'write',
  idempotent: true,
  scopes: ['solutions.UPDATE'],
  async run(input, call) {
    const id = await call.records.id(call.sdp, 'solution', input.solution_id)
    return updateRecord(call, id, { module: 'solution', fields: solutionFields, input, show: showSolution(call) })
  },
})
