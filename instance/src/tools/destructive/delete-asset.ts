import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { recordPath } from '../../sdp/records.ts'
import { assetRow, findAsset } from '../assets/asset.ts'
import { defineTool } from '../define.ts'
import { dryRun } from '../params.ts'
import { deleteAfterConsent } from './delete-below.ts'

export const deleteAsset = defineTool({
  name: 'delete_asset',
  title: 'Delete an asset',
  toolset: 'destructive',
  description:
    'Deletes an asset with its history for good. Asks the person first; an asset in use elsewhere is refused by the site.',
  input: {
    asset_id: z.string().min(1).describe('Id, name, tag or serial number'),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  scopes: ['assets.DELETE'],
  async run({ asset_id, confirm_token, dry_run }, call) {
    return deleteAfterConsent(call, {
      tool: 'delete_asset',
      subject: { asset_id },
      async prepare() {
        const [asset, zone] = await Promise.all([findAsset(call, asset_id), call.zone()])
        const id = text(asset.id) ?? ''
        return {
          plan: { path: recordPath('asset', id), id },
          preview: assetRow(asset, zone),
          question: 'Delete this asset for good?',
        }
      },
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
  },
})
