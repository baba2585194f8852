import { defineTool } from '../define.ts'
import {
  between,
  byPerson,
  namedAny,
  namesInput,
  personInput,
  searchInputs,
  searchRecords,
  textIn,
} from '../record-search.ts'
import { purchaseOrderRow } from './purchasing.ts'

const { status: _status, priority: _priority, ...inputs } = searchInputs

export const searchPurchaseOrders = defineTool({
  name: 'search_purchase_orders',
  title: 'Search purchase orders',
  toolset: 'purchasing',
  description: 'Searches purchase orders by words in the name, vendor, requester or date.',
  input: { ...inputs, vendor: namesInput, requested_by: personInput },
  effect: 'read',
  scopes: ['purchases.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'purchase_order',
      key: 'purchase_orders',
      input,
      row: purchaseOrderRow,
      conditions: [
        textIn(input.text, 'name'),
        await namedAny(call, 'vendor', input.vendor),
        await byPerson(call, 'requested_by', input.requested_by, 'any'),
        await between(call, 'created_time', input.created_from, input.created_to),
      ],
    })
  },
})
