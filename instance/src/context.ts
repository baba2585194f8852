import type { Logger } from 'pino'
import type { ConnectionState, SdpSettings, Toolset } from './contract.ts'
import type { HttpClient } from './http-client.ts'

/** Gives Zoho access tokens; implemented by tokens/keeper.ts. */
export interface TokenKeeper {
  /**
   * A token with more than a minute of life left; refreshed when needed.
   * @param signal - aborts this caller's wait; a refresh that other callers share goes on
   * @throws AuthorizationError the person must act, or the accounts server cannot be reached
   */
  accessToken(signal?: AbortSignal): Promise<string>
  /** A token the SDP API refused with 401: forces at most one refresh. */
  invalidate(token: string): Promise<void>
  status(): Promise<ConnectionStatus>
}

export type ConnectionStatus = {
  state: ConnectionState
  /** granted Zoho scopes, as Zoho spelt them */
  scopes: string[]
  accessTokenExpiresAt: Date | null
  lastRefreshedAt: Date | null
  /** access tokens minted in the last ten minutes; Zoho allows 10 (docs/sdp-api.md 2.7) */
  mintsInWindow: number
  /** why it is not `connected`; a sentence for the person */
  reason: string | null
}

export type AuthorizationErrorKind = 'needs-authorization' | 'needs-reauthorization' | 'unavailable'

/** No access token can be had. Carries the exact next step as text, because only a person can take it. */
export class AuthorizationError extends Error {
  readonly kind: AuthorizationErrorKind
  readonly nextStep: string
  readonly retryAfterSeconds?: number

  constructor(
    kind: AuthorizationErrorKind,
    message: string,
    nextStep: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(message, { cause: options.cause })
    this.name = 'AuthorizationError'
    this.kind = kind
    this.nextStep = nextStep
    this.retryAfterSeconds = options.retryAfterSeconds
  }
}

/** Everything the MCP side of one user's instance works with; built once by main.ts. */
export type InstanceContext = {
  user: { id: string; username: string; displayName: string; email: string | null }
  sdp: SdpSettings
  toolsets: Toolset[]
  readOnly: boolean
  /** whether the administrator can make connect links */
  consentLinks?: boolean
  tokens: TokenKeeper
  /** over connections that are kept */
  http: HttpClient
  log: Logger
  /** milliseconds since 1970 */
  now: () => number
  version: string
}
