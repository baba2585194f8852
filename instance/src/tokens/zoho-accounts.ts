import type { HttpAnswer, HttpCall, HttpClient } from '../http-client.ts'

/**
 * What went wrong at the accounts server.
 * - `grant-code-rejected`, `client-rejected`, `refresh-token-rejected`, `account-mismatch`: permanent, a person must act
 * - `throttled`, `unavailable`: transient, the same call may work later
 */
export type AccountsErrorKind =
  | 'grant-code-rejected'
  | 'client-rejected'
  | 'refresh-token-rejected'
  | 'account-mismatch'
  | 'throttled'
  | 'unavailable'

/** `message` is Zoho's reason as a sentence, `nextStep` is what a person does about it; neither holds a secret. */
export class AccountsError extends Error {
  readonly kind: AccountsErrorKind
  readonly nextStep: string
  readonly retryAfterSeconds?: number

  constructor(
    kind: AccountsErrorKind,
    message: string,
    nextStep: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(message, { cause: options.cause })
    this.name = 'AccountsError'
    this.kind = kind
    this.nextStep = nextStep
    this.retryAfterSeconds = options.retryAfterSeconds
  }

  get permanent(): boolean {
    return this.kind !== 'throttled' && this.kind !== 'unavailable'
  }
}

export type TokenGrant = {
  accessToken: string
  expiresInSeconds: number
  /** a refresh normally brings none: the old one stays in force (docs/sdp-api.md 2.3) */
  refreshToken?: string
  /** not always told */
  scopes?: string[]
}

export type OAuthClient = { clientId: string; clientSecret: string }

export type ZohoAccounts = {
  /** @param redirectUri - where the consent page sent the code; a self client's code has none */
  exchange(client: OAuthClient, grantCode: string, redirectUri?: string): Promise<TokenGrant & { refreshToken: string }>
  refresh(client: OAuthClient, refreshToken: string): Promise<TokenGrant>
  /** Revoking a refresh token kills its access tokens. A token that is already dead counts as revoked. */
  revoke(refreshToken: string): Promise<void>
  /** E-mail address of the account behind a token; undefined when Zoho does not tell (docs/sdp-api.md 2.6). */
  emailOf(accessToken: string): Promise<string | undefined>
}

export type ZohoAccountsOptions = {
  /** origin of the data center's accounts server */
  accountsUrl: string
  /** developer console of the same data center, named in next steps */
  consoleUrl: string
  http: HttpClient
  timeoutMs?: number
}

const replyLimitBytes = 64 * 1024
/** Zoho names no time ("try again after some time"); its windows are ten minutes long. */
const throttledForSeconds = 120

/**
 * The three calls of Zoho Accounts an instance makes. Errors often come with HTTP status 200, so the body decides.
 * @see docs/sdp-api.md 2.2, 2.3, 2.6 and 2.8
 */
export function createZohoAccounts(options: ZohoAccountsOptions): ZohoAccounts {
  const { accountsUrl, consoleUrl, timeoutMs = 10_000 } = options
  const host = new URL(accountsUrl).host

  const call = (path: string, rest: Pick<HttpCall, 'method' | 'headers' | 'body'>) =>
    options.http({ url: new URL(path, accountsUrl).href, timeoutMs, maxBytes: replyLimitBytes, ...rest })

  async function post(path: string, form: Record<string, string>): Promise<Record<string, unknown>> {
    let answer: HttpAnswer
    try {
      answer = await call(path, {
        method: 'POST',
        headers: { 'content-type': 'application/x-www-form-urlencoded', accept: 'application/json' },
        body: new URLSearchParams(form).toString(),
      })
    } catch (cause) {
      throw new AccountsError(
        'unavailable',
        `The accounts server ${host} could not be reached: ${networkReason(cause, timeoutMs)}.`,
        `Check that this machine reaches https://${host} (proxy, firewall, DNS), then try again; nothing was lost.`,
        { cause, retryAfterSeconds: 30 },
      )
    }
    const { status } = answer
    if (status >= 300 && status < 400)
      throw new AccountsError(
        'unavailable',
        `The accounts server ${host} answered with a redirect, which is not followed.`,
        'Check the accounts URL: it must be the https origin of the data center the Zoho client was made in.',
      )
    const body = parseObject(answer.bytes.toString('utf8'))
    const retryAfter = Number(answer.header('retry-after'))
    if (status === 429 || isThrottle(body))
      throw new AccountsError(
        'throttled',
        `Zoho is throttling token calls of this client${quote(body)}.`,
        'Wait some minutes; the next call tries again by itself. Zoho allows 10 token calls in 10 minutes.',
        { retryAfterSeconds: retryAfter > 0 ? Math.min(retryAfter, 900) : throttledForSeconds },
      )
    if (status >= 500 || !body)
      throw new AccountsError(
        'unavailable',
        `The accounts server ${host} answered with status ${status}${body ? quote(body) : ' and no JSON'}.`,
        'Try again in a minute. If it stays so, check the accounts URL of the data center.',
        { retryAfterSeconds: 30 },
      )
    return body
  }

  /** @param byConsent - of a code that came from the consent page */
  function refusal(
    body: Record<string, unknown>,
    rejected: 'grant-code-rejected' | 'refresh-token-rejected',
    byConsent: boolean,
  ) {
    const error = String(body.error ?? '').toLowerCase()
    switch (error) {
      case 'invalid_client':
        return new AccountsError(
          'client-rejected',
          `Zoho does not know this client id${quote(body)}.`,
          `Copy the client id and secret again from ${consoleUrl} (Self Client, Client Secret). The client must belong to this data center.`,
        )
      case 'invalid_client_secret':
      case 'unauthorized_client':
        return new AccountsError(
          'client-rejected',
          `Zoho refused the client secret${quote(body)}.`,
          `Copy the client secret again from ${consoleUrl} (Self Client, Client Secret), then send it with a new grant code.`,
        )
      case 'invalid_redirect_uri':
      case 'redirect_uri_mismatch':
        if (byConsent)
          return new AccountsError(
            rejected,
            `Zoho does not accept the address it sent the code to${quote(body)}.`,
            `The administrator compares the redirect URI of the Zoho client at ${consoleUrl} with SDP_PUBLIC_URL.`,
          )
        if (rejected === 'grant-code-rejected')
          return new AccountsError(
            rejected,
            `Zoho expects a redirect address for this client${quote(body)}.`,
            `Make the code with a client of type Self Client at ${consoleUrl}.`,
          )
        break
      case 'invalid_code':
      case 'invalid_grant':
        if (byConsent)
          return new AccountsError(
            rejected,
            `Zoho refused the code of the consent page${quote(body)}: it is too old, or was used before.`,
            'Ask the administrator for a new connect link and go through it without a long pause.',
          )
        return rejected === 'grant-code-rejected'
          ? new AccountsError(
              rejected,
              `Zoho refused the grant code${quote(body)}: it has expired, was used before, or belongs to another client or data center.`,
              `Make a new code at ${consoleUrl} (Self Client, Generate Code) and send it before its time (3 to 10 minutes) is over.`,
            )
          : new AccountsError(
              rejected,
              `Zoho refused the refresh token${quote(body)}: it was revoked, or belongs to another client or data center.`,
              `Authorize again: make a new code at ${consoleUrl} (Self Client, Generate Code) and send it within its time.`,
            )
    }
    // an error we do not know must not cost anybody their connection
    return new AccountsError(
      'unavailable',
      `The accounts server ${host} refused the token call${quote(body)}.`,
      'Try again in a minute. If it stays so, make a new grant code and authorize again.',
      { retryAfterSeconds: 60 },
    )
  }

  async function token(
    form: Record<string, string>,
    rejected: 'grant-code-rejected' | 'refresh-token-rejected',
  ): Promise<TokenGrant> {
    const body = await post('/oauth/v2/token', form)
    if (!isToken(body.access_token)) throw refusal(body, rejected, 'redirect_uri' in form)
    return {
      accessToken: body.access_token,
      expiresInSeconds: lifeSeconds(body),
      ...(isToken(body.refresh_token) && { refreshToken: body.refresh_token }),
      ...(typeof body.scope === 'string' && { scopes: body.scope.split(/[\s,]+/).filter(Boolean) }),
    }
  }

  return {
    async exchange({ clientId, clientSecret }, grantCode, redirectUri) {
      const grant = await token(
        {
          grant_type: 'authorization_code',
          client_id: clientId,
          client_secret: clientSecret,
          code: grantCode,
          ...(redirectUri !== undefined && { redirect_uri: redirectUri }),
        },
        'grant-code-rejected',
      )
      if (grant.refreshToken === undefined)
        throw new AccountsError(
          'grant-code-rejected',
          'Zoho accepted the grant code but gave no refresh token.',
          `Make the code with a client of type Self Client at ${consoleUrl}; other clients must ask for offline access with consent.`,
        )
      return { ...grant, refreshToken: grant.refreshToken }
    },

    refresh({ clientId, clientSecret }, refreshToken) {
      return token(
        {
          grant_type: 'refresh_token',
          client_id: clientId,
          client_secret: clientSecret,
          refresh_token: refreshToken,
        },
        'refresh-token-rejected',
      )
    },

    async emailOf(accessToken) {
      try {
        const answer = await call('/oauth/user/info', {
          method: 'GET',
          headers: { authorization: `Zoho-oauthtoken ${accessToken}`, accept: 'application/json' },
        })
        const email = parseObject(answer.bytes.toString('utf8'))?.Email
        return answer.status === 200 && typeof email === 'string' && email.includes('@') ? email : undefined
      } catch {
        return undefined
      }
    },

    async revoke(refreshToken) {
      const body = await post('/oauth/v2/token/revoke', { token: refreshToken })
      if (body.status === 'success' || body.error === undefined) return
      if (['invalid_code', 'invalid_token', 'invalid_grant'].includes(String(body.error).toLowerCase())) return
      throw new AccountsError(
        'unavailable',
        `Zoho did not revoke the token${quote(body)}.`,
        `Try again in a minute, or remove the client at ${consoleUrl}, which revokes its tokens.`,
      )
    },
  }
}

function isThrottle(body: Record<string, unknown> | undefined): boolean {
  return (
    /^access[ _]denied$/i.test(String(body?.error ?? '')) ||
    /too many requests/i.test(String(body?.error_description ?? ''))
  )
}

function isToken(value: unknown): value is string {
  return typeof value === 'string' && /^[\x21-\x7e]{1,4096}$/.test(value)
}

/** Old Zoho services told milliseconds in `expires_in` and seconds in `expires_in_sec`. */
function lifeSeconds(body: Record<string, unknown>): number {
  const told = Number(body.expires_in_sec ?? body.expires_in)
  if (!Number.isFinite(told) || told <= 0) return 3600
  return told > 86_400 ? told / 1000 : told
}

/** Zoho's own words for a sentence, without anything that could be a code, a token or a secret. */
function quote(body: Record<string, unknown> | undefined): string {
  const words = [body?.error, body?.error_description]
    .filter(part => typeof part === 'string')
    .map(part =>
      part
        .replace(/1000\.[\w.-]+|[0-9a-f]{24,}/gi, '[redacted]')
        .replace(/[^\x20-\x7e]+/g, ' ')
        .slice(0, 160),
    )
  return words.length > 0 ? ` ("${words.join(': ')}")` : ''
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined
  } catch {
    return undefined
  }
}

function networkReason(error: unknown, timeoutMs: number): string {
  if (error instanceof Error && error.name === 'TimeoutError') return `no answer within ${timeoutMs / 1000} s`
  const code = (error as { code?: unknown } | undefined)?.code
  // says by itself what to do
  if (code === 'ERR_UPSTREAM_REFUSED') return (error as Error).message
  return typeof code === 'string' ? code : error instanceof Error ? error.message.slice(0, 120) : 'network error'
}
