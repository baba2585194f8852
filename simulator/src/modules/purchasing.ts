import { fail } from '../api/failure.ts'
import { uploadCollectionOperations, uploadOperations } from '../operations/uploads.ts'
import { rowByName } from '../state.ts'
import { approvalLevelsOf } from './approvals.ts'
import {
  allVerbs,
  anything,
  decimal,
  displayId,
  files,
  flag,
  html,
  id,
  integer,
  type Module,
  money,
  ref,
  refs,
  rows,
  text,
  time,
  user,
} from './module.ts'
import { notesOf } from './notes.ts'

/** Contracts (docs/sdp-api.md 15): a definite one needs its end. */
const contracts: Module = {
  path: 'contracts',
  table: 'contracts',
  root: 'contract',
  entity: 'contract',
  scopes: ['contracts'],
  verbs: allVerbs,
  numbered: true,
  fields: {
    id,
    display_id: displayId,
    name: text({ mandatory: true }),
    custom_id: text({ unique: true }),
    vendor: ref('vendors', { mandatory: true }),
    active_from: time({ mandatory: true }),
    active_till: time(),
    owner: user(),
    is_definite: flag(),
    comments: html(),
    support: html(),
    cost: money(),
    type: ref('contract_types'),
    status: ref('contract_statuses', {
      readOnly: true,
      compute: (row, call) => {
        const isExpired = Number(row.active_till ?? Infinity) < call.world.now()
        const isAhead = Number(row.active_from) > call.world.now()
        return rowByName(call.portal, 'contract_statuses', isExpired ? 'Expired' : isAhead ? 'Open' : 'Active')?.id
      },
    }),
    notification_rules: anything(),
    parent_contract: ref('contracts'),
    assets: refs('assets'),
    attachments: files(),
    created_by: user({ readOnly: true }),
    created_time: time({ readOnly: true }),
  },
  listFields: [
    'id',
    'display_id',
    'name',
    'custom_id',
    'vendor',
    'type',
    'status',
    'owner',
    'active_from',
    'active_till',
    'cost',
    'is_definite',
  ],
  referenceFields: ['id', 'name'],
  defaultSort: { field: 'active_till', order: 'asc' },
  defaults: call => ({ owner: call.caller.row.id, is_definite: true }),
  extraMandatory: sent => (sent.is_definite === false ? [] : ['active_till']),
  beforeSave({ record }) {
    if (record.active_till != null && Number(record.active_from) > Number(record.active_till))
      throw fail.timeMismatch(['active_from', 'active_till'])
    return undefined
  },
  operations: uploadOperations,
  collectionOperations: uploadCollectionOperations,
}

interface Line {
  ordered_quantity: number
  price: number
  tax_rate?: number | null
}

/** Purchase orders (docs/sdp-api.md 15). */
const purchaseOrders: Module = {
  path: 'purchase_orders',
  table: 'purchase_orders',
  root: 'purchase_order',
  entity: 'purchase_order',
  scopes: ['purchases'],
  verbs: allVerbs,
  numbered: true,
  fields: {
    id,
    display_id: displayId,
    name: text({ mandatory: true }),
    custom_id: text({ unique: true }),
    requested_by: user({ mandatory: true }),
    vendor: ref('vendors', { mandatory: true }),
    items: rows(
      {
        product: ref('products', { mandatory: true }),
        ordered_quantity: integer({ mandatory: true, minimum: 1 }),
        price: decimal({ mandatory: true, minimum: 0 }),
        tax_rate: decimal({ minimum: 0 }),
        description: text(),
        received_quantity: integer({ readOnly: true }),
      },
      { mandatory: true },
    ),
    template: ref('purchase_order_templates'),
    required_date: time(),
    sites: refs('sites'),
    ship_address: text(),
    bill_address: text(),
    terms: html(),
    attachments: files({ maxItems: 50 }),
    status: ref('purchase_order_statuses', { readOnly: true }),
    approval_status: ref('approval_statuses', { readOnly: true }),
    total_price: money({
      readOnly: true,
      compute: row =>
        ((row.items as Line[] | undefined) ?? []).reduce(
          (sum, line) => sum + line.ordered_quantity * line.price * (1 + (line.tax_rate ?? 0) / 100),
          0,
        ),
    }),
    created_by: user({ readOnly: true }),
    created_time: time({ readOnly: true }),
  },
  listFields: [
    'id',
    'display_id',
    'name',
    'custom_id',
    'vendor',
    'requested_by',
    'status',
    'approval_status',
    'required_date',
    'total_price',
    'created_time',
  ],
  referenceFields: ['id', 'name'],
  defaultSort: { field: 'created_time', order: 'desc' },
  defaults: call => ({ status: rowByName(call.portal, 'purchase_order_statuses', 'Open')?.id }),
  operations: uploadOperations,
  collectionOperations: uploadCollectionOperations,
  children: [
    notesOf('purchase_order_notes', 'purchase_orders', 'purchase_order'),
    approvalLevelsOf('purchase_order', 'purchase_orders'),
  ],
}

export const purchasingModules: Module[] = [contracts, purchaseOrders]
