import { z } from 'zod'
import { defineTool } from '../define.ts'
import { createRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { changeFields, showChange } from './change.ts'

export const createChange = defineTool({
  name: 'create_change',
  title: 'Create a change',
  toolset: 'changes',
  description: 'Creates a change in its first stage, not submitted to anybody. Names are checked first.',
  input: { ...changeFields.inputs, title: z.string().min(1).max(250), dry_run: dryRun },
  effect: 'write',
  scopes: ['changes.CREATE'],
  run: (input, call) => createRecord(call, { module: 'change', fields: changeFields, input, show: showChange(call) }),
})
