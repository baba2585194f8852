import { row } from '../record-view.ts'

/** docs/sdp-api.md 15. */
export const contractRow = row([
  'name',
  'custom_id',
  'vendor',
  'type',
  'status',
  'owner',
  'active_from',
  'active_till',
  'cost',
])
export const purchaseOrderRow = row([
  'name',
  'custom_id',
  'vendor',
  'requested_by',
  'status',
  'approval_status',
  'required_date',
  'total_price',
  'created_time',
])
