import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { criteria, is } from '../../sdp/list-info.ts'
import { recordPath } from '../../sdp/records.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { below, detail, unavailable } from '../record-view.ts'
import { plainValue, requestRow, rowFields, time } from '../request-view.ts'
import { assetId } from './asset.ts'

const includes = ['requests', 'history', 'software'] as const

export const getAsset = defineTool({
  name: 'get_asset',
  title: 'Read an asset',
  toolset: 'assets',
  description: 'Reads one asset; include adds its tickets, history or software.',
  input: {
    asset_id: z.string().min(1).describe('Id, name, tag or serial number'),
    include: z.array(z.enum(includes)).optional(),
  },
  effect: 'read',
  scopes: ['assets.READ'],
  async run({ asset_id, include = [] }, call) {
    const id = await assetId(call, asset_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'asset', id), call.zone()])
    const parent = recordPath('asset', id)
    const read = {
      requests: () => requests(call, id, zone),
      software: () =>
        below(call, parent, 'software', row => ({ name: strangersLine(row.name), version: text(row.version) })),
      history: () =>
        below(call, parent, 'history', row => ({
          at: time(row.time, zone),
          by: plainValue(row.by, zone),
          action: strangersLine(row.operation),
          changes: plainValue(row.diff, zone),
        })),
    }
    const parts = await Promise.all(include.map(async part => [part, await read[part]()]))
    return { data: { ...detail(raw, zone), ...Object.fromEntries(parts), url: call.site.link('assets', id) } }
  },
})

async function requests(call: ToolCall, id: string, zone: string): Promise<unknown> {
  try {
    const page = await call.requests.list(call.sdp, {
      row_count: 20,
      start_index: 1,
      sort_field: 'created_time',
      sort_order: 'desc',
      search_criteria: criteria(is('assets.id', id)),
      fields_required: rowFields,
    })
    return page.rows.length > 0 ? page.rows.map(row => requestRow(row, zone)) : 'none'
  } catch (error) {
    return unavailable(error)
  }
}
