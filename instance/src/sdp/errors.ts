/**
 * What an SDP call can end in.
 *
 * - `not-found`     404 / 4007: no such record, or no such path on this site
 * - `denied`        403 / 4002, 4009, 4014, 7001: this person may not, or the field is not editable
 * - `missing-scope` 401 with a fresh token: the grant lacks a scope, or the endpoint refuses OAuth (docs/sdp-api.md 4.4)
 * - `mandatory`     4012: fields are missing
 * - `invalid-value` 4001, 4016, 4021 and other 400: a value the site does not take
 * - `conflict`      4005, 4008: referenced elsewhere, or not unique
 * - `limited`       429 / 4015
 * - `warning-3000`  HTTP 200 with 3000: not done, or done in part (docs/sdp-api.md 4.1)
 * - `down`          not reachable or 5xx; a write was not carried out
 * - `drift`         an answer we do not understand: login page, redirect, no JSON
 * - `indeterminate` a write whose answer never came: it may have been carried out
 * - `cancelled`     the caller gave up
 */
export type SdpErrorKind =
  | 'not-found'
  | 'denied'
  | 'missing-scope'
  | 'mandatory'
  | 'invalid-value'
  | 'conflict'
  | 'limited'
  | 'warning-3000'
  | 'down'
  | 'drift'
  | 'indeterminate'
  | 'cancelled'

export type SdpErrorDetails = {
  /** method and path template, without values */
  call?: string
  httpStatus?: number
  /** SDP's own code, the inner one where there is one */
  statusCode?: number
  fields?: string[]
  /** close matches or all values, when we know them */
  allowed?: string[]
  /** what SDP said, quoted and cut short */
  said?: string
  retryAfterSeconds?: number
  /** what to do next, when the place that throws knows better than the kind does */
  nextStep?: string
  cause?: unknown
}

export class SdpError extends Error {
  readonly kind: SdpErrorKind
  readonly details: SdpErrorDetails

  constructor(kind: SdpErrorKind, message: string, details: SdpErrorDetails = {}) {
    super(message, { cause: details.cause })
    this.name = 'SdpError'
    this.kind = kind
    this.details = details
  }

  get fields(): string[] {
    return this.details.fields ?? []
  }
}

export function isSdpError(error: unknown, ...kinds: SdpErrorKind[]): error is SdpError {
  return error instanceof SdpError && (kinds.length === 0 || kinds.includes(error.kind))
}
