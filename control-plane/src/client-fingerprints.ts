import { createHash, createHmac, hkdfSync } from 'node:crypto'
import { sealContext } from '@sdp-mcp/instance/contract'
import type { Config } from './config.ts'
import type { Db, Queryable } from './db.ts'
import { type Keyring, openStored } from './keyring.ts'
import type { Vault } from './vault.ts'

/**
 * Owns table client_fingerprints: recognises a user by the OAuth client (id and secret) a client presents, for
 * SDP_DYNAMIC_CREDENTIALS. A fingerprint is an HMAC of the pair under a key derived from the master key, so neither the
 * database nor a backup of it lets anybody try secrets.
 */
export interface ClientFingerprints {
  /**
   * @param keyId - the master key to make it under; without it the current one
   * @returns undefined when that key is not configured
   */
  of(clientId: string, secret: string, keyId?: string): { keyId: string; fingerprint: Buffer } | undefined
  /**
   * Keeps the fingerprint of a user in step with its client; call it in the transaction that writes the client.
   * @param client - `sealed`: the secret as it is stored; without a secret there is nothing to present
   */
  put(
    tx: Queryable,
    userId: string,
    client: { clientId: string; secret: string | undefined; sealed: string | null },
  ): Promise<void>
  /** Makes what is missing or was made under another master key. @returns how many were made */
  catchUp(): Promise<number>
}

export function createClientFingerprints({
  db,
  vault,
  keyring,
  config,
}: {
  db: Db
  vault: Pick<Vault, 'dataKey'>
  keyring: Pick<Keyring, 'current' | 'all'>
  config: Pick<Config, 'dynamicCredentials' | 'sdpDefaults'>
}): ClientFingerprints {
  const enabled = config.dynamicCredentials.mode !== 'off'
  const { clientId: defaultId, clientSecret: defaultSecret } = config.sdpDefaults
  const hmacKeys = new Map<string, Buffer>()

  function of(clientId: string, secret: string, keyId = keyring.current().id) {
    const masterKey = keyring.all().find(({ id }) => id === keyId)
    if (!masterKey) return undefined
    let hmacKey = hmacKeys.get(keyId)
    if (!hmacKey) {
      hmacKey = Buffer.from(hkdfSync('sha256', masterKey.bytes, '', 'sdp-mcp client fingerprints', 32))
      hmacKeys.set(keyId, hmacKey)
    }
    // a length in front, so that no other pair spells the same bytes
    const text = `${Buffer.byteLength(clientId)}:${clientId}${secret}`
    return { keyId, fingerprint: createHmac('sha256', hmacKey).update(text).digest() }
  }
  /** What everybody here may use says nothing about who somebody is. */
  const isShared = (clientId: string, secret: string) => clientId === defaultId && secret === defaultSecret?.reveal()

  const put: ClientFingerprints['put'] = async (tx, userId, { clientId, secret, sealed }) => {
    if (!enabled || secret === undefined || sealed === null || isShared(clientId, secret)) {
      await tx.query('delete from client_fingerprints where user_id = $1', [userId])
      return
    }
    const { keyId, fingerprint } = of(clientId, secret)!
    await tx.query(
      `insert into client_fingerprints (user_id, client_id, fingerprint, source_hash, key_id) values ($1, $2, $3, $4, $5)
       on conflict (user_id) do update set client_id = excluded.client_id, fingerprint = excluded.fingerprint,
         source_hash = excluded.source_hash, key_id = excluded.key_id, updated_at = now()`,
      [userId, clientId, fingerprint, createHash('sha256').update(sealed).digest(), keyId],
    )
  }

  return {
    of,
    put,
    async catchUp() {
      if (!enabled) return 0
      const stale = await db.query<{ user_id: string }>(
        `select t.user_id from oauth_tokens t left join client_fingerprints f using (user_id)
          where t.client_secret_sealed is not null
            and (f.user_id is null or f.key_id <> $1 or f.client_id <> t.client_id
                 or f.source_hash <> sha256(convert_to(t.client_secret_sealed, 'UTF8')))`,
        [keyring.current().id],
      )
      for (const { user_id: userId } of stale)
        await db.withTx(async tx => {
          const [row] = await tx.query<{ client_id: string; client_secret_sealed: string | null }>(
            'select client_id, client_secret_sealed from oauth_tokens where user_id = $1 for update',
            [userId],
          )
          if (!row?.client_secret_sealed) return
          const dataKey = await vault.dataKey(userId, tx)
          const context = sealContext('oauth_tokens', 'client_secret_sealed', userId)
          const secret = openStored(dataKey, row.client_secret_sealed, context)
          await put(tx, userId, { clientId: row.client_id, secret, sealed: row.client_secret_sealed })
        })
      return stale.length
    },
  }
}
