import { createHash } from 'node:crypto'
import { type ConnectionState, sealContext } from '../contract.ts'
import { open, type SealingKey } from '../seal.ts'
import type { AuditedCall, LostCalls } from '../tool-audit.ts'

/** What is kept of one connection. Secrets stay sealed until their function is called. */
export type StoredConnection = {
  clientId: string
  state: ConnectionState
  scopes: string[]
  reasonCode: string | null
  reason: string | null
  lastRefreshedAt: Date | null
  /** @throws SealError, as do the other three */
  clientSecret(): string | undefined
  grantCode(): string | undefined
  refreshToken(): string | undefined
  hasGrantCode: boolean
  /** of a grant code that came from the consent page: what it is exchanged with, in place of the user's own client */
  consent: { redirectUri: string; clientId: string; clientSecret(): string } | undefined
  hasRefreshToken: boolean
  /** Lives are told by the store's own clock, so that processes with wrong clocks agree. */
  accessToken: { token(): string; lifeMs: number; ageMs: number } | undefined
}

export type Change = {
  state?: ConnectionState
  scopes?: string[]
  reasonCode?: string | null
  reason?: string | null
  /** null erases */
  refreshToken?: string | null
  /** erases the code with what it is exchanged with */
  grantCode?: null
  /** the client that is used from now on */
  client?: { clientId: string; clientSecret: string }
  /** null erases; a token also stamps `lastRefreshedAt` */
  accessToken?: { token: string; lifeMs: number } | null
}

/** A connection nobody else can change meanwhile. */
export type Held = {
  connection: StoredConnection | undefined
  /** Counts a call to the token endpoint. Stays counted whatever happens next: a crash, a rollback. */
  recordMint(): Promise<void>
  /** Takes effect when the work ends, all of it or nothing. */
  save(change: Change): Promise<void>
}

/** Where the tokens of one user live. */
export type TokenStore = {
  read(): Promise<StoredConnection | undefined>
  /** How long ago each call to the token endpoint was, newest first, for the last ten minutes. */
  mintAgesMs(): Promise<number[]>
  /** Runs `work` while no other process works on this connection; what it saved is undone when it throws. */
  exclusively<T>(work: (held: Held) => Promise<T>): Promise<T>
  /** Adds tool calls to the audit, where there is one. @throws when none of them was written */
  recordToolCalls?(batch: readonly (AuditedCall | LostCalls)[]): Promise<void>
  close(): Promise<void>
}

/** Zoho counts token calls in windows of ten minutes (docs/sdp-api.md 2.7). */
export const mintWindowMs = 10 * 60 * 1000

export const secretColumns = ['client_secret_sealed', 'grant_code_sealed', 'refresh_token_sealed'] as const

/** Where each secret lives: a sealed value opens in its own column and row only. */
export function contexts(userId: string) {
  return {
    client_secret_sealed: sealContext('oauth_tokens', 'client_secret_sealed', userId),
    grant_code_sealed: sealContext('oauth_tokens', 'grant_code_sealed', userId),
    grant_client_secret_sealed: sealContext('oauth_tokens', 'grant_client_secret_sealed', userId),
    refresh_token_sealed: sealContext('oauth_tokens', 'refresh_token_sealed', userId),
    access_token_sealed: sealContext('oauth_access_tokens', 'access_token_sealed', userId),
  }
}

export type SealedConnection = Record<(typeof secretColumns)[number] | 'access_token_sealed', string | null> & {
  client_id: string
  state: ConnectionState
  scopes: string[]
  reason_code: string | null
  reason: string | null
  grant_redirect_uri?: string | null
  grant_client_id?: string | null
  grant_client_secret_sealed?: string | null
  last_refreshed_at: Date | null
  life_ms: number | null
  age_ms: number | null
}

export function opened(row: SealedConnection, userId: string, key: SealingKey): StoredConnection {
  const context = contexts(userId)
  const secret = (column: (typeof secretColumns)[number]) => () =>
    row[column] === null ? undefined : open(key, row[column], context[column])
  const { access_token_sealed: access, life_ms: lifeMs, age_ms: ageMs } = row
  const { grant_redirect_uri: redirectUri, grant_client_id: clientId, grant_client_secret_sealed: clientSecret } = row
  return {
    clientId: row.client_id,
    state: row.state,
    scopes: row.scopes,
    reasonCode: row.reason_code,
    reason: row.reason,
    lastRefreshedAt: row.last_refreshed_at,
    clientSecret: secret('client_secret_sealed'),
    grantCode: secret('grant_code_sealed'),
    refreshToken: secret('refresh_token_sealed'),
    hasGrantCode: row.grant_code_sealed !== null,
    consent:
      row.grant_code_sealed !== null && redirectUri && clientId && clientSecret
        ? { redirectUri, clientId, clientSecret: () => open(key, clientSecret, context.grant_client_secret_sealed) }
        : undefined,
    hasRefreshToken: row.refresh_token_sealed !== null,
    accessToken:
      access === null || lifeMs === null || ageMs === null
        ? undefined
        : { token: () => open(key, access, context.access_token_sealed), lifeMs, ageMs },
  }
}

/** What a person who runs an instance alone gives it in the environment. */
export type GivenCredentials = {
  clientId: string
  clientSecret: string
  grantCode?: string | undefined
  refreshToken?: string | undefined
}

/**
 * What to take over of credentials that are given anew at every start. A grant code or refresh token that was taken
 * before is not taken again: it is used up, or the tokens it brought are newer.
 *
 * @param taken - {@link fingerprint}s of what was taken before
 */
export function planTakeOver(
  current: { clientId: string; clientSecret: string | undefined; state: ConnectionState } | undefined,
  taken: readonly string[],
  given: GivenCredentials,
): { startOver: boolean; grantCode?: string; refreshToken?: string; newSecret: boolean; state: ConnectionState } {
  const startOver = current?.clientId !== given.clientId
  const isNew = (value: string | undefined) => value !== undefined && !taken.includes(fingerprint(value))
  const grantCode = isNew(given.grantCode) ? given.grantCode : undefined
  const refreshToken = isNew(given.refreshToken) ? given.refreshToken : undefined
  const newSecret = startOver || current.clientSecret !== given.clientSecret
  // whatever was wrong before, what is new deserves one try
  const staysConnected = !startOver && current.state === 'connected' && refreshToken === undefined
  const parked = !startOver && !newSecret && grantCode === undefined && refreshToken === undefined
  const state = staysConnected ? 'connected' : parked ? current.state : 'needs-authorization'
  return {
    startOver,
    newSecret,
    state,
    ...(grantCode !== undefined && { grantCode }),
    ...(refreshToken !== undefined && { refreshToken }),
  }
}

export function fingerprint(secret: string): string {
  return createHash('sha256').update(secret).digest('hex')
}
