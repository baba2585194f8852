import { type Portal, rowById, rowsOf, type StoredRecord } from '../state.ts'
import type { Call, Caller } from './call.ts'

/** The portal's user behind a Zoho account; undefined when the person is not in this portal. */
export function callerIn(portal: Portal, email: string): Caller | undefined {
  const row = rowsOf(portal, 'users').find(one => String(one.email_id).toLowerCase() === email.toLowerCase())
  if (!row) return undefined
  const role = rowById(portal, 'roles', (row.roles as string[] | undefined)?.[0])
  return {
    row,
    isTechnician: row.is_technician === true,
    isAdmin: role?.is_admin === true,
    view: (role?.view as Caller['view']) ?? 'own',
    mayDelete: role?.may_delete === true,
    groupIds: (row.groups as string[] | undefined) ?? [],
  }
}

/**
 * Whether the role's view scope shows a ticket-like record: all, those of one's groups, or one's own.
 * Assigned to me, requested by me and created for me always count as own.
 */
export function inViewScope(record: StoredRecord, call: Call): boolean {
  const { caller } = call
  if (caller.isTechnician && caller.view === 'all') return true
  const me = caller.row.id
  if ([record.technician, record.requester, record.on_behalf_of, record.owner].includes(me)) return true
  return caller.isTechnician && caller.view === 'group' && caller.groupIds.includes(String(record.group))
}
