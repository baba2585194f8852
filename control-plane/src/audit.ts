import type { Queryable } from './db.ts'

export type AuditEvent = {
  /** who did it: `admin`, `system`, or `user:<username>` */
  actor: string
  /** object then verb, e.g. `user.created`, `api-key.revoked` */
  action: string
  username?: string
  userId?: string
  /** what changed; never a secret */
  detail?: Record<string, unknown>
}

/** Records an event. Call it with the transaction of the change, so that neither exists without the other. */
export async function appendAudit(tx: Queryable, event: AuditEvent): Promise<void> {
  await tx.query('insert into audit_events (actor, action, username, user_id, detail) values ($1, $2, $3, $4, $5)', [
    event.actor,
    event.action,
    event.username ?? null,
    event.userId ?? null,
    JSON.stringify(event.detail ?? {}),
  ])
}
