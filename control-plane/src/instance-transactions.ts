import { appendAudit } from './audit.ts'
import type { Db } from './db.ts'
import type { Logger } from './log.ts'

/**
 * Ends transactions of instances that are older than any of theirs can be. The longest an instance has is a refresh of a
 * token: 20 s for the row lock and 10 s for Zoho, and its own session gives up after 30 s. But a role can lift the limits of
 * its session, so whoever stole one could hold the locks of a transaction for ever: on rows of that user, which an admin
 * may want to change, and on tables against a migration.
 */
export const longestTransactionSeconds = 45
const lookEveryMs = 10_000

export type TransactionWatch = {
  /** Looks now. @returns how many were ended */
  look(): Promise<number>
  close(): Promise<void>
}

/**
 * @param leading - whether this control plane looks after everybody
 * @param ended - told of each transaction that was ended
 */
export function watchInstanceTransactions(options: {
  db: Db
  log: Logger
  leading: () => boolean
  ended?: () => void
  longestSeconds?: number
}): TransactionWatch {
  const { db, log, leading, ended, longestSeconds = longestTransactionSeconds } = options
  let looking: Promise<number> | undefined

  async function end(): Promise<number> {
    const rows = await db.query<{ user_id: string; username: string; seconds: number; state: string }>(
      `select e.user_id, u.username, e.seconds, e.state
         from end_instance_transactions($1) e join users u on u.id = e.user_id`,
      [longestSeconds],
    )
    for (const { user_id: userId, username, seconds, state } of rows) {
      log.warn({ username, seconds, state }, 'instance.transaction.ended')
      ended?.()
      await appendAudit(db, {
        actor: 'system',
        action: 'instance.transaction-ended',
        username,
        userId,
        detail: { seconds, state },
      })
    }
    return rows.length
  }
  const look = () => {
    looking ??= end().finally(() => {
      looking = undefined
    })
    return looking
  }
  const timer = setInterval(() => {
    if (leading()) look().catch(error => log.warn({ error }, 'instance.transactions.look-failed'))
  }, lookEveryMs)
  timer.unref()
  return {
    look,
    async close() {
      clearInterval(timer)
      await looking?.catch(() => {})
    },
  }
}
