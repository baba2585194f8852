import { createHash, timingSafeEqual } from 'node:crypto'
import { plainAddress } from '@sdp-mcp/instance/contract'
import { appendAudit } from './audit.ts'
import type { Config } from './config.ts'
import type { Db } from './db.ts'
import type { Logger } from './log.ts'
import { effectiveSdpSettings, type StoredSdpSettings } from './sdp-settings.ts'
import type { StoredLimits, UserLimits } from './user-schemas.ts'
import { effectiveLimits, userChannel } from './users.ts'

/** Who an API key, or the OAuth client that somebody presents, belongs to. */
export type Identity = {
  /** id of the API key; `client:...` for an OAuth client */
  keyId: string
  userId: string
  username: string
  suspended: boolean
  /** milliseconds since the epoch; null: never */
  expiresAt: number | null
  limits: UserLimits
}

/** Where the user of an OAuth client works, to be compared with what the client asks for. */
export type Site = { baseUrl: string; portal: string | null }

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
  /**
   * Who presents this OAuth client. A pair that several users have says nothing about who it is, so it is nobody's.
   * @param fingerprintUnder - the pair's fingerprint under a master key, see ClientFingerprints
   */
  findClient(
    clientId: string,
    fingerprintUnder: (keyId: string) => Buffer | undefined,
  ): (Identity & { site: Site }) | undefined
  /** Whether what is in memory is recent enough to let anybody in. */
  isFresh(): boolean
  /** Reads one user again at once: what was committed before the call is in force after it. Other processes are told by the database. */
  refresh(userId: string): Promise<void>
  /**
   * Notes that a key was used; written to the database about once a minute.
   * @param client - what the client says of itself (User-Agent)
   */
  used(keyId: string, address?: string, client?: string): void
  close(): Promise<void>
}

const fullLookMs = 60_000
/** after a look that failed; twice as long after each further one */
const firstLookAgainMs = 250
const longestLookAgainMs = 5_000
const staleAfterMs = 300_000
const writeUseMs = 60_000
const forgetUseMs = 600_000
/** so that the database, whose clock decides, agrees that a key has expired */
const expiryGraceMs = 250

type UserRow = {
  id: string
  username: string
  suspended: boolean
  limits: StoredLimits
  keys: { id: string; hash: string; expires_at: number | null }[]
  client: { id: string; fingerprint: string; keyId: string } | null
  site: StoredSdpSettings
}
const selectUsers = `
  select u.id, u.username, u.suspended, u.limits,
         json_build_object('dataCenter', u.sdp_data_center, 'portal', u.sdp_portal, 'baseUrl', u.sdp_base_url,
                           'accountsUrl', u.sdp_accounts_url) as site,
         (select json_build_object('id', f.client_id, 'fingerprint', encode(f.fingerprint, 'base64'), 'keyId', f.key_id)
            from client_fingerprints f join oauth_tokens t on t.user_id = f.user_id and t.client_id = f.client_id
           where f.user_id = u.id and $2) as client,
         coalesce(json_agg(json_build_object('id', k.id, 'hash', encode(k.hash, 'base64'),
                                             'expires_at', extract(epoch from k.expires_at) * 1000))
                    filter (where k.id is not null), '[]') as keys
    from users u
    left join api_keys k on k.user_id = u.id and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
   where u.wanted <> 'removed' and ($1::uuid[] is null or u.id = any($1))
   group by u.id`

type Client = { clientId: string; keyId: string; fingerprint: Buffer; identity: Identity & { site: Site } }
/** Everything by which one user is known at the moment. */
type Known = { hashes: Map<string, Identity>; client: Client | undefined }

/** Users to be read with the next look. */
type Look = { users: Set<string>; everybody: boolean; done: Promise<void> }

export async function openDirectory({
  db,
  log,
  now,
  elapsed = () => performance.now(),
  config,
  takesClients = false,
  onRevoked,
  onChanged,
}: {
  db: Db
  log: Logger
  now: () => number
  /** a clock that never jumps, in ms: how old what we know is must not depend on somebody who sets the time */
  elapsed?: () => number
  config: Pick<Config, 'sdpDefaults' | 'allowInsecureUpstream' | 'allowedUpstreamHosts' | 'userLimits'>
  /** whether OAuth clients are taken as credentials */
  takesClients?: boolean
  /** told of what was valid a moment ago and is no longer */
  onRevoked: (revocation: Revocation) => void
  /** told of each changed user, or null: look at everything */
  onChanged: (userId: string | null) => void
}): Promise<Directory> {
  const byHash = new Map<string, Identity>()
  const byClientId = new Map<string, Map<string, Client>>()
  const known = new Map<string, Known>()
  let readAt = Number.NEGATIVE_INFINITY
  let expiryTimer: NodeJS.Timeout | undefined
  let closed = false

  // One look at a time: of two at once the older could be applied last, and bring back a key that was revoked between them.
  let last: Promise<void> = Promise.resolve()
  let next: Look | undefined
  let againTimer: NodeJS.Timeout | undefined
  let lookAgainMs = firstLookAgainMs

  /** @param userId - null: everybody */
  function look(userId: string | null): Promise<void> {
    if (!next) {
      const mine: Look = { users: new Set(), everybody: false, done: Promise.resolve() }
      mine.done = last.then(() => {
        next = undefined
        return read(mine)
      })
      last = mine.done.then(
        () => {
          lookAgainMs = firstLookAgainMs
        },
        () => lookAgain(),
      )
      next = mine
    }
    if (userId === null) next.everybody = true
    else next.users.add(userId)
    return next.done
  }

  /** What a look that failed did not see may be a revocation. Which one is not known, so everybody is looked at. */
  function lookAgain(): void {
    if (closed || againTimer) return
    againTimer = setTimeout(() => {
      againTimer = undefined
      look(null).catch(report)
    }, lookAgainMs)
    againTimer.unref()
    lookAgainMs = Math.min(2 * lookAgainMs, longestLookAgainMs)
  }

  async function read({ users, everybody }: Look): Promise<void> {
    if (closed) return
    const at = elapsed()
    const rows = await db.query<UserRow>(selectUsers, [everybody ? null : [...users], takesClients])
    const found = new Map(rows.map(row => [row.id, row]))
    for (const userId of everybody ? new Set([...known.keys(), ...found.keys()]) : users)
      replace(userId, found.get(userId))
    if (everybody) readAt = at
    awaitExpiry()
  }

  function replace(userId: string, user: UserRow | undefined): void {
    const before = known.get(userId)
    const after = user && knownBy(user)

    for (const hash of before?.hashes.keys() ?? []) if (!after?.hashes.has(hash)) byHash.delete(hash)
    for (const [hash, identity] of after?.hashes ?? []) byHash.set(hash, identity)
    if (before?.client) {
      const sharing = byClientId.get(before.client.clientId)
      sharing?.delete(userId)
      if (sharing?.size === 0) byClientId.delete(before.client.clientId)
    }
    if (after?.client) {
      const { clientId } = after.client
      byClientId.set(clientId, (byClientId.get(clientId) ?? new Map()).set(userId, after.client))
    }
    if (after && (after.hashes.size > 0 || after.client)) known.set(userId, after)
    else known.delete(userId)

    const [was, is] = [identitiesOf(before), identitiesOf(after)]
    const still = new Set(is.map(({ keyId }) => keyId))
    const keyIds = was.map(({ keyId }) => keyId).filter(keyId => !still.has(keyId))
    const wasActive = was.some(({ suspended }) => !suspended)
    if (user?.suspended && wasActive) onRevoked({ userId, keyIds, reason: 'user-suspended' })
    else if (keyIds.length > 0) onRevoked({ userId, keyIds, reason: user ? 'key-revoked' : 'user-removed' })
    // whoever came in by a pair that has become ambiguous is nobody in particular any more
    for (const sharing of after?.client ? [byClientId.get(after.client.clientId)!] : [])
      for (const [otherId, other] of sharing)
        if (
          otherId !== userId &&
          other.keyId === after!.client!.keyId &&
          timingSafeEqual(other.fingerprint, after!.client!.fingerprint)
        )
          for (const one of [otherId, userId])
            onRevoked({ userId: one, keyIds: [sharing.get(one)!.identity.keyId], reason: 'key-revoked' })
  }

  function knownBy({ id: userId, username, suspended, limits, keys, client, site }: UserRow): Known {
    const common = { userId, username, suspended, limits: effectiveLimits(limits, config.userLimits) }
    // a key that has expired by our clock is none, whatever the database's clock says
    const valid = keys.filter(key => key.expires_at === null || key.expires_at > now())
    const hashes = valid.map(key => [key.hash, { keyId: key.id, ...common, expiresAt: key.expires_at }] as const)
    if (!client) return { hashes: new Map(hashes), client: undefined }
    // another secret is another key: what came in with the old one is cut
    const keyId = `client:${createHash('sha256').update(client.fingerprint).digest('hex').slice(0, 16)}`
    const identity = { keyId, ...common, expiresAt: null, site: effectiveSdpSettings(site, config) }
    const fingerprint = Buffer.from(client.fingerprint, 'base64')
    return { hashes: new Map(hashes), client: { clientId: client.id, keyId: client.keyId, fingerprint, identity } }
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

  type Use = {
    at: number
    address: string | undefined
    client: string | undefined
    writtenAt: number
    dirty: boolean
    /** who came last with this key, so that two programs who share it do not take turns as news */
    recent: string[]
  }
  const uses = new Map<string, Use>()
  let soon: NodeJS.Timeout | undefined
  async function writeUses() {
    clearTimeout(soon)
    soon = undefined
    const at = now()
    const batch = [...uses].filter(([, use]) => use.dirty)
    for (const [keyId, use] of uses)
      if (use.dirty) Object.assign(use, { dirty: false, writtenAt: at })
      else if (at - use.at > forgetUseMs) uses.delete(keyId)
    if (batch.length === 0) return
    const column = <T>(read: (use: Use) => T) => batch.map(([, use]) => read(use))
    const writing = db.withTx(async tx => {
      const firstToday = await tx.query<{ id: string; user_id: string; username: string; prefix: string; day: string }>(
        `with before as (
           select k.id, k.last_used_at, used.at, used.address, used.client
             from unnest($1::uuid[], $2::float8[], $3::inet[], $4::text[]) as used (id, at, address, client)
             join api_keys k on k.id = used.id order by k.id for no key update of k),
         written as (
           update api_keys k set last_used_at = to_timestamp(before.at / 1000),
                  last_address = coalesce(before.address, k.last_address), last_client = coalesce(before.client, k.last_client)
             from before
            -- another control plane may have written a later use meanwhile
            where k.id = before.id and (k.last_used_at is null or k.last_used_at <= to_timestamp(before.at / 1000)))
         select k.id, k.user_id, u.username, k.prefix, to_char(to_timestamp(before.at / 1000) at time zone 'UTC', 'YYYY-MM-DD') as day
           from before join api_keys k on k.id = before.id join users u on u.id = k.user_id
          where before.last_used_at is null
             or (before.last_used_at at time zone 'UTC')::date < (to_timestamp(before.at / 1000) at time zone 'UTC')::date`,
        [
          batch.map(([id]) => id),
          column(({ at }) => at),
          column(({ address }) => (address === undefined ? null : (plainAddress(address) ?? null))),
          column(({ client }) => client?.replace(/[^\x20-\x7e]/g, '?').slice(0, 200) ?? null),
        ],
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
    await writing.catch(error => {
      for (const [, use] of batch) use.dirty = true
      throw error
    })
  }

  return {
    find: hash => byHash.get(typeof hash === 'string' ? hash : hash.toString('base64')),
    findClient(clientId, fingerprintUnder) {
      let found: Client | undefined
      for (const client of byClientId.get(clientId)?.values() ?? []) {
        const presented = fingerprintUnder(client.keyId)
        if (!presented || !timingSafeEqual(client.fingerprint, presented)) continue
        if (found) return undefined
        found = client
      }
      return found?.identity
    },
    isFresh: () => elapsed() - readAt < staleAfterMs,
    refresh: userId => look(userId),
    used(keyId, address, client) {
      // clients without a key have no row to note it in
      if (keyId.startsWith('client:')) return
      const at = now()
      const who = `${client} ${address}`
      let use = uses.get(keyId)
      if (!use) {
        use = { at, address, client, writtenAt: Number.NEGATIVE_INFINITY, dirty: true, recent: [who] }
        uses.set(keyId, use)
      }
      // the first use of a quiet time, and another client, are written soon, so that an admin sees them
      const isOther = use.client !== client || use.address !== address
      const isNews = at - use.writtenAt > writeUseMs || (isOther && isNewcomer(use.recent, who))
      use.at = at
      use.address = address
      use.client = client
      use.dirty = true
      if (isNews) soon ??= setTimeout(() => writeUses().catch(report), 250).unref()
    },
    async close() {
      clearInterval(timer)
      await listener.close()
      await last
      closed = true
      clearTimeout(expiryTimer)
      clearTimeout(againTimer)
      await writeUses().catch(report)
    },
  }
}

/** Remembers who came; a fifth one displaces the first. */
function isNewcomer(recent: string[], who: string): boolean {
  if (recent.includes(who)) return false
  if (recent.push(who) > 4) recent.shift()
  return true
}

function identitiesOf(known: Known | undefined): Identity[] {
  return known ? [...known.hashes.values(), ...(known.client ? [known.client.identity] : [])] : []
}

const isUuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
