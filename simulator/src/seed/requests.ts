import { builtInId, insert, nextDisplayId, nextId, type Portal, rowsOf, type StoredRecord } from '../state.ts'
import { idOf, priorityName } from './lookups.ts'
import { Random } from './random.ts'
import { hrTickets, itTickets, type Ticket } from './tickets.ts'

const hourMs = 60 * 60 * 1000
const dueHours = { High: 8, Medium: 24, Normal: 72, Low: 120 }

/** Turns the ticket texts into records, the oldest first so that numbers grow with time. */
export function seedRequests(portal: Portal, now: number): void {
  const tickets = portal.name === 'itdesk' ? itTickets : hrTickets
  const random = new Random(portal.name === 'itdesk' ? 20_240 : 77)
  for (const ticket of [...tickets].sort((a, b) => b.age - a.age)) seedTicket(portal, ticket, now, random)
}

function underParent(portal: Portal, table: string, parent: string | null, name: string | undefined): string | null {
  if (!parent || !name) return null
  const row = rowsOf(portal, table).find(one => one.parent === parent && one.name === name)
  if (!row) throw new Error(`seed: no ${table} "${name}"`)
  return row.id
}

function technicianNamed(portal: Portal, firstName: string | undefined): StoredRecord | undefined {
  return rowsOf(portal, 'users').find(row => row.is_technician === true && row.first_name === firstName)
}

function seedTicket(portal: Portal, ticket: Ticket, now: number, random: Random): void {
  const created = now - Math.round(ticket.age * hourMs) - random.between(0, 30) * 60_000
  const status = ticket.status ?? 'Open'
  const isDone = ['Resolved', 'Closed', 'Cancelled'].includes(status)
  const technician = technicianNamed(portal, ticket.to)
  const requester = idOf(portal, 'users', ticket.by)
  const requesterRow = portal.tables.users?.[requester]
  const category = idOf(portal, 'categories', ticket.category)
  const subcategory = underParent(portal, 'subcategories', category, ticket.subcategory)
  const worked = technician ? created + random.between(20, 240) * 60_000 : null
  const finished = isDone ? Math.min(now - hourMs, created + random.between(2, 40) * hourMs) : null
  const due =
    ticket.dueIn !== undefined
      ? now + ticket.dueIn * hourMs
      : ticket.priority
        ? created + dueHours[ticket.priority] * hourMs
        : null
  const template = ticket.template ? idOf(portal, 'request_templates', ticket.template) : builtInId(portal, '006655')
  const isService = portal.tables.request_templates?.[template]?.is_service_template === true

  const record: StoredRecord = {
    id: nextId(portal),
    display_id: nextDisplayId(portal, 'requests'),
    subject: ticket.subject,
    description: ticket.detail.map(line => (line.startsWith('<p') ? line : `<p>${line}</p>`)).join(''),
    requester,
    created_by: requester,
    created_time: created,
    last_updated_time: finished ?? worked,
    technician: technician?.id ?? null,
    group: ticket.group ? idOf(portal, 'support_groups', ticket.group) : null,
    site: requesterRow?.site ?? null,
    status: idOf(portal, 'statuses', status),
    priority: ticket.priority ? idOf(portal, 'priorities', priorityName(portal, ticket.priority)) : null,
    urgency: idOf(portal, 'urgencies', ticket.priority === 'High' ? 'Urgent' : 'Normal'),
    impact: idOf(portal, 'impacts', ticket.priority === 'High' ? 'Affects Group' : 'Affects User'),
    level: idOf(portal, 'levels', 'Tier 1'),
    mode: idOf(portal, 'modes', ticket.mode ?? random.pick(['E-Mail', 'Web Form'])),
    request_type: idOf(portal, 'request_types', ticket.subject.endsWith('?') ? 'Request For Information' : 'Incident'),
    category,
    subcategory,
    item: underParent(portal, 'items', subcategory, ticket.item),
    template,
    service_category: isService ? (portal.tables.request_templates?.[template]?.service_category ?? null) : null,
    is_service_request: isService,
    due_by_time: due,
    first_response_due_by_time: created + 4 * hourMs,
    assigned_time: technician ? created + 10 * 60_000 : null,
    responded_time: worked,
    resolved_time: status === 'Cancelled' ? null : finished,
    completed_time: status === 'Resolved' ? null : finished,
    is_trashed: false,
    is_read: technician !== undefined,
    cancellation_requested: false,
    unreplied_count: !isDone && random.chance(0.25) ? 1 : 0,
    email_to: ['support@northwind.example'],
    email_cc: [],
    ...(status === 'On Hold'
      ? { onhold_scheduler: { comments: 'Waiting for an answer', held_by: technician?.id } }
      : {}),
    ...(ticket.resolution
      ? { resolution: { content: `<p>${ticket.resolution}</p>`, submitted_by: technician?.id, submitted_on: finished } }
      : {}),
    ...(status === 'Closed'
      ? {
          closure_info: {
            closure_code: builtInId(portal, '090001'),
            closure_comments: 'Solved',
            requester_ack_resolution: true,
          },
        }
      : {}),
    ...(portal.name === 'itdesk' && ticket.priority === 'High'
      ? {
          udf_fields: {
            txt_major_incident: 'No',
            num_affected_users: random.between(1, 40),
            txt_environment: 'Production',
          },
        }
      : {}),
  }
  insert(portal, 'requests', record)

  for (const [i, [author, text, isPublic = false]] of (ticket.notes ?? []).entries()) {
    insert(portal, 'request_notes', {
      id: nextId(portal),
      parent: record.id,
      description: `<p>${text}</p>`,
      show_to_requester: isPublic,
      notify_technician: false,
      created_by: idOf(portal, 'users', author),
      created_time: Math.min(now - 60_000, created + (i + 1) * hourMs),
    })
  }
}
