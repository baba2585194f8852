import { createHash, hash, randomBytes, timingSafeEqual } from 'node:crypto'
import {
  type StatementClaims,
  statementAudience,
  statementIssuer,
  statementLifeSeconds,
} from '@sdp-mcp/instance/contract'
import { seal } from '@sdp-mcp/instance/seal'
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  errors,
  exportJWK,
  type FetchImplementation,
  generateKeyPair,
  importJWK,
  type JWK,
  type JWTPayload,
  jwtVerify,
  SignJWT,
} from 'jose'
import type { Config } from './config.ts'
import type { Db } from './db.ts'
import { AppError } from './errors.ts'
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
  /**
   * What an instance shows to the egress proxy. Of no use elsewhere, and without an end: it is worth as much as the instance
   * of that generation, which the proxy looks up.
   */
  egressToken(instance: { userId: string; generation: number }): Promise<string>
  /** Whom {@link egressToken} was made for; undefined unless it is one of ours. */
  egressHolder(token: string): Promise<{ userId: string; generation: number } | undefined>
  /** Seals a batch of signing keys with the current master key; see Vault.rewrap. */
  rewrap(after: string | null, limit: number): Promise<Rewrapped>
}

const reuseSeconds = statementLifeSeconds - 60
const lockKey = 'sdp-mcp signing key'
const egressAudience = 'egress'
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
    async egressToken({ userId, generation }) {
      const { kid, sign: key } = await loaded()
      return new SignJWT({ generation })
        .setProtectedHeader({ alg: 'EdDSA', kid, typ: 'JWT' })
        .setIssuer(statementIssuer)
        .setAudience(egressAudience)
        .setSubject(userId)
        .setIssuedAt(Math.floor(now() / 1000))
        .sign(key)
    },
    async egressHolder(token) {
      const { publicJwks } = await loaded()
      const verified = await jwtVerify(token, createLocalJWKSet({ keys: publicJwks }), {
        algorithms: ['EdDSA'],
        issuer: statementIssuer,
        audience: egressAudience,
        currentDate: new Date(now()),
      }).catch(() => undefined)
      const { sub: userId, generation } = verified?.payload ?? {}
      return typeof userId === 'string' && typeof generation === 'number' ? { userId, generation } : undefined
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

export interface AdminTokens {
  /**
   * Checks a token of the company's identity provider.
   * @throws AppError `admin-token-required` not a valid token for us; `admin-role-required` valid, without one of our
   *   roles; `admin-issuer-unavailable` its keys cannot be had
   */
  verify(token: string): Promise<{ subject: string; role: 'admin' | 'viewer' }>
}

// Signatures by the provider alone. HS*, which anybody who knows a public key could make, and none are not among them.
const providerAlgorithms = 'RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA Ed25519'.split(' ')
const providerTimeoutMs = 5_000
const discoveryFreshMs = 3_600_000
const discoveryRetryMs = 5_000

/**
 * Tokens of an OpenID provider, whose keys are found by discovery. The keys are kept for ten minutes and read again when
 * a token names one that is not among them, at most every `cooldownMs`.
 * @see OpenID Connect Discovery 1.0 section 4, RFC 8725 (algorithms, audience, issuer)
 */
export function createAdminTokens({
  oidc,
  now,
  fetch: providedFetch = fetch,
  cooldownMs = 30_000,
}: {
  oidc: NonNullable<Config['oidc']>
  now: () => number
  fetch?: FetchImplementation
  cooldownMs?: number
}): AdminTokens {
  type Keys = ReturnType<typeof createRemoteJWKSet>
  let discovered: { keys: Promise<Keys>; until: number } | undefined

  async function discover(): Promise<Keys> {
    const response = await providedFetch(`${oidc.issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, {
      headers: new Headers({ accept: 'application/json' }),
      method: 'GET',
      redirect: 'manual',
      signal: AbortSignal.timeout(providerTimeoutMs),
    })
    if (response.status !== 200) throw new Error(`discovery answered ${response.status}`)
    const document = (await response.json()) as { issuer?: unknown; jwks_uri?: unknown }
    // else another provider's keys would count as this one's
    if (document.issuer !== oidc.issuer) throw new Error(`discovery names the issuer ${String(document.issuer)}`)
    const keysAt = new URL(String(document.jwks_uri))
    if (keysAt.protocol !== 'https:' && !oidc.issuer.startsWith('http:'))
      throw new Error('the keys are not behind https')
    return createRemoteJWKSet(keysAt, {
      timeoutDuration: providerTimeoutMs,
      cooldownDuration: cooldownMs,
      cacheMaxAge: 600_000,
      [customFetch]: providedFetch,
    })
  }

  function keys(): Promise<Keys> {
    if (discovered && discovered.until > now()) return discovered.keys
    const mine = { keys: discover(), until: now() + discoveryFreshMs }
    discovered = mine
    mine.keys.catch(() => {
      mine.until = now() + discoveryRetryMs
    })
    return mine.keys
  }

  function roleOf(payload: JWTPayload): 'admin' | 'viewer' | undefined {
    const literal = payload[oidc.roleClaim]
    const found =
      literal !== undefined
        ? literal
        : oidc.roleClaim
            .split('.')
            .reduce<unknown>((value, step) => (value as Record<string, unknown> | null | undefined)?.[step], payload)
    const roles = Array.isArray(found) ? found : typeof found === 'string' ? found.split(/[\s,]+/) : []
    return roles.includes(oidc.adminRole) ? 'admin' : roles.includes(oidc.viewerRole) ? 'viewer' : undefined
  }

  return {
    async verify(token) {
      let payload: JWTPayload
      try {
        const options = {
          issuer: oidc.issuer,
          audience: oidc.audience,
          algorithms: providerAlgorithms,
          requiredClaims: ['exp', 'sub'],
          clockTolerance: 30,
          currentDate: new Date(now()),
        }
        payload = (await jwtVerify(token, await keys(), options)).payload
      } catch (cause) {
        if (!isTokenFault(cause))
          throw new AppError(
            'admin-issuer-unavailable',
            `The keys of ${oidc.issuer} cannot be read. Try again shortly, or use the admin token; check SDP_ADMIN_OIDC_ISSUER if it stays.`,
            { cause },
          )
        throw new AppError(
          'admin-token-required',
          cause instanceof errors.JWTExpired
            ? 'The token has expired. Sign in at your identity provider again.'
            : 'The token is not one of your identity provider for this service. It must be signed by SDP_ADMIN_OIDC_ISSUER and made for SDP_ADMIN_OIDC_AUDIENCE.',
          { cause },
        )
      }
      const role = roleOf(payload)
      if (!role)
        throw new AppError(
          'admin-role-required',
          `The token gives neither the role "${oidc.adminRole}" nor "${oidc.viewerRole}" in its claim "${oidc.roleClaim}". Ask for one at your identity provider.`,
        )
      return { subject: printable(payload.sub!), role }
    },
  }
}

/** What is wrong with a token, in contrast to what is wrong with its issuer. */
function isTokenFault(error: unknown): boolean {
  return [
    errors.JWTExpired,
    errors.JWTClaimValidationFailed,
    errors.JWTInvalid,
    errors.JWSInvalid,
    errors.JWSSignatureVerificationFailed,
    errors.JWKSNoMatchingKey,
    errors.JWKSMultipleMatchingKeys,
    errors.JOSEAlgNotAllowed,
    errors.JOSENotSupported,
  ].some(kind => error instanceof kind)
}

const printable = (text: string) => text.replace(/[^\x21-\x7e]/g, '?').slice(0, 200)
