import { appendAudit } from '../audit.ts'
import type { Db } from '../db.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import type { EgressOptions } from './egress.ts'

const quietMs = 60_000
const mostUsers = 10_000

/**
 * Counts what the egress proxy did, and keeps in the audit when an instance wanted to go where it may not: an honest one
 * never does. At most one event a minute for each user, with how many attempts it stands for.
 */
export function createEgressNotes({
  db,
  metrics,
  now,
  log,
}: {
  db: Db
  metrics: Pick<Metrics, 'egress'>
  now: () => number
  log: Logger
}): EgressOptions['done'] {
  const last = new Map<string, { at: number; since: number }>()

  return (outcome, holder, target) => {
    metrics.egress(outcome)
    if (!holder || (outcome !== 'refused' && outcome !== 'unauthorized' && outcome !== 'malformed')) return
    const { userId } = holder
    const before = last.get(userId)
    if (before && now() - before.at < quietMs) return void before.since++
    if (last.size >= mostUsers) last.clear()
    last.set(userId, { at: now(), since: 0 })
    const detail = {
      outcome,
      host: target?.host.slice(0, 100) ?? null,
      port: target?.port ?? null,
      more: before?.since ?? 0,
    }
    log.warn({ userId, ...detail }, 'egress.refused')
    void note(userId, detail).catch(error => log.warn({ error, userId }, 'egress.audit.failed'))
  }

  async function note(userId: string, detail: Record<string, unknown>): Promise<void> {
    const [user] = await db.query<{ username: string }>('select username from users where id = $1', [userId])
    if (!user) return
    await appendAudit(db, {
      actor: `instance:${user.username}`,
      action: 'instance.egress-refused',
      username: user.username,
      userId,
      detail,
    })
  }
}
