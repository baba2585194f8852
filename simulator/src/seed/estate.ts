import { insert, nextDisplayId, nextId, type Portal, rowsOf, type StoredRecord } from '../state.ts'
import { personId, recordNamed, ticketNamed } from './find.ts'
import { idOf } from './lookups.ts'
import type { Random } from './random.ts'

const dayMs = 24 * 60 * 60 * 1000

/** What the company owns: assets, configuration items with relations, contracts, orders. */
export function seedEstate(portal: Portal, now: number, random: Random): void {
  seedCatalogue(portal)
  seedAssets(portal, now, random)
  seedCis(portal, now)
  seedPurchasing(portal, now)
}

function seedCatalogue(portal: Portal): void {
  const named = (table: string, names: string[], more: object = {}) => {
    for (const name of names) insert(portal, table, { id: nextId(portal), name, ...more })
  }
  named('product_types', ['Workstation', 'Monitor', 'Printer', 'Switch', 'Smartphone', 'Docking Station'])
  named('asset_states', ['In Use', 'In Store', 'In Repair', 'Expired', 'Disposed'])
  named('vendors', ['Konrad Automation', 'Delft Computers', 'Lumen Office Supply', 'Gateway Networks'])
  const products: [string, string, string][] = [
    ['Nordbook 14 G3', 'Workstation', 'Nordtec'],
    ['Nordbook 16 Pro', 'Workstation', 'Nordtec'],
    ['ViewLine 27', 'Monitor', 'ViewLine'],
    ['PrintCore 5100', 'Printer', 'PrintCore'],
    ['NetStack 48', 'Switch', 'Gateway Networks'],
    ['Phone X4', 'Smartphone', 'Celltra'],
    ['WD19', 'Docking Station', 'Nordtec'],
  ]
  for (const [name, type, manufacturer] of products)
    insert(portal, 'products', {
      id: nextId(portal),
      name,
      product_type: idOf(portal, 'product_types', type),
      manufacturer,
    })
  const software: [string, string, number, number][] = [
    ['Office Suite', '2026', 212, 250],
    ['CAD Viewer', '11.2', 38, 40],
    ['VPN Client', '5.8.2', 260, 400],
    ['Simulation Studio', '8', 12, 10],
  ]
  for (const [name, version, installations, licences] of software)
    insert(portal, 'software', { id: nextId(portal), name, version, installations, licences })
}

function seedAssets(portal: Portal, now: number, random: Random): void {
  const asset = (name: string, product: string, state: string, more: Record<string, unknown> = {}): StoredRecord => {
    const productRow = recordNamed(portal, 'products', product)
    const type = portal.tables.product_types?.[String(productRow.product_type)]?.name
    const bought = now - random.between(100, 1200) * dayMs
    const number = 100000 + random.between(1, 899_999)
    return insert(portal, 'assets', {
      id: nextId(portal),
      name,
      product: productRow.id,
      type_name: type,
      state: idOf(portal, 'asset_states', state),
      asset_tag: `NW-${number}`,
      serial_number: `SN${number}${random.between(10, 99)}`,
      barcode: `BC${number}`,
      acquisition_date: bought,
      warranty_expiry: bought + 1095 * dayMs,
      purchase_cost: random.between(180, 2400),
      vendor: idOf(portal, 'vendors', 'Delft Computers'),
      site: idOf(portal, 'sites', 'Rotterdam'),
      created_time: bought,
      created_by: personId(portal, 'Carol'),
      ...more,
    })
  }
  const owners = rowsOf(portal, 'users')
    .filter(row => row.is_technician !== true)
    .slice(0, 16)
  for (const [i, owner] of owners.entries()) {
    asset(`NW-LT-${101 + i}`, i % 4 === 0 ? 'Nordbook 16 Pro' : 'Nordbook 14 G3', 'In Use', {
      user: owner.id,
      department: owner.department,
      site: owner.site,
      computer_system: { model: 'Nordbook', manufacturer: 'Nordtec', service_tag: `NB${101 + i}` },
      operating_system: { os: 'Windows 11 Enterprise', version: '24H2' },
      memory: { physical_memory: '16 GB' },
    })
  }
  asset('NW-LT-031', 'Nordbook 14 G3', 'In Use', {
    user: personId(portal, 'Ana'),
    loan_start: now - dayMs,
    loan_end: now + 6 * dayMs,
  })
  for (const name of ['NW-LT-120', 'NW-LT-121', 'NW-LT-122']) asset(name, 'Nordbook 14 G3', 'In Store')
  asset('NW-MON-044', 'ViewLine 27', 'In Use', { user: personId(portal, 'Jonas') })
  asset('NW-MON-045', 'ViewLine 27', 'In Repair')
  asset('NW-PRN-03', 'PrintCore 5100', 'In Use', { location: 'Floor 3' })
  asset('sw-rtm-core-1', 'NetStack 48', 'In Use', { location: 'Server room' })
  asset('NW-PH-17', 'Phone X4', 'Disposed')
  asset('NW-DOCK-08', 'WD19', 'In Use', { user: personId(portal, 'Jonas') })
  const link = (subject: string, name: string) => {
    ticketNamed(portal, subject).assets = [recordNamed(portal, 'assets', name).id]
  }
  link('Printer on floor 3', 'NW-PRN-03')
  link('Docking station does not detect', 'NW-DOCK-08')
  link('Core switch in Rotterdam', 'sw-rtm-core-1')
  link('Laptop does not start', 'NW-LT-031')
}

function seedCis(portal: Portal, now: number): void {
  const ci = (type: string, name: string, attributes: object, text = '') =>
    insert(portal, 'cis', {
      id: nextId(portal),
      ci_type_name: type,
      name,
      description: text,
      ci_attributes: attributes,
      created_by: personId(portal, 'Carol'),
      created_time: now - 300 * dayMs,
    })
  const erp = ci('ci_business_service', 'ERP', { txt_tier: 'Gold' }, '<p>Order to cash</p>')
  const remote = ci('ci_business_service', 'Remote Access', { txt_tier: 'Silver' })
  const sap = ci('ci_application', 'SAP S/4', { txt_version: '2025', txt_vendor: 'SAP' })
  const crm = ci('ci_application', 'CRM', { txt_version: '4.1', txt_vendor: 'Own' })
  const app = ci('ci_server', 'rtm-app-01', { txt_operating_system: 'Debian 13', num_cores: 16, bool_virtual: true })
  const database = ci('ci_server', 'rtm-db-01', {
    txt_operating_system: 'Debian 13',
    num_cores: 32,
    bool_virtual: false,
  })
  const gateway = ci('ci_network_device', 'gw2.northwind.example', {
    txt_firmware: '7.3',
    txt_ip_address: '198.51.100.12',
  })
  const core = ci('ci_network_device', 'sw-rtm-core-1', { txt_firmware: '12.1', num_ports: 48 })
  ci('ci_computer', 'NW-LT-101', { txt_operating_system: 'Windows 11 Enterprise', num_memory_gb: 16 })
  const relate = (from: StoredRecord, type: string, to: StoredRecord) =>
    insert(portal, 'ci_relationships', {
      id: nextId(portal),
      parent: from.id,
      relationship_type: { name: type },
      ci: to.id,
      created_time: now - 200 * dayMs,
    })
  relate(erp, 'Depends on', sap)
  relate(sap, 'Runs on', app)
  relate(sap, 'Depends on', database)
  relate(crm, 'Runs on', app)
  relate(remote, 'Depends on', gateway)
  relate(gateway, 'Connected to', core)
  ticketNamed(portal, 'VPN drops every few minutes').configuration_items = [gateway.id]
  ticketNamed(portal, 'SAP order entry').configuration_items = [sap.id]
}

function seedPurchasing(portal: Portal, now: number): void {
  const contract = (name: string, number: string, vendor: string, from: number, till: number, cost: number) =>
    insert(portal, 'contracts', {
      id: nextId(portal),
      display_id: nextDisplayId(portal, 'contracts'),
      name,
      custom_id: number,
      vendor: idOf(portal, 'vendors', vendor),
      active_from: now + from * dayMs,
      active_till: now + till * dayMs,
      is_definite: true,
      cost,
      type: idOf(portal, 'contract_types', 'Maintenance'),
      owner: personId(portal, 'Carol'),
      support: '<p>Next business day</p>',
      created_by: personId(portal, 'Carol'),
      created_time: now + from * dayMs,
    })
  const hardware = contract('Hardware support notebooks', 'C-2024-07', 'Delft Computers', -500, 230, 18_000)
  hardware.assets = rowsOf(portal, 'assets')
    .slice(0, 5)
    .map(row => row.id)
  contract('Network maintenance', 'C-2025-02', 'Gateway Networks', -300, 25, 9_600)
  contract('Copier lease', 'C-2021-11', 'Lumen Office Supply', -1500, -40, 4_200)
  contract('MES remote support', 'C-2026-01', 'Konrad Automation', 14, 380, 12_500)

  const order = (name: string, number: string, vendor: string, status: string, lines: [string, number, number][]) =>
    insert(portal, 'purchase_orders', {
      id: nextId(portal),
      display_id: nextDisplayId(portal, 'purchase_orders'),
      name,
      custom_id: number,
      vendor: idOf(portal, 'vendors', vendor),
      requested_by: personId(portal, 'Carol'),
      status: idOf(portal, 'purchase_order_statuses', status),
      items: lines.map(([product, quantity, price]) => ({
        product: idOf(portal, 'products', product),
        ordered_quantity: quantity,
        price,
        tax_rate: 21,
        received_quantity: status === 'Received' ? quantity : 0,
      })),
      required_date: now + 14 * dayMs,
      sites: [idOf(portal, 'sites', 'Rotterdam')],
      ship_address: 'Northwind Robotics, Rotterdam, gate 3',
      created_by: personId(portal, 'Carol'),
      created_time: now - 12 * dayMs,
    })
  order('Notebooks for new starters', 'PO-118', 'Delft Computers', 'Ordered', [
    ['Nordbook 14 G3', 6, 980],
    ['WD19', 6, 165],
  ])
  order('Access points hall A', 'PO-121', 'Gateway Networks', 'Open', [['NetStack 48', 1, 2100]])
  order('Toner and paper', 'PO-109', 'Lumen Office Supply', 'Received', [['PrintCore 5100', 1, 640]])
}
