import type { Call } from '../api/call.ts'
import { fail } from '../api/failure.ts'
import { removeDeep } from '../api/verbs.ts'
import { recordHistory } from '../operations/history.ts'
import { uploadOperations } from '../operations/uploads.ts'
import type { Portal } from '../state.ts'
import { rowById, rowByName, rowsOf, type StoredRecord } from '../state.ts'
import { history } from './conversations.ts'
import {
  allVerbs,
  anything,
  type Fields,
  files,
  flag,
  group,
  id,
  integer,
  type Module,
  money,
  ref,
  text,
  time,
  udfFields,
  user,
} from './module.ts'

const typeOf = (row: StoredRecord, portal: Portal) => {
  const product = rowById(portal, 'products', row.product)
  return rowById(portal, 'product_types', product?.product_type)
}

const fields: Fields = {
  id,
  name: text({ mandatory: true, unique: true }),
  product: ref('products', { mandatory: true }),
  product_type: ref('product_types', { readOnly: true, compute: (row, call) => typeOf(row, call.portal)?.id }),
  state: ref('asset_states'),
  asset_tag: text({ unique: true }),
  serial_number: text(),
  barcode: text({ unique: true }),
  state_history_comments: text({ writeOnly: true }),
  acquisition_date: time(),
  warranty_expiry: time(),
  expiry_date: time(),
  purchase_cost: money(),
  vendor: ref('vendors'),
  location: text(),
  site: ref('sites'),
  department: ref('departments'),
  user: user(),
  used_by_asset: ref('assets'),
  loan_start: time(),
  loan_end: time(),
  is_loaned: flag({ readOnly: true, compute: row => row.loan_end != null }),
  ci: ref('cis', { readOnly: true }),
  udf_fields: udfFields(),
  attachments: files(),
  created_by: user({ readOnly: true }),
  created_time: time({ readOnly: true }),
  last_updated_time: time({ readOnly: true }),
}

function asset(path: string, root: string, more: Fields, only?: (row: StoredRecord) => boolean): Module {
  return {
    path,
    table: 'assets',
    only,
    root,
    entity: 'asset',
    scopes: ['assets'],
    verbs: allVerbs,
    offersLookups: true,
    fields: { ...fields, ...more },
    listFields: [
      'id',
      'name',
      'product',
      'product_type',
      'state',
      'asset_tag',
      'serial_number',
      'barcode',
      'user',
      'department',
      'site',
      'warranty_expiry',
    ],
    referenceFields: ['id', 'name', 'asset_tag', 'barcode'],
    defaultSort: { field: 'name', order: 'asc' },
    defaults: (call: Call) => ({ state: rowByName(call.portal, 'asset_states', 'In Store')?.id }),
    beforeSave({ record, before }, call) {
      if (before) record.last_updated_time = call.world.now()
      if (only && !only({ ...record, type_name: typeOf(record, call.portal)?.name })) throw fail.unknownValue('product')
      record.type_name = typeOf(record, call.portal)?.name
      return undefined
    },
    afterSave: ({ record, before, sent }, call) =>
      recordHistory(
        call,
        record,
        before,
        before ? 'UPDATE' : 'CREATE',
        sent.state_history_comments as string | undefined,
      ),
    onDelete(record, call) {
      const inUse = rowsOf(call.portal, 'requests').some(row =>
        (row.assets as string[] | undefined)?.includes(record.id),
      )
      if (inUse) throw fail.inUse('The asset is linked to requests')
      removeDeep(call, record)
    },
    operations: uploadOperations,
    children: [history],
  }
}

const computerFields: Fields = {
  computer_system: group({ model: text(), service_tag: text(), manufacturer: text() }),
  memory: group({ physical_memory: anything() }),
  operating_system: group({ os: text(), version: text() }),
}

function catalogue(path: string, root: string, more: Fields = {}): Module {
  return {
    path,
    table: path,
    root,
    scopes: ['assets', 'setup'],
    verbs: allVerbs,
    adminOnly: true,
    fields: { id, name: text({ mandatory: true, unique: true }), ...more },
    referenceFields: ['id', 'name'],
    defaultSort: { field: 'name', order: 'asc' },
  }
}

/** Assets and what describes them (docs/sdp-api.md 13). `/workstations` are the assets of that product type. */
export const assetModules: Module[] = [
  asset('assets', 'asset', computerFields),
  asset('workstations', 'workstation', computerFields, row => row.type_name === 'Workstation'),
  catalogue('products', 'product', {
    product_type: ref('product_types', { mandatory: true }),
    manufacturer: text(),
    part_no: text(),
  }),
  catalogue('product_types', 'product_type', { category: text() }),
  catalogue('vendors', 'vendor', { email_id: text(), phone: text(), description: text() }),
  catalogue('asset_states', 'asset_state', { description: text() }),
  catalogue('software', 'software', {
    version: text(),
    publisher: text(),
    installations: integer(),
    licences: integer(),
  }),
]
