import type { z } from 'zod'
import { appendAudit } from './audit.ts'
import type { Db, Queryable } from './db.ts'
import { AppError } from './errors.ts'
import { makeApiKey } from './identity.ts'
import type { ApiKeyView, IssuedApiKey, KeyRotation, newApiKey } from './user-schemas.ts'

/** The part of {@link Users} about API keys: issue, list, rotate, revoke. */

type KeyRow = {
  id: string
  name: string | null
  prefix: string
  created_at: Date
  expires_at: Date | null
  last_used_at: Date | null
  last_client: string | null
  last_address: string | null
  replaced_by: string | null
}

const columns = `k.id, k.name, k.prefix, k.created_at, k.expires_at, k.last_used_at, k.last_client, host(k.last_address) as last_address, k.replaced_by`
const isValid = `k.revoked_at is null and (k.expires_at is null or k.expires_at > now())`

/** How long an old key stays valid when the admin does not say: long enough for a person on holiday. */
const defaultOverlapSeconds = 7 * 86_400

/** Makes a key in the transaction of its user. The key itself is in the answer only. */
export async function addKey(
  tx: Queryable,
  userId: string,
  options: { name?: string | null | undefined; expiresAt?: string | undefined } = {},
): Promise<IssuedApiKey> {
  const { key, prefix, hash } = makeApiKey()
  const [row] = await tx.query<{ id: string }>(
    'insert into api_keys (user_id, name, prefix, hash, expires_at) values ($1, $2, $3, $4, $5) returning id',
    [userId, options.name ?? null, prefix, hash, options.expiresAt ?? null],
  )
  return { id: row!.id, prefix, key }
}

export function createApiKeys({
  db,
  lockUser,
  tell,
  idOf,
}: {
  db: Db
  /** the user's row, locked for the transaction @throws AppError `user-not-found` */
  lockUser: (tx: Queryable, name: string) => Promise<{ id: string }>
  /** tells every control plane with the commit */
  tell: (tx: Queryable, userId: string) => Promise<unknown>
  idOf: (name: string) => Promise<string>
}) {
  const noSuchKey = (name: string) =>
    new AppError(
      'api-key-not-found',
      `"${name}" has no such key, or it is no longer valid. List them with GET /v1/users/${name}/api-keys.`,
    )
  const notPast = (field: 'expiresAt' | 'validUntil', value: string | undefined, now: number) => {
    if (value !== undefined && Date.parse(value) <= now)
      throw new AppError('request-invalid', `${field} lies in the past. Give a later time or leave it out.`, {
        invalid: [{ pointer: `#/${field}`, detail: 'lies in the past' }],
      })
  }

  return {
    async issueKey(
      name: string,
      options: z.infer<typeof newApiKey>,
      actor: string,
      now: number,
    ): Promise<IssuedApiKey> {
      notPast('expiresAt', options.expiresAt, now)
      return db.withTx(async tx => {
        const row = await lockUser(tx, name)
        const key = await addKey(tx, row.id, options)
        await appendAudit(tx, {
          actor,
          action: 'api-key.issued',
          username: name,
          userId: row.id,
          detail: { keyId: key.id, keyPrefix: key.prefix, name: options.name },
        })
        await tell(tx, row.id)
        return key
      })
    },

    /**
     * Makes a key that takes the place of another. The old one stays valid until the deadline, so that clients can be
     * moved one after the other, then ends by itself with its open streams.
     * @param options - neither `overlapSeconds` nor `validUntil`: a week. An earlier expiry of the old key stays
     * @throws AppError `api-key-not-found`, `api-key-rotated`
     */
    async rotateKey(
      name: string,
      keyId: string,
      options: KeyRotation,
      actor: string,
      now: number,
    ): Promise<{ userId: string; apiKey: IssuedApiKey; old: ApiKeyView }> {
      notPast('validUntil', options.validUntil, now)
      return db.withTx(async tx => {
        const { id: userId } = await lockUser(tx, name)
        const [old] = await tx.query<KeyRow>(
          `select ${columns} from api_keys k where k.id = $1 and k.user_id = $2 and ${isValid} for update`,
          [keyId, userId],
        )
        if (!old) throw noSuchKey(name)
        if (old.replaced_by !== null)
          throw new AppError(
            'api-key-rotated',
            `This key was rotated already and ends at ${old.expires_at?.toISOString()}. Rotate the key that took its place, or end this one now: DELETE /v1/users/${name}/api-keys/${keyId}.`,
          )
        const apiKey = await addKey(tx, userId, { name: options.name ?? old.name })
        // the database's clock decides when a key ends
        const [ended] = await tx.query<KeyRow>(
          `update api_keys k
              set replaced_by = $2,
                  expires_at = least(k.expires_at, coalesce($3::timestamptz, clock_timestamp() + make_interval(secs => $4)))
            where k.id = $1 returning ${columns}`,
          [keyId, apiKey.id, options.validUntil ?? null, options.overlapSeconds ?? defaultOverlapSeconds],
        )
        await appendAudit(tx, {
          actor,
          action: 'api-key.rotated',
          username: name,
          userId,
          detail: { ...useOf(ended!), newKeyId: apiKey.id, newKeyPrefix: apiKey.prefix },
        })
        await tell(tx, userId)
        return { userId, apiKey, old: toView(ended!) }
      })
    },

    async listKeys(name: string): Promise<ApiKeyView[]> {
      const rows = await db.query<KeyRow>(
        `select ${columns} from users u join api_keys k on k.user_id = u.id
          where u.username = $1 and u.wanted <> 'removed' and ${isValid} order by k.created_at, k.id`,
        [name],
      )
      if (rows.length === 0) await idOf(name)
      return rows.map(toView)
    },

    async revokeKey(name: string, keyId: string, actor: string): Promise<string> {
      return db.withTx(async tx => {
        const row = await lockUser(tx, name)
        const [key] = await tx.query<KeyRow>(
          `update api_keys k set revoked_at = now() where k.id = $1 and k.user_id = $2 and k.revoked_at is null returning ${columns}`,
          [keyId, row.id],
        )
        if (!key) throw noSuchKey(name)
        await appendAudit(tx, { actor, action: 'api-key.revoked', username: name, userId: row.id, detail: useOf(key) })
        await tell(tx, row.id)
        return row.id
      })
    },

    /**
     * Notes in the audit which keys have ended by their expiry, each once, with who used them last. They open nothing
     * since that moment, whether or not this has run.
     */
    async retireExpiredKeys(): Promise<number> {
      return db.withTx(async tx => {
        const ended = await tx.query<KeyRow & { user_id: string; username: string }>(
          `with ended as (
             select id from api_keys where revoked_at is null and expires_at <= now() for update skip locked)
           update api_keys k set revoked_at = k.expires_at from ended, users u
            where k.id = ended.id and u.id = k.user_id returning ${columns}, u.id as user_id, u.username`,
        )
        for (const key of ended)
          await appendAudit(tx, {
            actor: 'system',
            action: 'api-key.expired',
            username: key.username,
            userId: key.user_id,
            detail: useOf(key),
          })
        return ended.length
      })
    },
  }
}

/** Which key, and who used it last: what an admin asks when a client stops working. */
function useOf(row: KeyRow): Record<string, unknown> {
  const { id, prefix, lastUsedAt, lastClient, lastAddress, replacedBy, expiresAt } = toView(row)
  return { keyId: id, keyPrefix: prefix, expiresAt, replacedBy, lastUsedAt, lastClient, lastAddress }
}

function toView(row: KeyRow): ApiKeyView {
  return {
    id: row.id,
    name: row.name,
    prefix: row.prefix,
    createdAt: row.created_at.toISOString(),
    expiresAt: row.expires_at?.toISOString() ?? null,
    lastUsedAt: row.last_used_at?.toISOString() ?? null,
    lastClient: row.last_client,
    lastAddress: row.last_address,
    replacedBy: row.replaced_by,
  }
}
