/**
 * The one catalogue of problems: code -> HTTP status and title (RFC 9457). Each code has a page of the same
 * name in docs/errors, which the `type` of a problem points to.
 */
export const catalogue = {
  'request-invalid': [400, 'The request does not fit the API'],
  'body-malformed': [400, 'The body is not valid JSON'],
  'body-missing': [400, 'The request needs a JSON body'],
  'body-too-large': [413, 'The body is too large'],
  'content-type-unsupported': [415, 'The content type is not supported'],
  'not-found': [404, 'There is nothing here'],
  'method-not-allowed': [405, 'This path does not support the method'],
  'admin-token-required': [401, 'An admin token is required'],
  'admin-role-required': [403, 'The role does not allow this'],
  'admin-issuer-unavailable': [503, 'The identity provider does not answer'],
  'too-many-attempts': [429, 'Too many failed attempts'],
  'address-refused': [403, 'The network address is not allowed here'],
  'host-refused': [403, 'The Host header names another server'],
  'origin-refused': [403, 'Web pages of this origin are not allowed here'],
  'rate-limit-exceeded': [429, 'Too many requests'],
  'concurrency-limit-exceeded': [429, 'Too many requests at once'],
  'api-key-required': [401, 'A valid API key is required'],
  'client-credentials-unknown': [401, 'The client id and secret belong to nobody here'],
  'client-settings-refused': [403, 'The requested site is not this user’s'],
  'user-not-found': [404, 'There is no such user'],
  'user-exists': [409, 'The username is taken'],
  'user-suspended': [403, 'The user is suspended'],
  'user-removal-pending': [503, 'The user is being removed'],
  'api-key-not-found': [404, 'There is no such API key'],
  'api-key-rotated': [409, 'The API key was rotated already'],
  'sdp-settings-missing': [422, 'Settings of ServiceDesk Plus are missing'],
  'sdp-settings-refused': [422, 'A setting of ServiceDesk Plus is not allowed'],
  'portal-unknown': [422, 'ServiceDesk Plus does not know the portal'],
  'grant-code-rejected': [422, 'Zoho rejected the grant code'],
  'client-rejected': [422, 'Zoho rejected the OAuth client'],
  'refresh-token-rejected': [422, 'Zoho rejected the refresh token'],
  'account-mismatch': [422, 'The Zoho account is somebody else’s'],
  'consent-not-configured': [422, 'Connect links are not configured'],
  'consent-refused': [422, 'Zoho was not allowed to connect'],
  'connect-link-invalid': [410, 'The connect link is not valid'],
  'data-center-wrong': [422, 'The Zoho account lives in another data center'],
  'client-missing': [422, 'The user has no OAuth client'],
  'accounts-unavailable': [503, 'Zoho Accounts did not answer'],
  'port-range-exhausted': [503, 'No port is free for another instance'],
  'network-range-exhausted': [503, 'No network is free for another instance'],
  'capacity-exhausted': [503, 'The host has no room for another instance'],
  'engine-unreachable': [503, 'The Docker engine does not answer'],
  'image-missing': [503, 'The instance image is missing'],
  'disk-full': [503, 'The disk of the Docker host is full'],
  'instance-failed': [503, 'The instance could not be started'],
  'instance-starting': [503, 'The instance is not ready yet'],
  'instance-ended': [502, 'The instance ended while it worked'],
  'instance-unreachable': [503, 'The instance does not answer'],
  'instance-not-found': [404, 'The user has no instance yet'],
  'rollout-active': [409, 'Another rollout is under way'],
  'rollout-image-missing': [422, 'The engine does not have that image'],
  'rollout-canary-missing': [422, 'Nobody’s instance can prove the image'],
  'rollout-not-found': [404, 'There is no such rollout'],
  'rollout-finished': [409, 'The rollout is over'],
  'database-unavailable': [503, 'The database does not answer'],
  'database-busy': [503, 'The database is held up by a lock'],
  'control-plane-stopping': [503, 'The control plane is being stopped'],
  'key-unknown': [500, 'A stored secret was sealed with a key that is not configured'],
  internal: [500, 'Something went wrong here'],
} as const satisfies Record<string, readonly [status: number, title: string]>

export type ErrorCode = keyof typeof catalogue

/** One wrong place of a request body, query or path. */
export type InvalidPart = {
  /** JSON pointer into the body (RFC 6901), or `#/query/name`, `#/params/name` */
  pointer: string
  detail: string
}

/**
 * A failure with two messages: `publicDetail` is a sentence for the caller that says what to do next; `cause` is
 * for the log only.
 */
export class AppError extends Error {
  readonly code: ErrorCode
  readonly retryAfterSeconds: number | undefined
  readonly invalid: readonly InvalidPart[] | undefined

  constructor(
    code: ErrorCode,
    publicDetail: string,
    options: { cause?: unknown; retryAfterSeconds?: number; invalid?: InvalidPart[] } = {},
  ) {
    super(publicDetail, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'AppError'
    this.code = code
    this.retryAfterSeconds = options.retryAfterSeconds ?? (this.status === 503 ? 5 : undefined)
    this.invalid = options.invalid
  }

  get status(): number {
    return catalogue[this.code][0]
  }

  get title(): string {
    return catalogue[this.code][1]
  }
}
