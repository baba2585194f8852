import { insert, nextDisplayId, nextId, type Portal, rowsOf, type StoredRecord } from '../state.ts'
import { personId, ticketNamed } from './find.ts'
import { idOf } from './lookups.ts'

const hourMs = 60 * 60 * 1000
const dayMs = 24 * hourMs

/** Problems, changes and releases, tied to the tickets they came from. */
export function seedPractices(portal: Portal, now: number): void {
  seedProblems(portal, now)
  seedChanges(portal, now)
  seedReleases(portal, now)
}

function numbered(portal: Portal, table: string, row: Record<string, unknown>): StoredRecord {
  return insert(portal, table, {
    id: nextId(portal),
    display_id: nextDisplayId(portal, table),
    is_trashed: false,
    ...row,
  })
}

function note(portal: Portal, table: string, parent: StoredRecord, who: string, text: string, at: number): void {
  insert(portal, table, {
    id: nextId(portal),
    parent: parent.id,
    description: `<p>${text}</p>`,
    created_by: personId(portal, who),
    created_time: at,
  })
}

function task(
  portal: Portal,
  parentTable: string,
  parent: StoredRecord,
  title: string,
  who: string,
  more: object = {},
): void {
  insert(portal, 'tasks', {
    id: nextId(portal),
    parent: parent.id,
    parentTable,
    title,
    status: idOf(portal, 'statuses', 'Open'),
    owner: personId(portal, who),
    percentage_completion: 0,
    created_by: personId(portal, who),
    created_time: parent.created_time,
    ...more,
  })
}

function seedProblems(portal: Portal, now: number): void {
  const category = idOf(portal, 'categories', 'Network')
  const problem = (title: string, status: string, priority: string, technician: string, age: number, more: object) =>
    numbered(portal, 'problems', {
      title,
      status: idOf(portal, 'statuses', status),
      priority: idOf(portal, 'priorities', priority),
      technician: personId(portal, technician),
      reported_by: personId(portal, technician),
      created_by: personId(portal, technician),
      template: idOf(portal, 'problem_templates', 'Default Problem'),
      created_time: now - age * hourMs,
      reported_time: now - age * hourMs,
      due_by_time: now - age * hourMs + 5 * dayMs,
      ...more,
    })
  const vpn = problem('Gateway 2 drops VPN tunnels at rekey', 'In Progress', 'High', 'Alice', 20, {
    description: '<p>Several tickets: tunnels drop every few minutes since the client update.</p>',
    category,
    group: idOf(portal, 'support_groups', 'Network'),
    symptoms: { symptoms_description: '<p>Tunnel drops 3 to 5 minutes after connecting.</p>' },
    root_cause: { root_cause_description: '<p>Gateway 2 still offers the old proposal list.</p>' },
    workaround_details: { workaround_details_description: '<p>Choose gateway 1 by hand.</p>' },
    known_error_details: { is_known_error: true, known_error_comments: 'Fixed with the next gateway release' },
    udf_fields: { txt_root_team: 'Network' },
  })
  note(portal, 'problem_notes', vpn, 'Alice', 'Vendor confirms the behaviour of 5.8.2.', now - 5 * hourMs)
  task(portal, 'problems', vpn, 'Compare proposal lists of both gateways', 'Alice')
  for (const subject of ['VPN drops every few minutes', 'Cannot reach file server'])
    ticketNamed(portal, subject).problem = vpn.id

  problem('Docking stations lose the second monitor', 'Open', 'Medium', 'Bob', 40, {
    description: '<p>Third report this month, always model WD19.</p>',
    category: idOf(portal, 'categories', 'Hardware'),
    group: idOf(portal, 'support_groups', 'Desktop Support'),
  })
  problem('SAP order entry locks on table VBAK', 'Open', 'High', 'Dave', 6, {
    description: '<p>Long running batch job holds the lock.</p>',
    category: idOf(portal, 'categories', 'Software'),
    group: idOf(portal, 'support_groups', 'Applications'),
  })
  problem('Duplex unit of printers on floor 3', 'Closed', 'Low', 'Bob', 900, {
    description: '<p>Repeated jams.</p>',
    category: idOf(portal, 'categories', 'Hardware'),
    closed_time: now - 700 * hourMs,
    close_details: {
      closure_code: idOf(portal, 'closure_codes', 'Permanent Fix'),
      close_details_comments: 'Duplex units replaced',
    },
  })
}

function stageAndStatus(portal: Portal, kind: 'change' | 'release', stage: string, status?: string) {
  const stageId = idOf(portal, `${kind}_stages`, stage)
  const statuses = rowsOf(portal, `${kind}_statuses`).filter(row => row.stage === stageId)
  const chosen = status ? statuses.find(row => row.name === status) : statuses[0]
  if (!chosen) throw new Error(`seed: no status ${status} of stage ${stage}`)
  return { stage: stageId, status: chosen.id }
}

function seedChanges(portal: Portal, now: number): void {
  const change = (
    title: string,
    stage: string,
    status: string | undefined,
    owner: string,
    startsIn: number,
    hours: number,
    more: object,
  ) =>
    numbered(portal, 'changes', {
      title,
      ...stageAndStatus(portal, 'change', stage, status),
      change_owner: personId(portal, owner),
      change_manager: personId(portal, 'Carol'),
      change_requester: personId(portal, owner),
      created_by: personId(portal, owner),
      template: idOf(portal, 'change_templates', 'Default Change'),
      change_type: idOf(portal, 'change_types', 'Standard'),
      risk: idOf(portal, 'change_risks', 'Low'),
      emergency: false,
      retrospective: false,
      created_time: now - 6 * dayMs,
      scheduled_start_time: now + startsIn * hourMs,
      scheduled_end_time: now + (startsIn + hours) * hourMs,
      ...more,
    })
  const gateway = change('Update VPN gateway 2 to 7.4', 'CAB Evaluation', undefined, 'Alice', 10, 2, {
    description: '<p>Fixes the rekey problem.</p>',
    change_type: idOf(portal, 'change_types', 'Major'),
    risk: idOf(portal, 'change_risks', 'Medium'),
    priority: idOf(portal, 'priorities', 'High'),
    group: idOf(portal, 'support_groups', 'Network'),
    category: idOf(portal, 'categories', 'Network'),
    services: [idOf(portal, 'services', 'Network Service')],
    roll_out_plan: {
      roll_out_plan_description: '<ol><li>Drain gateway 2</li><li>Update</li><li>Test with two clients</li></ol>',
    },
    back_out_plan: { back_out_plan_description: '<p>Boot the former image.</p>' },
    impact_details: { impact_details_description: '<p>Remote users of gateway 2 reconnect once.</p>' },
    udf_fields: { txt_cab_reference: 'CAB-112', bool_customer_facing: false },
  })
  note(portal, 'change_notes', gateway, 'Carol', 'CAB meets on Tuesday.', now - 8 * hourMs)
  task(portal, 'changes', gateway, 'Announce the maintenance window', 'Carol')
  task(portal, 'changes', gateway, 'Back up the gateway configuration', 'Alice')
  insert(portal, 'downtimes', {
    id: nextId(portal),
    parent: gateway.id,
    scheduled_start_time: now + 10 * hourMs,
    scheduled_end_time: now + 11 * hourMs,
    description: '<p>Gateway 2 restarts.</p>',
  })
  approval(portal, 'changes', gateway, 'Carol', now)
  const ticket = ticketNamed(portal, 'VPN drops every few minutes')
  ticket.request_initiated_change = gateway.id

  change('Replace fan tray of the core switch', 'Planning', undefined, 'Alice', 30, 1, {
    description: '<p>Fan tray 2 failed.</p>',
    change_type: idOf(portal, 'change_types', 'Emergency'),
    emergency: true,
    priority: idOf(portal, 'priorities', 'High'),
    group: idOf(portal, 'support_groups', 'Network'),
  })
  change('Roll out Office update ring 2', 'Implementation', undefined, 'Bob', -3, 30, {
    description: '<p>About 140 clients.</p>',
    group: idOf(portal, 'support_groups', 'Desktop Support'),
  })
  change('Patch Tuesday servers, wave A', 'Submission', undefined, 'Erin', 120, 4, {
    description: '<p>Eight servers of the test landscape.</p>',
    group: idOf(portal, 'support_groups', 'Security'),
  })
  change('Extend mailbox quota of production', 'Close', 'Completed', 'Frank', -400, 2, {
    description: '<p>Quota from 2 to 5 GB.</p>',
    completed_time: now - 390 * hourMs,
    closure_code: idOf(portal, 'closure_codes', 'Successful'),
  })
}

function approval(portal: Portal, parentTable: string, parent: StoredRecord, who: string, now: number): void {
  const level = insert(portal, 'approval_levels', {
    id: nextId(portal),
    parent: parent.id,
    parentTable,
    level: 1,
    rule: { name: 'Anyone Approves' },
    change_stage: parentTable === 'changes' ? parent.stage : undefined,
    created_by: personId(portal, 'Carol'),
    created_time: now - 7 * hourMs,
  })
  const pending = idOf(portal, 'approval_statuses', 'Pending Approval')
  insert(portal, 'approvals', {
    id: nextId(portal),
    parent: level.id,
    parentTable: 'approval_levels',
    approver: personId(portal, who),
    status: pending,
    sent_on: now - 7 * hourMs,
  })
  parent.approval_status = pending
}

function seedReleases(portal: Portal, now: number): void {
  const release = (title: string, stage: string, startsIn: number, more: object) =>
    numbered(portal, 'releases', {
      title,
      ...stageAndStatus(portal, 'release', stage),
      release_engineer: personId(portal, 'Frank'),
      release_manager: personId(portal, 'Carol'),
      release_requester: personId(portal, 'Frank'),
      created_by: personId(portal, 'Frank'),
      template: idOf(portal, 'release_templates', 'Default Release'),
      release_type: idOf(portal, 'release_types', 'Minor'),
      risk: idOf(portal, 'change_risks', 'Low'),
      created_time: now - 9 * dayMs,
      scheduled_start_time: now + startsIn * hourMs,
      scheduled_end_time: now + (startsIn + 6) * hourMs,
      ...more,
    })
  const crm = release('CRM 4.2', 'Testing', 72, {
    description: '<p>Faster export, region filter.</p>',
    roll_out_plan: { roll_out_plan_description: '<p>Blue/green on Saturday.</p>' },
    back_out_plan: { back_out_plan_description: '<p>Switch back to blue.</p>' },
  })
  task(portal, 'releases', crm, 'Regression test of the export', 'Dave', {
    stage: idOf(portal, 'release_stages', 'Testing'),
  })
  note(portal, 'release_notes', crm, 'Frank', 'Export of 20000 rows takes 12 s now.', now - 4 * hourMs)
  release('Scanner app 2.9', 'Planning', 200, { description: '<p>No more update prompt.</p>' })
}
