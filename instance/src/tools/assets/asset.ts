import { SdpError } from '../../sdp/errors.ts'
import { type Json, text } from '../../sdp/json.ts'
import { any, criteria, is, largestPage } from '../../sdp/list-info.ts'
import { closest } from '../../sdp/similar.ts'
import type { ToolCall } from '../define.ts'
import { amount, fieldSet, line, moment, option, who } from '../field-set.ts'
import { row } from '../record-view.ts'

/** docs/sdp-api.md 13. */
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

/** By what an asset is known, beside its id. */
const keys = ['name', 'asset_tag', 'serial_number', 'barcode'] as const
const isId = (reference: string) => /^\d{12,}$/.test(reference)

/** Everything that an edit may touch and a preview shows, so that finding an asset is reading it. */
const found = [
  ...['id', 'product_type', 'udf_fields', 'name', 'product', 'state', 'asset_tag', 'serial_number', 'barcode'],
  ...['user', 'department', 'site', 'vendor', 'location', 'acquisition_date', 'warranty_expiry', 'expiry_date'],
  'purchase_cost',
]

/**
 * The asset with this id, name, tag, serial number or barcode, read in one call.
 * @throws SdpError `not-found`, or `invalid-value` when several fit, with close names
 */
export async function findAsset(call: ToolCall, reference: string): Promise<Json> {
  const wanted = reference.trim()
  if (isId(wanted)) return call.records.get(call.sdp, 'asset', wanted)
  return theOne(wanted, await withKeys(call, [wanted], found))
}

/** The same for ids alone, several in one call. */
export async function assetIds(call: ToolCall, references: string[]): Promise<string[]> {
  const wanted = [...new Set(references.map(reference => reference.trim()))]
  const named = wanted.filter(reference => !isId(reference))
  const rows = named.length > 0 ? await withKeys(call, named, ['id', ...keys]) : []
  return wanted.map(one => (isId(one) ? one : (text(theOne(one, rows).id) ?? '')))
}

export async function assetId(call: ToolCall, reference: string): Promise<string> {
  const [id = ''] = await assetIds(call, [reference])
  return id
}

async function withKeys(call: ToolCall, wanted: string[], fields: string[]): Promise<Json[]> {
  const page = await call.records.list(call.sdp, 'asset', {
    row_count: largestPage,
    start_index: 1,
    search_criteria: criteria(any(...keys.map(key => is(key, ...wanted)))),
    fields_required: fields,
  })
  return page.rows
}

/** SDP compares names without case (docs/sdp-api.md 3.3). */
function theOne(wanted: string, rows: Json[]): Json {
  const same = (value: unknown) => text(value)?.toLowerCase() === wanted.toLowerCase()
  const fitting = rows.filter(row => keys.some(key => same(row[key])))
  if (fitting.length === 1 && fitting[0]) return fitting[0]
  const names = (fitting.length > 0 ? fitting : rows).map(row => text(row.name) ?? '')
  throw new SdpError(
    fitting.length > 1 ? 'invalid-value' : 'not-found',
    fitting.length > 1 ? `"${wanted}" fits several assets.` : `There is no asset "${wanted}".`,
    {
      fields: ['asset_id'],
      allowed: closest(wanted, names, 5),
      nextStep: 'Find it with search_assets and give its id.',
    },
  )
}
