import { SdpError } from '../../sdp/errors.ts'
import { type Json, text } from '../../sdp/json.ts'
import { any, criteria, is } from '../../sdp/list-info.ts'
import { closest } from '../../sdp/similar.ts'
import type { ToolCall } from '../define.ts'
import { amount, fieldSet, line, moment, option, who } from '../field-set.ts'
import { row } from '../record-view.ts'

/** Fact sheet 13. */
export const assetFields = fieldSet('asset', {
  name: line(),
  product: option('product'),
  state: option(),
  asset_tag: line(),
  serial_number: line(),
  barcode: line(),
  user: who('any'),
  department: option('department'),
  site: option(),
  vendor: option('vendor'),
  location: line(),
  acquired: moment('acquisition_date'),
  warranty_until: moment('warranty_expiry', 'end'),
  expires: moment('expiry_date', 'end'),
  cost: amount('purchase_cost.value'),
})

export const assetRow = row([
  'name',
  'product',
  'product_type',
  'state',
  'asset_tag',
  'serial_number',
  'user',
  'department',
  'site',
  'warranty_expiry',
])

export function showAsset(call: ToolCall): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({ ...assetRow(raw, zone), url: call.site.link('assets', String(raw.id)) })
}

/**
 * The id of an asset given by id, name, tag, serial number or barcode.
 * @throws SdpError `not-found`, with close names
 */
export async function assetId(call: ToolCall, reference: string): Promise<string> {
  const wanted = reference.trim()
  if (/^\d{12,}$/.test(wanted)) return wanted
  const keys = ['name', 'asset_tag', 'serial_number', 'barcode']
  const page = await call.records.list(call.sdp, 'asset', {
    row_count: 5,
    start_index: 1,
    search_criteria: criteria(any(...keys.map(key => is(key, wanted)))),
  })
  const ids = page.rows.map(found => text(found.id)).filter(id => id !== undefined)
  if (ids.length === 1 && ids[0]) return ids[0]
  throw new SdpError(
    ids.length > 1 ? 'invalid-value' : 'not-found',
    ids.length > 1 ? `"${wanted}" fits several assets.` : `There is no asset "${wanted}".`,
    {
      fields: ['asset_id'],
      allowed: closest(
        wanted,
        page.rows.map(found => text(found.name) ?? ''),
        5,
      ),
      nextStep: 'Find it with search_assets and give its id.',
    },
  )
}
