import { z } from 'zod'
import { recordPath } from '../../sdp/records.ts'
import { defineTool } from '../define.ts'
import { below, detail } from '../record-view.ts'
import { noteRow } from '../rows.ts'

export const getPurchaseOrder = defineTool({
  name: 'get_purchase_order',
  title: 'Read a purchase order',
  toolset: 'purchasing',
  description: 'Reads one purchase order with its items and notes.',
  input: { purchase_order_id: z.string().min(1).describe('Id from search_purchase_orders') },
  effect: 'read',
  scopes: ['purchases.READ'],
  async run({ purchase_order_id }, call) {
    const id = await call.records.id(call.sdp, 'purchase_order', purchase_order_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'purchase_order', id), call.zone()])
    return {
      data: { ...detail(raw, zone), notes: await below(call, recordPath('purchase_order', id), 'notes', noteRow) },
    }
  },
})
