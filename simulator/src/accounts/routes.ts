import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { exchangeOf } from '../exchange.ts'
import type { World } from '../world.ts'
import {
  AccountsError,
  accessTokenOf,
  clientOf,
  createGrantCode,
  grantToken,
  personOf,
  revokeToken,
  type TokenParameters,
  userBehind,
} from './accounts.ts'
import { consentErrorPage, consentPage } from './consent-page.ts'
import { isKnownScope, splitScopes } from './scopes.ts'

/** Parameters may come in the form body or in the query string (docs/sdp-api.md 2.2); the body wins. */
export function tokenParameters(request: FastifyRequest): TokenParameters {
  const parameters = new URLSearchParams(request.url.split('?')[1] ?? '')
  const isForm = (request.headers['content-type'] ?? '').includes('application/x-www-form-urlencoded')
  if (isForm && Buffer.isBuffer(request.body)) {
    for (const [name, value] of new URLSearchParams(request.body.toString('utf8'))) parameters.set(name, value)
  }
  return Object.fromEntries(parameters)
}

/** Zoho Accounts: token, consent, revoke, who am I (docs/sdp-api.md 2). */
export function accountsRoutes(app: FastifyInstance, world: World): void {
  app.addHook('preHandler', async request => {
    const parameters = tokenParameters(request)
    const exchange = exchangeOf(request)
    exchange.user ??= userBehind(world, parameters)
    if (parameters.grant_type) exchange.grantType = parameters.grant_type
  })
  app.setErrorHandler(async (error, _request, reply) => {
    if (!(error instanceof AccountsError)) throw error
    return reply.status(error.httpStatus).send(error.body)
  })

  app.post('/oauth/v2/token', async request => grantToken(world, tokenParameters(request)))

  app.post('/oauth/v2/token/revoke', async request => {
    revokeToken(world, tokenParameters(request).token)
    return { status: 'success' }
  })

  app.get('/oauth/user/info', async (request, reply) => {
    const text = /^(?:Zoho-oauthtoken|Bearer) (\S+)$/i.exec(request.headers.authorization ?? '')?.[1]
    const token = accessTokenOf(world, text)
    const person = token && personOf(world, token.user)
    if (!person) return reply.status(401).send({ response: 'error', message: 'INVALID_OAUTHTOKEN' })
    exchangeOf(request).user = person.username
    if (!token.scopes.some(scope => /^AaaServer\.profile\./i.test(scope)))
      return reply.status(401).send({ response: 'error', message: 'INVALID_OAUTHSCOPE' })
    return {
      ZUID: Number(person.zuid),
      Email: person.email,
      Display_Name: person.name,
      First_Name: person.firstName,
      Last_Name: person.lastName,
    }
  })

  app.get('/oauth/v2/auth', async (request, reply) => showConsent(world, tokenParameters(request), reply))
  app.post('/oauth/v2/auth', async (request, reply) => decideConsent(world, tokenParameters(request), reply))
}

/** The client and redirect URI of a consent request, or why they cannot be redirected to. */
function consentTarget(world: World, parameters: TokenParameters) {
  const client = clientOf(world, parameters.client_id)
  if (client?.kind !== 'server' || client.dataCenter !== world.state.dataCenter) return { problem: 'Invalid Client Id' }
  const redirectUri = parameters.redirect_uri
  if (!redirectUri || !client.redirectUris.includes(redirectUri)) return { problem: 'Invalid Redirect Uri' }
  return { client, redirectUri }
}

function redirectWith(reply: FastifyReply, redirectUri: string, answer: Record<string, string | undefined>) {
  const url = new URL(redirectUri)
  for (const [name, value] of Object.entries(answer)) if (value !== undefined) url.searchParams.set(name, value)
  return reply.redirect(url.href, 302)
}

async function showConsent(world: World, parameters: TokenParameters, reply: FastifyReply) {
  const { client, redirectUri, problem } = consentTarget(world, parameters)
  if (problem || !client) return reply.status(400).type('text/html').send(consentErrorPage(problem))
  const { state } = parameters
  if (parameters.response_type !== 'code')
    return redirectWith(reply, redirectUri, { error: 'response_type_not_supported', state })
  const scopes = splitScopes(parameters.scope ?? '')
  if (scopes.length === 0 || !scopes.every(isKnownScope))
    return redirectWith(reply, redirectUri, { error: 'invalid_scope', state })
  const kept = Object.fromEntries(
    Object.entries(parameters).filter((pair): pair is [string, string] => pair[1] != null),
  )
  return reply.type('text/html').send(consentPage(client, world.state.people, scopes, kept))
}

/** @see docs/sdp-api.md 2.4 for the callback's parameters and when a refresh token comes */
async function decideConsent(world: World, parameters: TokenParameters, reply: FastifyReply) {
  const { client, redirectUri, problem } = consentTarget(world, parameters)
  if (problem || !client) return reply.status(400).type('text/html').send(consentErrorPage(problem))
  const { state, user } = parameters
  if (parameters.decision !== 'allow') return redirectWith(reply, redirectUri, { error: 'access_denied', state })
  const authorizedBefore = world.state.refreshTokens.some(one => one.user === user && one.clientId === client.clientId)
  const { code } = createGrantCode(world, {
    user: user ?? '',
    clientId: client.clientId,
    scopes: splitScopes(parameters.scope ?? ''),
    expiresInSeconds: 120,
    redirectUri,
    codeChallenge: parameters.code_challenge,
    givesRefreshToken: parameters.access_type === 'offline' && (parameters.prompt === 'consent' || !authorizedBefore),
  })
  return redirectWith(reply, redirectUri, {
    code,
    state,
    location: world.state.dataCenter,
    'accounts-server': world.origin(),
  })
}
