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
 * listening connection was lost, and by a slow timer. When nothing could be read for `staleAfterMs`, nobody enters.
 */
export interface Directory {
  /** @param hash - SHA-256 of the key */
  find(hash: Buffer): Identity | undefined
  /** Whether what is in memory is recent enough to let anybody in. */
  isFresh(): boolean
  /** Reads one user again at once; other processes are told by the database. */
  refresh(userId: string): Promise<void>
  /** Notes that a key was used; written to the database at most once a minute. */
  used(keyId: string): void
  close(): Promise<void>
}

const fullLookMs = 60_000
const staleAfterMs = 300_000
const writeUseMs = 60_000

type KeyRow = {
  id: string
  hash: Buffer
  expires_at: Date | null
  user_id: string
  username: string
  suspended: boolean
}
const selectKeys = `select k.id, k.hash, k.expires_at, u.id as user_id, u.username, u.suspended
  from api_keys k join users u on u.id = k.user_id
 where k.revoked_at is null and u.wanted <> 'removed' and (k.expires_at is null or k.expires_at > now())`

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
  onRevoked: (revocation: Revocation) => void
  /** told of each changed user, or null: look at everything */
  onChanged: (userId: string | null) => void
}): Promise<Directory> {
  const byHash = new Map<string, Identity>()
  const hashesOf = new Map<string, Set<string>>()
  const uses = new Map<string, number>()
  let readAt = Number.NEGATIVE_INFINITY

  function replaceUser(userId: string, rows: KeyRow[], stillThere: boolean) {
    const before = hashesOf.get(userId) ?? new Set<string>()
    const after = new Set<string>()
    for (const row of rows) {
      const hash = row.hash.toString('base64')
      after.add(hash)
      byHash.set(hash, {
        keyId: row.id,
        userId,
        username: row.username,
        suspended: row.suspended,
        expiresAt: row.expires_at?.getTime() ?? null,
      })
    }
    const gone: string[] = []
    for (const hash of before) {
      if (after.has(hash)) continue
      gone.push(byHash.get(hash)!.keyId)
      byHash.delete(hash)
    }
    if (after.size > 0) hashesOf.set(userId, after)
    else hashesOf.delete(userId)
    if (rows.some(row => row.suspended))
      onRevoked({ userId, keyIds: rows.map(row => row.id).concat(gone), reason: 'user-suspended' })
    else if (gone.length > 0) onRevoked({ userId, keyIds: gone, reason: stillThere ? 'key-revoked' : 'user-removed' })
  }

  async function refresh(userId: string) {
    const [rows, [user]] = await Promise.all([
      db.query<KeyRow>(`${selectKeys} and u.id = $1`, [userId]),
      db.query("select 1 from users where id = $1 and wanted <> 'removed'", [userId]),
    ])
    replaceUser(userId, rows, user !== undefined)
  }

  async function refreshAll() {
    const rows = await db.query<KeyRow>(selectKeys)
    const byUser = Map.groupBy(rows, row => row.user_id)
    for (const userId of [...hashesOf.keys()]) if (!byUser.has(userId)) replaceUser(userId, [], false)
    for (const [userId, userRows] of byUser) replaceUser(userId, userRows, true)
    readAt = now()
  }

  const report = (error: unknown) => log.warn({ error }, 'directory.refresh.failed')
  await refreshAll()
  const listener = await db.listen(userChannel, payload => {
    const look = payload === null ? refreshAll() : refresh(payload)
    look.catch(report).finally(() => onChanged(payload))
  })
  const timer = setInterval(() => {
    refreshAll().catch(report)
    writeUses().catch(report)
  }, fullLookMs)
  timer.unref()

  async function writeUses() {
    if (uses.size === 0) return
    const batch = [...uses]
    uses.clear()
    await db.query(
      `update api_keys k set last_used_at = greatest(k.last_used_at, to_timestamp(used.at / 1000.0))
         from unnest($1::uuid[], $2::float8[]) as used (id, at) where k.id = used.id`,
      [batch.map(([id]) => id), batch.map(([, at]) => at)],
    )
  }
  let lastWrite = 0

  return {
    find: hash => byHash.get(hash.toString('base64')),
    isFresh: () => now() - readAt < staleAfterMs,
    refresh,
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
      await writeUses().catch(report)
    },
  }
}
