import { z } from 'zod'
import { defineTool } from '../define.ts'
import { updateRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { problemFields, showProblem } from './problem.ts'

export const updateProblem = defineTool({
  name: 'update_problem',
  title: 'Change a problem',
  toolset: 'problems',
  description:
    'Changes a problem, also its root cause, symptoms, impact, workaround and resolution; answers with asked and actual.',
  input: { problem_id: z.string().min(1), ...problemFields.inputs, dry_run: dryRun },
  effect: 'write',
  idempotent: true,
  scopes: ['problems.UPDATE'],
  async run(input, call) {
    const id = await call.records.id(call.sdp, 'problem', input.problem_id)
    return updateRecord(call, id, { module: 'problem', fields: problemFields, input, show: showProblem(call) })
  },
})
