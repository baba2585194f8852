import { createHash, randomBytes } from 'node:crypto'
import type { AccessToken, GrantCode, OauthClient, Person, RefreshToken } from '../state.ts'
import type { World } from '../world.ts'
import { everyScope, isKnownScope, splitScopes } from './scopes.ts'

/** An error of Zoho Accounts: `{"error": ...}`, HTTP 200 unless said otherwise (docs/sdp-api.md 2.8). */
export class AccountsError extends Error {
  readonly code: string
  readonly description: string | undefined
  readonly httpStatus: number

  constructor(code: string, description?: string, httpStatus = 200) {
    super(description ?? code)
    this.code = code
    this.description = description
    this.httpStatus = httpStatus
  }

  get body() {
    return this.description
      ? { error: this.code, error_description: this.description, status: 'failure' }
      : { error: this.code }
  }
}

export type TokenParameters = Record<string, string | undefined>

export interface TokenAnswer {
  access_token: string
  refresh_token?: string
  scope: string
  api_domain: string
  token_type: 'Bearer'
  expires_in: number
}

export interface IssuedGrantCode {
  code: string
  clientId: string
  clientSecret: string
  expiresAt: number
  scopes: string[]
}

const tenMinutesMs = 10 * 60 * 1000
const apiDomain = 'https://www.zohoapis.com'

function newToken(): string {
  return `1000.${randomBytes(16).toString('hex')}.${randomBytes(16).toString('hex')}`
}

/** The throttle answer; status 200 or 400 by switch. */
export function throttled(world: World): AccountsError {
  return new AccountsError(
    'Access Denied',
    'You have made too many requests continuously. Please try again after some time.',
    world.faults.switches.throttleStatus,
  )
}

export function personOf(world: World, user: string): Person | undefined {
  return world.state.people.find(person => person.username === user || person.email === user)
}

export function clientOf(world: World, clientId: string | undefined): OauthClient | undefined {
  return world.state.clients.find(client => client.clientId === clientId)
}

export function selfClientOf(world: World, user: string): OauthClient | undefined {
  return world.state.clients.find(client => client.kind === 'self' && client.owner === user)
}

/** Which person stands behind a token call, for the log and for faults; null when nothing tells. */
export function userBehind(world: World, parameters: TokenParameters): string | null {
  const { state } = world
  return (
    state.refreshTokens.find(one => one.token === parameters.refresh_token)?.user ??
    state.grantCodes.find(one => one.code === parameters.code)?.user ??
    clientOf(world, parameters.client_id)?.owner ??
    null
  )
}

/**
 * Makes a one-time code, as "Generate Code" in the console (self client) or the consent page (server client) does.
 *
 * @throws AccountsError `invalid_client`, `invalid_scope`, `invalid_user`, or the throttle after ten codes in ten minutes
 * @see docs/sdp-api.md 2.2, 2.7
 */
export function createGrantCode(
  world: World,
  wanted: {
    user: string
    scopes?: string[]
    clientId?: string
    expiresInSeconds?: number
    redirectUri?: string
    codeChallenge?: string
    givesRefreshToken?: boolean
  },
): IssuedGrantCode {
  const { state, faults } = world
  const now = world.now()
  const person = personOf(world, wanted.user)
  if (!person) throw new AccountsError('invalid_user', `There is no user "${wanted.user}".`)
  const client = wanted.clientId ? clientOf(world, wanted.clientId) : selfClientOf(world, person.username)
  if (!client) throw new AccountsError('invalid_client', `There is no client for "${wanted.user}".`)
  const scopes = wanted.scopes ?? everyScope
  const unknown = scopes.filter(scope => !isKnownScope(scope))
  if (unknown.length > 0) throw new AccountsError('invalid_scope', `Unknown scope: ${unknown.join(', ')}.`)

  state.grantCodes = state.grantCodes.filter(one => one.createdAt > now - tenMinutesMs || one.expiresAt > now)
  const recent = state.grantCodes.filter(
    one => one.clientId === client.clientId && one.createdAt > now - tenMinutesMs,
  ).length
  if (recent >= faults.switches.grantCodesPer10Minutes) throw throttled(world)

  const code: GrantCode = {
    code: newToken(),
    clientId: client.clientId,
    user: person.username,
    scopes,
    createdAt: now,
    expiresAt: now + (wanted.expiresInSeconds ?? 600) * 1000,
    used: false,
    givesRefreshToken: wanted.givesRefreshToken ?? true,
    redirectUri: wanted.redirectUri,
    codeChallenge: wanted.codeChallenge,
  }
  state.grantCodes.push(code)
  world.changed()
  return {
    code: code.code,
    clientId: client.clientId,
    clientSecret: client.clientSecret,
    expiresAt: code.expiresAt,
    scopes,
  }
}

/** Checks id and secret; a client of another data center is as unknown as a made-up one (2.8). */
function authenticateClient(world: World, { client_id, client_secret }: TokenParameters): OauthClient {
  const client = clientOf(world, client_id)
  if (!client || client.dataCenter !== world.state.dataCenter) throw new AccountsError('invalid_client')
  if (client.clientSecret !== client_secret) throw new AccountsError('invalid_client_secret')
  return client
}

/** Adds an access token and drops the oldest ones above the limit of 2.7. */
function mint(
  world: World,
  granted: { client: OauthClient; user: string; scopes: string[]; refreshToken?: string },
): AccessToken {
  const { state, faults } = world
  const now = world.now()
  const token: AccessToken = {
    token: newToken(),
    clientId: granted.client.clientId,
    user: granted.user,
    scopes: granted.scopes,
    createdAt: now,
    expiresAt: now + faults.switches.accessTokenSeconds * 1000,
    refreshToken: granted.refreshToken,
  }
  const isSibling = (one: AccessToken) =>
    one.refreshToken === token.refreshToken && one.clientId === token.clientId && one.user === token.user
  state.accessTokens = state.accessTokens.filter(one => one.expiresAt > now)
  const siblings = state.accessTokens.filter(isSibling)
  const surplus = siblings.slice(0, Math.max(0, siblings.length + 1 - faults.switches.activeAccessTokens))
  state.accessTokens = state.accessTokens.filter(one => !surplus.includes(one))
  state.accessTokens.push(token)
  world.changed()
  return token
}

function answer(world: World, access: AccessToken, refreshToken?: string): TokenAnswer {
  return {
    access_token: access.token,
    ...(refreshToken ? { refresh_token: refreshToken } : {}),
    scope: access.scopes.join(' '),
    api_domain: apiDomain,
    token_type: 'Bearer',
    expires_in: Math.round((access.expiresAt - world.now()) / 1000),
  }
}

function dropRefreshToken(world: World, token: string): void {
  const { state } = world
  state.refreshTokens = state.refreshTokens.filter(one => one.token !== token)
  state.accessTokens = state.accessTokens.filter(one => one.refreshToken !== token)
  world.changed()
}

function exchangeCode(world: World, parameters: TokenParameters): TokenAnswer {
  const { state, faults } = world
  const now = world.now()
  const client = authenticateClient(world, parameters)
  const grant = state.grantCodes.find(one => one.code === parameters.code)
  if (!grant || grant.used || grant.expiresAt <= now || grant.clientId !== client.clientId)
    throw new AccountsError('invalid_code')
  if (client.kind === 'server' && grant.redirectUri !== parameters.redirect_uri)
    throw new AccountsError('invalid_redirect_uri')
  if (grant.codeChallenge) {
    const proof = createHash('sha256')
      .update(parameters.code_verifier ?? '')
      .digest('base64url')
    if (proof !== grant.codeChallenge) throw new AccountsError('invalid_code')
  }

  grant.used = true
  if (!grant.givesRefreshToken) return answer(world, mint(world, { client, user: grant.user, scopes: grant.scopes }))

  const mine = state.refreshTokens.filter(one => one.user === grant.user && one.clientId === client.clientId)
  const recent = mine.filter(one => one.createdAt > now - tenMinutesMs).length
  if (recent >= faults.switches.newRefreshTokensPer10Minutes) throw throttled(world)
  const surplus = mine.slice(0, Math.max(0, mine.length + 1 - faults.switches.refreshTokensPerUserAndClient))
  for (const old of surplus) dropRefreshToken(world, old.token)

  const refresh: RefreshToken = {
    token: newToken(),
    clientId: client.clientId,
    user: grant.user,
    scopes: grant.scopes,
    createdAt: now,
    mintedAt: [],
  }
  state.refreshTokens.push(refresh)
  const access = mint(world, { client, user: grant.user, scopes: grant.scopes, refreshToken: refresh.token })
  return answer(world, access, refresh.token)
}

function refresh(world: World, parameters: TokenParameters): TokenAnswer {
  const now = world.now()
  const client = authenticateClient(world, parameters)
  const known = world.state.refreshTokens.find(one => one.token === parameters.refresh_token)
  if (!known || known.clientId !== client.clientId) throw new AccountsError('invalid_code')
  known.mintedAt = known.mintedAt.filter(at => at > now - tenMinutesMs)
  if (known.mintedAt.length >= world.faults.switches.mintsPer10Minutes) throw throttled(world)
  known.mintedAt.push(now)
  return answer(world, mint(world, { client, user: known.user, scopes: known.scopes, refreshToken: known.token }))
}

function clientCredentials(world: World, parameters: TokenParameters): TokenAnswer {
  const client = authenticateClient(world, parameters)
  if (client.kind !== 'self' || !client.owner) throw new AccountsError('unauthorized_client')
  const scopes = splitScopes(parameters.scope ?? '')
  if (scopes.length === 0 || !scopes.every(isKnownScope)) throw new AccountsError('invalid_scope')
  return answer(world, mint(world, { client, user: client.owner, scopes }))
}

/**
 * The token endpoint's three grants.
 * @throws AccountsError with the codes of 2.8
 * @see docs/sdp-api.md 2.2, 2.3, 2.5
 */
export function grantToken(world: World, parameters: TokenParameters): TokenAnswer {
  switch (parameters.grant_type) {
    case 'authorization_code':
      return exchangeCode(world, parameters)
    case 'refresh_token':
      return refresh(world, parameters)
    case 'client_credentials':
      return clientCredentials(world, parameters)
    default:
      throw new AccountsError('unsupported_grant_type')
  }
}

/** Revokes a refresh token with its access tokens, or one access token (2.6). */
export function revokeToken(world: World, token: string | undefined): void {
  const { state } = world
  const known = [...state.refreshTokens, ...state.accessTokens].some(one => one.token === token)
  if (!known || !token) throw new AccountsError('invalid_token', 'The token is unknown or was revoked before.', 400)
  dropRefreshToken(world, token)
  state.accessTokens = state.accessTokens.filter(one => one.token !== token)
}

/** The living access token with this text. */
export function accessTokenOf(world: World, text: string | undefined): AccessToken | undefined {
  const now = world.now()
  return world.state.accessTokens.find(one => one.token === text && one.expiresAt > now)
}

/** Lets every access token (of one user) expire now. Returns how many. */
export function expireAccessTokens(world: World, user?: string): number {
  const { state } = world
  const before = state.accessTokens.length
  state.accessTokens = state.accessTokens.filter(one => user !== undefined && one.user !== user)
  world.changed()
  return before - state.accessTokens.length
}

/** Revokes every refresh token (of one user), as an administrator or the user may at Zoho. Returns how many. */
export function revokeRefreshTokens(world: World, user?: string): number {
  const doomed = world.state.refreshTokens.filter(one => user === undefined || one.user === user)
  for (const one of doomed) dropRefreshToken(world, one.token)
  return doomed.length
}
