import { z } from 'zod'
import { defineTool } from '../define.ts'
import { createRecord } from '../field-set.ts'
import { dryRun, optionName } from '../params.ts'
import { assetFields, showAsset } from './asset.ts'

export const createAsset = defineTool({
  name: 'create_asset',
  title: 'Create an asset',
  toolset: 'assets',
  description: 'Creates an asset of a known product.',
  input: { ...assetFields.inputs, name: z.string().min(1).max(250), product: optionName, dry_run: dryRun },
  effect: 'write',
  scopes: ['assets.CREATE'],
  run: (input, call) => createRecord(call, { module: 'asset', fields: assetFields, input, show: showAsset(call) }),
})
