import { builtInId, insert, nextId, type Portal, rowByName, type StoredRecord } from '../state.ts'

type Row = Record<string, unknown> & { name: string }

/** Adds rows; a six-digit suffix makes the id of a built-in record (docs/sdp-api.md 5.1). */
function fill(portal: Portal, table: string, rows: [suffix: string | null, row: Row][]): void {
  for (const [suffix, row] of rows)
    insert(portal, table, { id: suffix ? builtInId(portal, suffix) : nextId(portal), ...row })
}

const named = (...names: string[]): [null, Row][] => names.map(name => [null, { name }])

/** The row with this name; a seed that names something missing is a mistake in the seed. */
export function idOf(portal: Portal, table: string, name: string): string {
  const row = rowByName(portal, table, name)
  if (!row) throw new Error(`seed: no ${table} "${name}"`)
  return row.id
}

/** Categories with subcategories and items. */
export type CategoryTree = Record<string, Record<string, string[]>>

const itCategories: CategoryTree = {
  Software: {
    'Office Applications': ['Excel', 'Outlook', 'Word', 'Teams'],
    'Business Applications': ['SAP', 'CRM', 'Timesheet'],
    Licensing: ['New licence', 'Renewal'],
  },
  Hardware: {
    Laptop: ['Battery', 'Keyboard', 'Screen', 'Docking station'],
    Printer: ['Paper jam', 'Toner', 'Driver'],
    Mobile: ['Phone', 'Tablet'],
    Monitor: [],
  },
  Network: {
    VPN: ['Client', 'Certificate'],
    'Wireless LAN': ['Coverage', 'Guest access'],
    'Wired LAN': ['Port', 'Switch'],
    Internet: [],
  },
  'User Administration': {
    'Password Reset': [],
    'New Account': ['Employee', 'Contractor'],
    Permissions: ['File share', 'Mailbox', 'Application'],
    Leaver: [],
  },
  Security: {
    Phishing: [],
    Malware: [],
    'Data Loss': [],
  },
  'E-Mail': {
    Delivery: [],
    'Shared Mailbox': [],
    Calendar: [],
  },
}

const hrCategories: CategoryTree = {
  Payroll: { Payslip: [], Tax: [] },
  Benefits: { Insurance: [], Pension: [] },
  Leave: { Vacation: [], Parental: [] },
  Onboarding: { Documents: [], Equipment: [] },
}

function fillCategories(portal: Portal, tree: CategoryTree): void {
  for (const [name, below] of Object.entries(tree)) {
    const category = insert(portal, 'categories', {
      id: name === 'Software' ? builtInId(portal, '006689') : nextId(portal),
      name,
      description: null,
      deleted: false,
    })
    for (const [subName, items] of Object.entries(below)) {
      const subcategory = addUnder(portal, 'subcategories', category, subName)
      for (const item of items) addUnder(portal, 'items', subcategory, item)
    }
  }
}

function addUnder(portal: Portal, table: string, parent: StoredRecord, name: string): StoredRecord {
  return insert(portal, table, { id: nextId(portal), parent: parent.id, name, deleted: false })
}

/** What sites call their priorities is their own business; the second portal shows names as they occur (18.7). */
export function priorityName(portal: Portal, name: 'High' | 'Medium' | 'Normal' | 'Low'): string {
  return portal.name === 'itdesk'
    ? name
    : { High: '1 - High', Medium: 'z - Medium', Normal: '3 - Normal', Low: '4 - Low' }[name]
}

/** Everything an administrator sets up before the first ticket. */
export function seedLookups(portal: Portal): void {
  const isIt = portal.name === 'itdesk'
  fill(portal, 'statuses', [
    ['006657', { name: 'Open', internal_name: 'Open', color: '#0066ff', in_progress: true, stop_timer: false }],
    ['006659', { name: 'On Hold', internal_name: 'Onhold', color: '#ff9900', in_progress: true, stop_timer: true }],
    ['006661', { name: 'Closed', internal_name: 'Closed', color: '#006600', in_progress: false, stop_timer: true }],
    ['006663', { name: 'Resolved', internal_name: 'Resolved', color: '#339966', in_progress: false, stop_timer: true }],
    [
      '006662',
      { name: 'Cancelled', internal_name: 'Cancelled', color: '#999999', in_progress: false, stop_timer: true },
    ],
    [
      '006664',
      { name: 'In Progress', internal_name: 'In Progress', color: '#00aaff', in_progress: true, stop_timer: false },
    ],
  ])
  fill(portal, 'modes', [
    ['006665', { name: 'E-Mail' }],
    ['006667', { name: 'Web Form' }],
    ['006669', { name: 'Phone Call' }],
  ])
  fill(portal, 'levels', [
    ['006671', { name: 'Tier 1' }],
    ['006673', { name: 'Tier 2' }],
    ['006675', { name: 'Tier 3' }],
  ])
  fill(portal, 'priorities', [
    ['006805', { name: priorityName(portal, 'High'), color: '#ff0000' }],
    ['006803', { name: priorityName(portal, 'Medium'), color: '#ff9900' }],
    ['006801', { name: priorityName(portal, 'Normal'), color: '#666666' }],
    ['006799', { name: priorityName(portal, 'Low'), color: '#288251' }],
  ])
  fill(portal, 'urgencies', [
    ['007917', { name: 'Urgent' }],
    ['007919', { name: 'High' }],
    ['007921', { name: 'Normal' }],
    ['007923', { name: 'Low' }],
  ])
  fill(portal, 'impacts', [
    ['008033', { name: 'Affects Business' }],
    ['008036', { name: 'Affects Group' }],
    ['008039', { name: 'Affects Department' }],
    ['008042', { name: 'Affects User' }],
  ])
  fill(portal, 'request_types', [
    ['008391', { name: 'Incident' }],
    ['008393', { name: 'Request For Information' }],
  ])
  fill(portal, 'closure_codes', [
    ['090001', { name: 'Completed', module: { name: 'request' }, inactive: false }],
    ['090003', { name: 'Not Reproducible', module: { name: 'request' }, inactive: false }],
    ['090005', { name: 'Duplicate', module: { name: 'request' }, inactive: false }],
    ['090007', { name: 'Successful', module: { name: 'change' }, inactive: false }],
    ['090009', { name: 'Rolled Back', module: { name: 'change' }, inactive: false }],
    ['090011', { name: 'Released', module: { name: 'release' }, inactive: false }],
    ['090013', { name: 'Permanent Fix', module: { name: 'problem' }, inactive: false }],
    ['090015', { name: 'Workaround', module: { name: 'problem' }, inactive: false }],
  ])
  fill(portal, 'approval_statuses', named('Pending Approval', 'Approved', 'Rejected', 'To Be Sent'))
  fill(portal, 'regions', named('Europe', 'North America'))
  const region = idOf(portal, 'regions', 'Europe')
  fill(portal, 'sites', [
    [null, { name: 'Rotterdam', region, deleted: false }],
    [null, { name: 'Lyon', region, deleted: false }],
    [null, { name: 'Boston', region: idOf(portal, 'regions', 'North America'), deleted: false }],
    [null, { name: 'Old Warehouse', region, deleted: true }],
  ])
  fill(portal, 'departments', named('Engineering', 'Finance', 'Sales', 'Human Resources', 'Production', 'IT Services'))
  fill(portal, 'user_groups', named('All Staff', 'Managers', 'VIP Users'))
  fill(
    portal,
    'service_categories',
    named('User Management', 'Hardware Provisioning', 'Software Provisioning', 'Communication'),
  )
  fill(portal, 'worklog_types', named('Remote Support', 'On Site', 'Research', 'Travel'))
  fill(portal, 'task_types', named('Analysis', 'Implementation', 'Verification', 'Communication'))
  fill(portal, 'tags', named('vip', 'recurring', 'needs-vendor'))
  fill(portal, 'checklist_templates', named('New laptop', 'Leaver'))
  seedSpace(portal)
  fill(portal, 'services', named('E-Mail Service', 'Network Service', 'ERP Service', 'Workplace Service'))
  fill(portal, 'slas', [
    [null, { name: 'High SLA', due_by_hours: 8 }],
    [null, { name: 'Medium SLA', due_by_hours: 24 }],
    [null, { name: 'Normal SLA', due_by_hours: 72 }],
    [null, { name: 'Low SLA', due_by_hours: 120 }],
  ])
  fill(portal, 'support_groups', [
    ['006681', { name: isIt ? 'Network' : 'Payroll', description: 'Tier 2', deleted: false }],
    ...(isIt
      ? named('Desktop Support', 'Applications', 'Security', 'Service Desk')
      : named('HR Operations', 'Benefits Team')),
  ])
  seedWorkflows(portal)
  fillCategories(portal, isIt ? itCategories : hrCategories)
  seedRoles(portal)
  seedTemplates(portal)
  if (isIt) seedUdfFields(portal)
}

/** Stages with the statuses that belong to them; status names may repeat between stages. */
type Workflow = Record<string, string[]>

const changeWorkflow: Workflow = {
  Submission: ['Requested', 'Accepted'],
  Planning: ['Planning In Progress', 'Planned'],
  'CAB Evaluation': ['CAB Pending', 'CAB Approved', 'CAB Rejected'],
  Implementation: ['Implementation In Progress', 'Implemented'],
  UAT: ['UAT In Progress', 'UAT Passed'],
  Release: ['Release In Progress', 'Released'],
  Review: ['Review In Progress', 'Reviewed'],
  Close: ['Completed', 'Canceled'],
}
const releaseWorkflow: Workflow = {
  Submission: ['Requested', 'Accepted'],
  Planning: ['Planning In Progress', 'Planned'],
  Development: ['Development In Progress', 'Developed'],
  Testing: ['Testing In Progress', 'Tested'],
  Deployment: ['Deployment In Progress', 'Deployed'],
  Close: ['Completed', 'Canceled'],
}

function fillWorkflow(portal: Portal, kind: string, workflow: Workflow): void {
  for (const [i, [name, statuses]] of Object.entries(workflow).entries()) {
    const internal = name.replace(/ /g, '')
    const stage = insert(portal, `${kind}_stages`, {
      id: nextId(portal),
      name,
      internal_name: internal,
      stage_index: i + 1,
    })
    for (const status of statuses) {
      const row = { name: status, internal_name: status.replace(/ /g, ''), stage: stage.id }
      insert(portal, `${kind}_statuses`, { id: nextId(portal), ...row })
    }
  }
}

/** What changes, releases, projects, articles, contracts and orders choose from. */
function seedWorkflows(portal: Portal): void {
  fillWorkflow(portal, 'change', changeWorkflow)
  fillWorkflow(portal, 'release', releaseWorkflow)
  fill(portal, 'change_types', [
    [null, { name: 'Standard', color: '#288251', pre_approved: true }],
    [null, { name: 'Minor', color: '#666666', pre_approved: false }],
    [null, { name: 'Major', color: '#ff9900', pre_approved: false }],
    [null, { name: 'Emergency', color: '#ff0000', pre_approved: false }],
  ])
  fill(portal, 'change_risks', named('High', 'Medium', 'Low'))
  fill(portal, 'reason_for_changes', named('Fix', 'Upgrade', 'Legal', 'New service'))
  fill(portal, 'release_types', named('Major', 'Minor', 'Emergency'))
  fill(portal, 'reason_for_releases', named('New features', 'Fixes'))
  fill(portal, 'project_statuses', named('Open', 'In Progress', 'On Hold', 'Completed', 'Canceled'))
  fill(portal, 'project_types', named('Infrastructure', 'Application', 'Compliance'))
  fill(portal, 'project_roles', named('Project Manager', 'Member', 'Viewer'))
  fill(portal, 'project_templates', named('Default Project'))
  fill(portal, 'solution_statuses', named('UnApproved', 'Approval Pending', 'Approved', 'Rejected', 'Published'))
  fill(portal, 'solution_templates', named('Default Solution'))
  fill(portal, 'contract_types', named('Lease', 'Maintenance', 'Support'))
  fill(portal, 'contract_statuses', named('Open', 'Active', 'Expired'))
  fill(portal, 'purchase_order_statuses', named('Open', 'Ordered', 'Partially Received', 'Received', 'Closed'))
  fill(portal, 'purchase_order_templates', named('Default Purchase Order'))
  fill(portal, 'request_maintenances', [
    [null, { name: 'Check UPS batteries', schedule: { frequency: 'monthly' }, inactive: false }],
  ])
  fill(portal, 'change_maintenances', [
    [null, { name: 'Patch test servers', schedule: { frequency: 'weekly' }, inactive: false }],
  ])
}

function seedSpace(portal: Portal): void {
  fill(portal, 'space_campuses', [[null, { name: 'Rotterdam Campus', site: idOf(portal, 'sites', 'Rotterdam') }]])
  fill(portal, 'space_buildings', [
    [null, { name: 'Building B', campus: idOf(portal, 'space_campuses', 'Rotterdam Campus') }],
  ])
  fill(portal, 'space_floors', [[null, { name: 'Floor 2', building: idOf(portal, 'space_buildings', 'Building B') }]])
  const floor = idOf(portal, 'space_floors', 'Floor 2')
  fill(portal, 'space_rooms', [
    [null, { name: 'B-210', floor }],
    [null, { name: 'B-214', floor }],
  ])
}

function seedRoles(portal: Portal): void {
  fill(portal, 'roles', [
    [null, { name: 'SDAdmin', view: 'all', is_admin: true, may_delete: true }],
    [null, { name: 'SDCoordinator', view: 'all', is_admin: false, may_delete: true }],
    [null, { name: 'Group Technician', view: 'group', is_admin: false, may_delete: true }],
    [null, { name: 'Own Tickets Technician', view: 'own', is_admin: false, may_delete: false }],
    [null, { name: 'Requester', view: 'own', is_admin: false, may_delete: false }],
  ])
}

function seedTemplates(portal: Portal): void {
  const hardware = idOf(portal, 'service_categories', 'Hardware Provisioning')
  const userManagement = idOf(portal, 'service_categories', 'User Management')
  const common = { inactive: false, show_to_requester: true, is_default: false }
  fill(portal, 'request_templates', [
    [
      '006655',
      {
        ...common,
        name: 'Default Request',
        comments: 'Default template used for new request creation.',
        is_service_template: false,
        is_default: true,
      },
    ],
    [
      null,
      {
        ...common,
        name: 'Network Incident',
        comments: 'VPN, LAN and wireless',
        is_service_template: false,
        request: { category: { name: 'Network' } },
      },
    ],
    [null, { ...common, name: 'New Laptop', is_service_template: true, service_category: hardware }],
    [null, { ...common, name: 'New Employee', is_service_template: true, service_category: userManagement }],
    [null, { ...common, name: 'Fax Line', is_service_template: false, inactive: true }],
  ])
  for (const module of ['problem', 'change', 'release', 'task']) {
    fill(portal, `${module}_templates`, [
      [null, { ...common, name: `Default ${module.charAt(0).toUpperCase()}${module.slice(1)}`, is_default: true }],
    ])
  }
}

function seedUdfFields(portal: Portal): void {
  const udf = (
    module: string,
    key: string,
    name: string,
    type: string,
    more: Record<string, unknown> = {},
  ): [null, Row] => [
    null,
    { field_key: key, name, type, field_type: 'Single Line', constraints: [], module: { name: module }, ...more },
  ]
  const choices = (...values: string[]) => ({
    field_type: 'Pick List',
    allowed_values: values.map(value => ({ value, display_value: value })),
  })
  fill(portal, 'udf_fields', [
    udf('request', 'txt_major_incident', 'Major incident', 'string', choices('Yes', 'No')),
    udf('request', 'txt_environment', 'Environment', 'string', choices('Production', 'Test', 'Development')),
    udf('request', 'udf_char1', 'Location', 'string'),
    udf('request', 'num_affected_users', 'Affected users', 'long', { field_type: 'Numeric' }),
    udf('request', 'date_last_worked', 'Last worked on', 'datetime', { field_type: 'Date/Time' }),
    udf('request', 'dt_needed_by', 'Needed by', 'datestamp', { field_type: 'Date' }),
    udf('request', 'bool_remote_ok', 'Remote session allowed', 'boolean', { field_type: 'Decision Box' }),
    udf('request', 'txt_affected_tools', 'Affected tools', 'multi_select', {
      ...choices('Git', 'Jira', 'Jenkins', 'SAP', 'Teams'),
      field_type: 'Multi Select',
    }),
    udf('problem', 'txt_root_team', 'Root team', 'string', choices('Network', 'Applications', 'Vendor')),
    udf('change', 'txt_cab_reference', 'CAB reference', 'string'),
    udf('change', 'bool_customer_facing', 'Customer facing', 'boolean', { field_type: 'Decision Box' }),
  ])
}
