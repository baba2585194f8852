import { z } from 'zod'
import { defineTool } from '../define.ts'
import { createRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { releaseFields, showRelease } from './release.ts'

export const createRelease = defineTool({
  name: 'create_release',
  title: 'Create a release',
  toolset: 'releases',
  description: 'Creates a release in its first stage. Names are checked first.',
  input: { ...releaseFields.inputs, title: z.string().min(1).max(250), dry_run: dryRun },
  effect: 'write',
  scopes: ['releases.CREATE'],
  run: (input, call) =>
    createRecord(call, { module: 'release', fields: releaseFields, input, show: showRelease(call) }),
})
