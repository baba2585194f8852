import { insert, nextId, type Portal, type StoredRecord } from '../state.ts'
import { personId, ticketNamed } from './find.ts'
import { idOf } from './lookups.ts'
import { screenshot } from './png.ts'

const hourMs = 60 * 60 * 1000
const minuteMs = 60 * 1000

/** What happens on tickets: mails, files, work, tasks, approvals, links. */
export function seedRequestDetails(portal: Portal, now: number): void {
  seedConversation(portal, now)
  seedMails(portal)
  seedFiles(portal, now)
  seedWork(portal)
  seedApprovals(portal, now)
  seedLinks(portal)
  seedHistory(portal)
}

function add(portal: Portal, table: string, parent: StoredRecord, row: Record<string, unknown>): StoredRecord {
  return insert(portal, table, { id: nextId(portal), parent: parent.id, parentTable: 'requests', ...row })
}

function mail(portal: Portal, ticket: StoredRecord, from: 'desk' | 'requester', text: string, at: number): void {
  const requester = portal.tables.users?.[String(ticket.requester)]
  add(portal, 'notifications', ticket, {
    type: 'REQREPLY',
    subject: `Re: [Request ID :##${String(ticket.display_id)}##] : ${String(ticket.subject)}`,
    description: text,
    to: [from === 'desk' ? requester?.email_id : 'support@northwind.example'],
    cc: [],
    bcc: [],
    is_public: true,
    created_by: from === 'desk' ? (ticket.technician ?? personId(portal, 'Frank')) : ticket.requester,
    created_time: at,
  })
}

const questions = [
  'Does it still happen with the cable instead of Wi-Fi?',
  'Could you send the log of this morning?',
  'Which building and floor are you in when it happens?',
  'Please try again, we changed a setting on gateway 2.',
  'Does a colleague next to you have the same trouble?',
]
const answers = [
  'Yes, exactly the same.',
  'Log attached. It happened at 09:42 and at 10:15.',
  'Home office mostly, once in B-214.',
  'Better, but it dropped again after 20 minutes.',
  'No, it works for Iris.',
]

/** One ticket with forty entries: mails in turn with quoted text, and internal notes between them. */
function seedConversation(portal: Portal, now: number): void {
  const ticket = ticketNamed(portal, 'VPN drops every few minutes')
  const start = Number(ticket.created_time) + hourMs
  const step = Math.floor((now - minuteMs - start) / 40)
  const alreadyNotes = 2
  for (let i = 0; i < 40 - alreadyNotes; i += 1) {
    const at = start + i * step
    const turn = Math.floor(i / 3) % questions.length
    if (i % 3 === 0) mail(portal, ticket, 'desk', `<p>${questions[turn]}</p><p>Kind regards<br>Alice</p>`, at)
    else if (i % 3 === 1)
      mail(
        portal,
        ticket,
        'requester',
        `<p>${answers[turn]}</p><blockquote>On the day before, Alice wrote:<br>${questions[turn]}</blockquote>`,
        at,
      )
    else
      add(portal, 'request_notes', ticket, {
        description: `<p>Trace ${i}: IKE rekey after ${3 + (i % 4)} minutes, peer proposes the old group.</p>`,
        show_to_requester: false,
        notify_technician: false,
        created_by: personId(portal, 'Alice'),
        created_time: at,
      })
  }
  ticket.unreplied_count = 1
}

function seedMails(portal: Portal): void {
  const exchanges: [subject: string, desk: string, requester?: string][] = [
    [
      'Laptop does not start',
      '<p>We bring you a loan device within the hour.</p>',
      '<p>Thank you, please to the boardroom.</p>',
    ],
    [
      'Docking station does not detect',
      '<p>Which model is the docking station?</p>',
      '<p>It says WD19 on the bottom.</p>',
    ],
    ['SAP order entry hangs', '<p>We are looking into it together with the SAP team.</p>'],
    ['Phishing mail', '<p>Thank you for reporting. Please change your password.</p>', '<p>Done.</p>'],
    ['Access to the finance share', '<p>Your manager has to approve this first.</p>'],
    [
      'No wireless coverage',
      '<p>We measure on Wednesday morning.</p>',
      '<p>Wednesday is fine, ask for me at gate 3.</p>',
    ],
  ]
  for (const [subject, desk, requester] of exchanges) {
    const ticket = ticketNamed(portal, subject)
    const at = Number(ticket.created_time) + 40 * minuteMs
    mail(portal, ticket, 'desk', desk, at)
    if (!requester) continue
    mail(portal, ticket, 'requester', requester, at + 15 * minuteMs)
    ticket.unreplied_count = 1
  }
}

const vpnLog = `2026-03-02 09:42:10 INFO  connected to gw2.northwind.example
2026-03-02 09:45:31 WARN  IKE SA lifetime expired, rekey failed: NO_PROPOSAL_CHOSEN
2026-03-02 09:45:31 ERROR tunnel down
2026-03-02 09:45:40 INFO  connected to gw2.northwind.example
`

function seedFiles(portal: Portal, now: number): void {
  const files: [subject: string, name: string, type: string, content: Buffer][] = [
    ['VPN drops every few minutes', 'vpn-client.log', 'text/plain', Buffer.from(vpnLog)],
    ['VPN drops every few minutes', 'error.png', 'image/png', screenshot()],
    ['Phishing mail', 'mail-screenshot.png', 'image/png', screenshot(400, 240)],
    [
      'Excel crashes when opening',
      'crash-report.txt',
      'text/plain',
      Buffer.from('Faulting module: XLSolver.dll\nException: 0xc0000005\n'),
    ],
    [
      'Onboarding of Lotte Visser',
      'onboarding.csv',
      'text/csv',
      Buffer.from('item,needed\naccount,yes\nlaptop,yes\nbadge,yes\n'),
    ],
  ]
  for (const [subject, name, type, content] of files) {
    const ticket = ticketNamed(portal, subject)
    const file = add(portal, 'attachments', ticket, {
      name,
      content_type: type,
      bytes: content.length,
      content: content.toString('base64'),
      attached_by: ticket.requester,
      attached_on: Math.min(now, Number(ticket.created_time) + minuteMs),
    })
    ticket.attachments = [...((ticket.attachments as string[] | undefined) ?? []), file.id]
  }
}

function seedWork(portal: Portal): void {
  const work: [subject: string, who: string, minutes: number, text: string, type: string][] = [
    ['VPN drops every few minutes', 'Alice', 45, 'Analysed gateway logs', 'Research'],
    ['VPN drops every few minutes', 'Alice', 30, 'Call with the requester', 'Remote Support'],
    ['Laptop does not start', 'Bob', 20, 'Loan device prepared', 'On Site'],
    ['Phishing mail', 'Erin', 90, 'Mail trace and block', 'Research'],
    ['SAP order entry hangs', 'Dave', 60, 'Traced the lock on table VBAK', 'Research'],
    ['Move two switch ports', 'Alice', 25, 'Ports moved and tested', 'Remote Support'],
  ]
  for (const [subject, who, minutes, text, type] of work) {
    const ticket = ticketNamed(portal, subject)
    const start = Number(ticket.created_time) + 90 * minuteMs
    add(portal, 'worklogs', ticket, {
      owner: personId(portal, who),
      description: text,
      start_time: start,
      end_time: start + minutes * minuteMs,
      recorded_time: start + minutes * minuteMs,
      time_spent: minutes * minuteMs,
      worklog_type: idOf(portal, 'worklog_types', type),
      tech_charge: Math.round((minutes / 60) * 45 * 100) / 100,
      other_charge: 0,
      include_nonoperational_hours: false,
      created_by: personId(portal, who),
      created_time: start + minutes * minuteMs,
    })
  }
  const tasks: [subject: string, title: string, who: string, status: string, hours: number][] = [
    ['VPN drops every few minutes', 'Update proposal list on gateway 2', 'Alice', 'In Progress', 6],
    ['VPN drops every few minutes', 'Ask vendor about client 5.8.2', 'Alice', 'Closed', -4],
    ['No wireless coverage', 'Site survey of the assembly hall', 'Alice', 'Open', 30],
    ['Onboarding of Lotte Visser', 'Create account and mailbox', 'Frank', 'Open', 48],
    ['Onboarding of Lotte Visser', 'Prepare laptop', 'Bob', 'Open', 60],
    ['Onboarding of Lotte Visser', 'Order badge', 'Carol', 'Closed', -10],
    ['Leaver: Piet Smit', 'Disable account', 'Carol', 'Open', 20],
    ['Invoice archive', 'Restore index of May', 'Frank', 'Open', -3],
  ]
  for (const [subject, title, who, status, hours] of tasks) {
    const ticket = ticketNamed(portal, subject)
    const end = Number(ticket.created_time) + 24 * hourMs + hours * hourMs
    add(portal, 'tasks', ticket, {
      title,
      status: idOf(portal, 'statuses', status),
      owner: personId(portal, who),
      priority: ticket.priority ?? null,
      task_type: idOf(portal, 'task_types', 'Implementation'),
      scheduled_start_time: Number(ticket.created_time),
      scheduled_end_time: end,
      actual_end_time: status === 'Closed' ? end : null,
      percentage_completion: status === 'Closed' ? 100 : status === 'In Progress' ? 40 : 0,
      created_by: personId(portal, 'Carol'),
      created_time: Number(ticket.created_time),
    })
  }
  add(portal, 'checklists', ticketNamed(portal, 'Leaver: Piet Smit'), {
    name: 'Leaver',
    template: idOf(portal, 'checklist_templates', 'Leaver'),
    items: [
      { name: 'Account disabled', is_completed: false },
      { name: 'Laptop returned', is_completed: true },
      { name: 'Badge returned', is_completed: false },
    ],
    created_by: personId(portal, 'Carol'),
    created_time: Number(ticketNamed(portal, 'Leaver: Piet Smit').created_time),
  })
}

function seedApprovals(portal: Portal, now: number): void {
  const wanted: [subject: string, level: number, approver: string, status: string][] = [
    ['Firewall change for supplier', 1, 'Alice', 'Pending Approval'],
    ['Laptop request for new test engineer', 1, 'Bob', 'Pending Approval'],
    ['Laptop request for new test engineer', 1, 'Carol', 'Approved'],
    ['Access to the finance share', 1, 'Carol', 'Pending Approval'],
    ['Permission to install Python', 1, 'Erin', 'Pending Approval'],
    ['Onboarding of Lotte Visser', 1, 'Carol', 'Approved'],
  ]
  const levels = new Map<string, StoredRecord>()
  for (const [subject, level, approver, status] of wanted) {
    const ticket = ticketNamed(portal, subject)
    const key = `${ticket.id}/${level}`
    const row =
      levels.get(key) ??
      add(portal, 'approval_levels', ticket, {
        level,
        rule: { name: 'Everyone Approves' },
        created_by: personId(portal, 'Frank'),
        created_time: Number(ticket.created_time) + hourMs,
      })
    levels.set(key, row)
    const isDecided = status === 'Approved'
    insert(portal, 'approvals', {
      id: nextId(portal),
      parent: row.id,
      parentTable: 'approval_levels',
      approver: personId(portal, approver),
      status: idOf(portal, 'approval_statuses', status),
      comments: isDecided ? 'Fine with me' : null,
      sent_on: Math.min(now, Number(ticket.created_time) + hourMs),
      action_taken_on: isDecided ? Math.min(now, Number(ticket.created_time) + 3 * hourMs) : null,
      action_by: isDecided ? personId(portal, approver) : null,
    })
    if (ticket.approval_status !== idOf(portal, 'approval_statuses', 'Pending Approval'))
      ticket.approval_status = idOf(portal, 'approval_statuses', status)
  }
}

function seedLinks(portal: Portal): void {
  const pairs: [string, string, string][] = [
    ['VPN drops every few minutes', 'Cannot reach file server', 'Probably the same gateway'],
    ['VPN drops every few minutes', 'VPN drops when switching', 'Solved earlier, other cause'],
    ['Laptop does not start', 'Docking station does not detect', 'Same model'],
  ]
  for (const [from, to, comments] of pairs) {
    add(portal, 'request_links', ticketNamed(portal, from), { linked_request: ticketNamed(portal, to).id, comments })
  }
}

/** Each ticket was created, most were assigned: the history says so. */
function seedHistory(portal: Portal): void {
  for (const ticket of Object.values(portal.tables.requests ?? {})) {
    const entry = (operation: string, by: unknown, time: number, diff: unknown[] = []) =>
      add(portal, 'history', ticket, { operation, by, time, comments: null, diff })
    entry('CREATE', ticket.created_by, Number(ticket.created_time))
    if (!ticket.technician) continue
    const technician = portal.tables.users?.[String(ticket.technician)]
    entry('UPDATE', personId(portal, 'Frank'), Number(ticket.assigned_time), [
      {
        field: { name: 'technician' },
        previous_value: null,
        current_value: { id: technician?.id, name: technician?.name },
      },
    ])
  }
}
