import { appendAudit } from './audit.ts'
import type { Db } from './db.ts'
import type { Logger } from './log.ts'
import { userChannel } from './users.ts'

/** Who an API key belongs to. */
export type Identity = {
  keyId: string
  userId: string
  username: string
  suspended: boolean
  /** milliseconds since the epoch; null: never */
  expiresAt: number | null
}

/** What became invalid with a change, so that open streams can be ended. */
export type Revocation = { userId: string; keyIds: string[]; reason: 'key-revoked' | 'user-suspended' | 'user-removed' }

/**
 * Every valid API key in memory, so that a request costs one map look-up and a database that is down does not cut
 * running clients off. Kept true by notifications (sent with the commit of each change), by a full look after the
 * listening connection was lost, by a timer for the next key that expires, and by a slow timer. When nothing could be
 * read for `staleAfterMs`, nobody enters.
 */
export interface Directory {
  /** @param hash - SHA-256 of the key, as bytes or in base64 */
  find(hash: Buffer | string): Identity | undefined
  /** Whether what is in memory is recent enough to let anybody in. */
  isFresh(): boolean
  /** Reads one user again at once: what was committed before the call is in force after it. Other processes are told by the database. */
  refresh(userId: string): Promise<void>
  /** Notes that a key was used; written to the database about once a minute. */
  used(keyId: string): void
  close(): Promise<void>
}

const fullLookMs = 60_000
const staleAfterMs = 300_000
const writeUseMs = 60_000
/** so that the database, whose clock decides, agrees that a key has expired */
const expiryGraceMs = 250

type UserRow = {
  id: string
  username: string
  suspended: boolean
  keys: { id: string; hash: string; expires_at: number | null }[]
}
const selectUsers = `
  select u.id, u.username, u.suspended,
         coalesce(json_agg(json_build_object('id', k.id, 'hash', encode(k.hash, 'base64'),
                                             'expires_at', extract(epoch from k.expires_at) * 1000))
                    filter (where k.id is not null), '[]') as keys
    from users u
    left join api_keys k on k.user_id = u.id and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
   where u.wanted <> 'removed' and ($1::uuid[] is null or u.id = any($1))
   group by u.id`

/** Users to be read with the next look. */
type Look = { users: Set<string>; everybody: boolean; done: Promise<void> }

export async function openDirectory({
  db,
  log,
  now,
  onRevoked,
  onChanged,
}: {
  db: Db
  log: Logger
  now: () => number
  /** told of what was valid a moment ago and is no longer */
  onRevoked: (revocation: Revocation) => void
  /** told of each changed user, or null: look at everything */
  onChanged: (userId: string | null) => void
}): Promise<Directory> {
  const byHash = new Map<string, Identity>()
  const hashesOf = new Map<string, Set<string>>()
  let readAt = Number.NEGATIVE_INFINITY
  let expiryTimer: NodeJS.Timeout | undefined
  let closed = false

  // One look at a time: of two at once the older could be applied last, and bring back a key that was revoked between them.
  let last: Promise<void> = Promise.resolve()
  let next: Look | undefined

  /** @param userId - null: everybody */
  function look(userId: string | null): Promise<void> {
    if (!next) {
      const mine: Look = { users: new Set(), everybody: false, done: Promise.resolve() }
      mine.done = last.then(() => {
        next = undefined
        return read(mine)
      })
      last = mine.done.catch(() => {})
      next = mine
    }
    if (userId === null) next.everybody = true
    else next.users.add(userId)
    return next.done
  }

  async function read({ users, everybody }: Look): Promise<void> {
    if (closed) return
    const at = now()
    const rows = await db.query<UserRow>(selectUsers, [everybody ? null : [...users]])
    const found = new Map(rows.map(row => [row.id, row]))
    for (const userId of everybody ? new Set([...hashesOf.keys(), ...found.keys()]) : users)
      replace(userId, found.get(userId))
    if (everybody) readAt = at
    awaitExpiry()
  }

  function replace(userId: string, user: UserRow | undefined): void {
    const before = hashesOf.get(userId) ?? new Set<string>()
    const after = new Set(user?.keys.map(key => key.hash))
    const gone = [...before].filter(hash => !after.has(hash)).map(hash => byHash.get(hash)!.keyId)
    const wasActive = [...before].some(hash => !byHash.get(hash)!.suspended)

    for (const hash of before) if (!after.has(hash)) byHash.delete(hash)
    for (const key of user?.keys ?? [])
      byHash.set(key.hash, {
        keyId: key.id,
        userId,
        username: user!.username,
        suspended: user!.suspended,
        expiresAt: key.expires_at,
      })
    if (after.size > 0) hashesOf.set(userId, after)
    else hashesOf.delete(userId)

    if (user?.suspended && wasActive) onRevoked({ userId, keyIds: gone, reason: 'user-suspended' })
    else if (gone.length > 0) onRevoked({ userId, keyIds: gone, reason: user ? 'key-revoked' : 'user-removed' })
  }

  /** Open streams of a key end with it. A key that expires later than the next full look is seen by that. */
  function awaitExpiry(): void {
    clearTimeout(expiryTimer)
    let soonest = Number.POSITIVE_INFINITY
    for (const { expiresAt } of byHash.values()) if (expiresAt !== null && expiresAt < soonest) soonest = expiresAt
    const inMs = Math.max(0, soonest - now()) + expiryGraceMs
    if (closed || inMs > fullLookMs) return
    expiryTimer = setTimeout(() => look(null).catch(report), inMs)
    expiryTimer.unref()
  }

  const report = (error: unknown) => log.warn({ error }, 'directory.refresh.failed')
  await look(null)
  const listener = await db.listen(userChannel, payload => {
    // whoever may log in to the database may send notifications: what is no user's id is none of ours
    if (payload !== null && !isUuid.test(payload)) return
    look(payload)
      .catch(report)
      .finally(() => onChanged(payload))
  })
  const timer = setInterval(() => {
    look(null).catch(report)
    writeUses().catch(report)
  }, fullLookMs)
  timer.unref()

  const uses = new Map<string, number>()
  let lastWrite = Number.NEGATIVE_INFINITY
  async function writeUses() {
    if (uses.size === 0) return
    const batch = [...uses]
    uses.clear()
    await db.withTx(async tx => {
      const firstToday = await tx.query<{ id: string; user_id: string; username: string; prefix: string; day: string }>(
        `with before as (
           select k.id, k.last_used_at, used.at from unnest($1::uuid[], $2::float8[]) as used (id, at)
             join api_keys k on k.id = used.id order by k.id for no key update of k),
         written as (
           update api_keys k set last_used_at = greatest(k.last_used_at, to_timestamp(before.at / 1000))
             from before where k.id = before.id)
         select k.id, k.user_id, u.username, k.prefix, to_char(to_timestamp(before.at / 1000) at time zone 'UTC', 'YYYY-MM-DD') as day
           from before join api_keys k on k.id = before.id join users u on u.id = k.user_id
          where before.last_used_at is null
             or (before.last_used_at at time zone 'UTC')::date < (to_timestamp(before.at / 1000) at time zone 'UTC')::date`,
        [batch.map(([id]) => id), batch.map(([, at]) => at)],
      )
      // each use would drown everything else; the tool calls themselves are recorded by the instances
      for (const { id, user_id: userId, username, prefix, day } of firstToday)
        await appendAudit(tx, {
          actor: `user:${username}`,
          action: 'api-key.used',
          username,
          userId,
          detail: { keyId: id, keyPrefix: prefix, day },
        })
    })
  }

  return {
    find: hash => byHash.get(typeof hash === 'string' ? hash : hash.toString('base64')),
    isFresh: () => now() - readAt < staleAfterMs,
    refresh: userId => look(userId),
    used(keyId) {
      const at = now()
      uses.set(keyId, at)
      // the first use of a quiet period is written soon, so that an admin sees it
      if (at - lastWrite > writeUseMs) {
        lastWrite = at
        setTimeout(() => writeUses().catch(report), 250).unref()
      }
    },
    async close() {
      clearInterval(timer)
      await listener.close()
      await last
      closed = true
      clearTimeout(expiryTimer)
      await writeUses().catch(report)
    },
  }
}

const isUuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
