import { z } from 'zod'
import { rows, text } from '../../sdp/json.ts'
import { defineTool } from '../define.ts'
import { dryRun, parentId } from '../params.ts'
import { nameLine } from '../request-view.ts'
import { assetIds } from './asset.ts'

export const linkAssets = defineTool({
  name: 'link_assets',
  title: 'Tie assets to a ticket',
  toolset: 'assets',
  description: 'Ties assets to a ticket, problem or change, or unties them; others stay as they are.',
  input: {
    module: z.enum(['request', 'problem', 'change']).optional().describe('Default request'),
    parent_id: parentId,
    assets: z.array(z.string().min(1)).min(1).max(25).describe('Ids, names or tags'),
    remove: z.boolean().optional().describe('Untie'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['assets.READ'],
  async run({ module = 'request', parent_id, assets, remove = false, dry_run }, call) {
    const id = await call.records.id(call.sdp, module, parent_id)
    const wanted = await assetIds(call, assets)
    const before = await call.records.get(call.sdp, module, id)
    const present = rows(before.assets).map(asset => text(asset.id) ?? '')
    // the list is replaced as a whole by an edit
    const next = remove ? present.filter(asset => !wanted.includes(asset)) : [...new Set([...present, ...wanted])]
    const head = { on: module, id, url: call.site.link(`${module}s`, id) }
    if (dry_run) return { data: { ...head, dry_run: true, nothing_sent: true, would_hold: next } }
    const changed = await call.records.change(call.sdp, module, id, { assets: next.map(asset => ({ id: asset })) })
    const after = rows(changed.assets)
    const held = after.map(asset => text(asset.id) ?? '')
    return {
      data: {
        ...head,
        done: wanted.every(asset => held.includes(asset) !== remove),
        assets: after.length > 0 ? after.map(asset => ({ id: text(asset.id), name: nameLine(asset) })) : 'none',
      },
    }
  },
})
