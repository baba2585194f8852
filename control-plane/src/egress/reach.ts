import type { Db } from '../db.ts'
import { AppError } from '../errors.ts'
import type { Users } from '../users.ts'
import type { Holder } from './egress.ts'
import type { Reach } from './rules.ts'

const freshMs = 5_000
/** as long as clients are let in without a database (directory.ts) */
const staleMs = 300_000
const mostKept = 10_000

type Known = { at: number; reach: (Reach & { username: string }) | undefined }

/**
 * Where each instance may go, by the settings its user has now. One that was replaced, and those of users who are gone or
 * suspended, may go nowhere; one of a user who is being removed still ends its grant at Zoho.
 */
export function createReach({
  db,
  users,
  allowedHosts,
  now,
}: {
  db: Db
  users: Pick<Users, 'settings'>
  allowedHosts: readonly string[]
  now: () => number
}): (holder: Holder) => Promise<Known['reach']> {
  const known = new Map<string, Known>()

  async function read({ userId, generation }: Holder): Promise<Known['reach']> {
    const [current] = await db.query(
      `select 1 from users u left join instances i on i.user_id = u.id left join instance_moves m on m.user_id = u.id
        where u.id = $1 and not u.suspended and $2::bigint in (u.generation, i.generation, m.generation)`,
      [userId, generation],
    )
    if (!current) return undefined
    const { username, sdp } = await users.settings(userId)
    return { username, origins: [sdp.baseUrl, sdp.accountsUrl], hosts: allowedHosts }
  }

  return async holder => {
    const slot = `${holder.userId} ${holder.generation}`
    const before = known.get(slot)
    if (before && now() - before.at < freshMs) return before.reach
    try {
      const reach = await read(holder)
      if (known.size >= mostKept) known.clear()
      known.set(slot, { at: now(), reach })
      return reach
    } catch (error) {
      if (error instanceof AppError && error.code === 'user-not-found') return undefined
      if (before && now() - before.at < staleMs) return before.reach
      throw error
    }
  }
}
