import { z } from 'zod'
import { defineTool } from '../define.ts'
import { updateRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { ToolError } from '../result.ts'
import { releaseFields, showRelease } from './release.ts'

export const updateRelease = defineTool({
  name: 'update_release',
  title: 'Change a release',
  toolset: 'releases',
  description: 'Changes plans, schedule, people, stage or status of a release. A new status needs comment.',
  input: {
    release_id: z.string().min(1),
    ...releaseFields.inputs,
    comment: z.string().max(4_000).optional().describe('Needed with status'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['releases.UPDATE'],
  async run({ comment, ...input }, call) {
    if (input.status !== undefined && !comment) {
      throw new ToolError('A change of status needs a comment.', 'Give comment.', { fields: ['comment'] })
    }
    const id = await call.records.id(call.sdp, 'release', input.release_id)
    const extra = comment ? { comment } : {}
    return updateRecord(call, id, { module: 'release', fields: releaseFields, input, show: showRelease(call), extra })
  },
})
