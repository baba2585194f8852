import { z } from 'zod'
import { defineTool } from '../define.ts'
import { updateRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { ToolError } from '../result.ts'
import { changeFields, showChange } from './change.ts'

export const updateChange = defineTool({
  name: 'update_change',
  title: 'Change a change',
  toolset: 'changes',
  description:
    'Changes plans, schedule, people, stage or status of a change. A new status needs comment; the workflow of the site decides which are possible.',
  input: {
    change_id: z.string().min(1),
    ...changeFields.inputs,
    comment: z.string().max(4_000).optional().describe('Needed with status'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['changes.UPDATE'],
  async run({ comment, ...input }, call) {
    // mandatory whenever the status is modified (docs/sdp-api.md 9)
    if (input.status !== undefined && !comment) {
      throw new ToolError('A change of status needs a comment.', 'Give comment.', { fields: ['comment'] })
    }
    const id = await call.records.id(call.sdp, 'change', input.change_id)
    const extra = comment ? { comment } : {}
    return updateRecord(call, id, { module: 'change', fields: changeFields, input, show: showChange(call), extra })
  },
})
