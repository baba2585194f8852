import { z } from 'zod'
import { defineTool } from '../define.ts'
import { byPerson, namedAny, namesInput, pagingInputs, personInput, searchRecords, textIn } from '../record-search.ts'
import { assetRow } from './asset.ts'

export const searchAssets = defineTool({
  name: 'search_assets',
  title: 'Search assets',
  toolset: 'assets',
  description: 'Searches assets on the server by words in name, tag or serial number, by user, state, product or site.',
  input: {
    text: z.string().min(1).optional(),
    user: personInput,
    state: namesInput,
    product: namesInput,
    product_type: namesInput,
    site: namesInput,
    department: namesInput,
    ...pagingInputs,
  },
  effect: 'read',
  scopes: ['assets.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'asset',
      key: 'assets',
      input,
      row: assetRow,
      sort: { field: 'name', order: 'asc' },
      conditions: [
        textIn(input.text, 'name', 'asset_tag', 'serial_number', 'barcode'),
        await byPerson(call, 'user', input.user, 'any'),
        await namedAny(call, 'state', input.state, 'asset'),
        await namedAny(call, 'product', input.product, 'asset'),
        await namedAny(call, 'product_type', input.product_type, 'asset'),
        await namedAny(call, 'site', input.site),
        await namedAny(call, 'department', input.department),
      ],
    })
  },
})
