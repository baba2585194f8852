import { createHash, hash, randomBytes, timingSafeEqual } from 'node:crypto'
import {
  type StatementClaims,
  statementAudience,
  statementIssuer,
  statementLifeSeconds,
} from '@sdp-mcp/instance/contract'
import { seal } from '@sdp-mcp/instance/seal'
import { exportJWK, generateKeyPair, importJWK, type JWK, SignJWT } from 'jose'
import type { Db } from './db.ts'
import { type Keyring, openStored } from './keyring.ts'
import type { Rewrapped } from './vault.ts'

/** The only importer of jose in the control plane. */

const keyPattern = /^sdpmcp_[A-Za-z0-9_-]{43}$/

export type NewApiKey = { key: string; prefix: string; hash: Buffer }

/** A new API key: `sdpmcp_` and 256 random bits in base64url. Only its hash is stored; `prefix` recognises it in lists. */
export function makeApiKey(): NewApiKey {
  const key = `sdpmcp_${randomBytes(32).toString('base64url')}`
  return { key, prefix: key.slice(0, 'sdpmcp_'.length + 4), hash: hashApiKey(key) }
}

/** SHA-256 suffices: the key has 256 bits of entropy, so there is nothing to guess, and this stands on the hot path. */
export function hashApiKey(key: string): Buffer {
  return Buffer.from(apiKeyDigest(key), 'base64')
}

/** {@link hashApiKey} as base64, which is what look-ups take; a third of the time, and no buffer to collect. */
export function apiKeyDigest(key: string): string {
  return hash('sha256', key, 'base64')
}

/** Whether a text can be one of our keys at all. */
export function looksLikeApiKey(text: string): boolean {
  return keyPattern.test(text)
}

/** Compares two secrets in a time that tells nothing about either. */
export function sameSecret(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(digest(a), digest(b))
}

export interface StatementSigner {
  /** Public keys that instances trust, newest first. */
  publicKeys(): Promise<JWK[]>
  /**
   * A statement for one instance, fit for at least another minute. The same one is handed out again while it
   * lasts, and then at once: signing costs more than everything else the proxy does to a request.
   */
  statement(
    instance: { userId: string; username: string; generation: number },
    purpose: StatementClaims['purpose'],
  ): string | Promise<string>
  /** Seals a batch of signing keys with the current master key; see Vault.rewrap. */
  rewrap(after: string | null, limit: number): Promise<Rewrapped>
}

const reuseSeconds = statementLifeSeconds - 60
const lockKey = 'sdp-mcp signing key'
const sealContextOf = (kid: string) => `signing_keys.private_sealed:${kid}`

/**
 * Signs with the newest key of table signing_keys; the first control plane on a database makes it. Keys are shared by
 * all control planes of a database, sealed with the master key.
 */
export function createStatementSigner({
  db,
  keyring,
  now,
}: {
  db: Db
  keyring: Keyring
  now: () => number
}): StatementSigner {
  const issued = new Map<string, { token: string; reuseUntil: number }>()
  let keys: Promise<{ kid: string; sign: Awaited<ReturnType<typeof importJWK>>; publicJwks: JWK[] }> | undefined

  async function load() {
    const rows = await db.withLock(lockKey, async () => {
      const select = () =>
        db.query<{ kid: string; public_jwk: JWK; private_sealed: string }>(
          'select kid, public_jwk, private_sealed from signing_keys order by created_at desc',
        )
      const found = await select()
      if (found.length > 0) return found
      const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true })
      const kid = randomBytes(8).toString('hex')
      const publicJwk = { ...(await exportJWK(pair.publicKey)), kid, alg: 'EdDSA', use: 'sig' }
      const sealed = seal(keyring.current(), JSON.stringify(await exportJWK(pair.privateKey)), sealContextOf(kid))
      await db.query('insert into signing_keys (kid, public_jwk, private_sealed) values ($1, $2, $3)', [
        kid,
        publicJwk,
        sealed,
      ])
      return select()
    })
    const newest = rows[0]!
    const privateJwk = JSON.parse(openStored(keyring.all(), newest.private_sealed, sealContextOf(newest.kid))) as JWK
    return { kid: newest.kid, sign: await importJWK(privateJwk, 'EdDSA'), publicJwks: rows.map(row => row.public_jwk) }
  }
  const loaded = () => {
    keys ??= load().catch(error => {
      keys = undefined
      throw error
    })
    return keys
  }

  return {
    async publicKeys() {
      return (await loaded()).publicJwks
    },
    statement({ userId, username, generation }, purpose) {
      const audience = statementAudience(userId, generation)
      const slot = `${purpose} ${audience}`
      const at = now()
      const ready = issued.get(slot)
      if (ready && ready.reuseUntil > at) return ready.token
      return sign(slot, audience, username, purpose, at)
    },
    async rewrap(after, limit) {
      const current = keyring.current()
      return db.withTx(async tx => {
        const rows = await tx.query<{ kid: string; private_sealed: string }>(
          `select kid, private_sealed from signing_keys
            where split_part(private_sealed, '.', 2) <> $1 and ($2::text is null or kid > $2) order by kid limit $3 for no key update`,
          [current.id, after, limit],
        )
        const unopened: string[] = []
        for (const { kid, private_sealed: sealed } of rows) {
          let jwk: string
          try {
            jwk = openStored(keyring.all(), sealed, sealContextOf(kid))
          } catch {
            unopened.push(kid)
            continue
          }
          await tx.query('update signing_keys set private_sealed = $2 where kid = $1', [
            kid,
            seal(current, jwk, sealContextOf(kid)),
          ])
        }
        return {
          rewrapped: rows.length - unopened.length,
          unopened,
          last: rows.length < limit ? null : rows.at(-1)!.kid,
        }
      })
    },
  }

  async function sign(
    slot: string,
    audience: string,
    username: string,
    purpose: StatementClaims['purpose'],
    at: number,
  ): Promise<string> {
    const { kid, sign: key } = await loaded()
    const seconds = Math.floor(at / 1000)
    const token = await new SignJWT({ purpose })
      .setProtectedHeader({ alg: 'EdDSA', kid, typ: 'JWT' })
      .setIssuer(statementIssuer)
      .setAudience(audience)
      .setSubject(username)
      .setIssuedAt(seconds)
      .setExpirationTime(seconds + statementLifeSeconds)
      .sign(key)
    if (issued.size > 10_000) issued.clear()
    issued.set(slot, { token, reuseUntil: at + reuseSeconds * 1000 })
    return token
  }
}
