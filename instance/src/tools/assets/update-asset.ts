import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { defineTool } from '../define.ts'
import { updateRecord } from '../field-set.ts'
import { dryRun } from '../params.ts'
import { assetFields, findAsset, showAsset } from './asset.ts'

export const updateAsset = defineTool({
  name: 'update_asset',
  title: 'Change an asset',
  toolset: 'assets',
  description:
    'Changes an asset, for example its state, user or site; "none" empties a field. Answers with asked and actual.',
  input: {
    asset_id: z.string().min(1).describe('Id, name, tag or serial number'),
    ...assetFields.inputs,
    comment: z.string().max(250).optional().describe('For the state history'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['assets.UPDATE'],
  async run({ comment, ...input }, call) {
    const before = await findAsset(call, input.asset_id)
    const extra = comment ? { state_history_comments: comment } : {}
    const options = { module: 'asset', fields: assetFields, input, show: showAsset(call), extra, before } as const
    return updateRecord(call, text(before.id) ?? '', options)
  },
})
