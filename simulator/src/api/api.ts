import type { FastifyReply, FastifyRequest } from 'fastify'
import { accessTokenOf, personOf } from '../accounts/accounts.ts'
import { type ScopeOperation, scopesAllow } from '../accounts/scopes.ts'
import { exchangeOf } from '../exchange.ts'
import { loginPage, tomcatPage } from '../html.ts'
import type { Module } from '../modules/module.ts'
import { modules } from '../modules.ts'
import type { AccessToken, Portal } from '../state.ts'
import type { World } from '../world.ts'
import type { Call, Caller, Reply } from './call.ts'
import { failed } from './envelope.ts'
import { ApiFailure, fail } from './failure.ts'
import { type Input, readInput } from './input.ts'
import { fieldOptions } from './metadata.ts'
import { callerIn } from './permissions.ts'
import { listPortals } from './portals.ts'
import type { RateLimit } from './rate-limit.ts'
import { route, type Target } from './route.ts'
import { verbs } from './verbs.ts'

const mediaTypes = ['application/vnd.manageengine.sdp.v3+json', 'application/v3+json']
const scopeOperations: Record<string, ScopeOperation> = { GET: 'READ', POST: 'CREATE', PUT: 'UPDATE', DELETE: 'DELETE' }

/** A refusal that is a page of the front server, not an answer of SDP. */
class HtmlAnswer extends Error {
  readonly status: number
  readonly html: string

  constructor(status: number, html: string) {
    super(`HTML ${status}`)
    this.status = status
    this.html = html
  }
}

/**
 * Serves one request of the SDP API, in the order a real site looks at it: the front server (raw brackets, Accept),
 * the token, the rate limit, the path, scope, role, input, and at last the module's verb or operation.
 */
export async function serveApi(
  world: World,
  limit: RateLimit,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  try {
    return send(world, reply, await answer(world, limit, request))
  } catch (error) {
    if (error instanceof HtmlAnswer) return reply.status(error.status).type('text/html').send(error.html)
    if (error instanceof ApiFailure) return sendFailure(world, reply, error)
    throw error
  }
}

async function answer(world: World, limit: RateLimit, request: FastifyRequest): Promise<Reply> {
  checkUrl(request.url)
  checkAccept(world, request)
  const token = authenticate(world, request.headers.authorization)
  limit.spend(world, token.user)

  const { portalName, segments } = splitPath(request.url)
  if (portalName === undefined && segments.join('/') === 'portals') return listPortals(world, token)
  const portal = portalNamed(world, portalName)
  const caller = callerOf(world, portal, token)
  refuseSwitchedOff(world, segments)

  const { plainOperationNames } = world.faults.switches
  const target = route(modules, portal, request.method, segments, { plainOperationNames })
  checkScope(token, target, request.method)
  const input = await readInput(request)
  if (input.data !== undefined) exchangeOf(request).input = input.data
  const call = callFor(world, portal, caller, request.method, target, input)
  checkVisible(call, target)
  checkRole(call, target)
  checkParameters(call, target)

  switch (target.what) {
    case 'verb':
      return verbs[target.verb](call)
    case 'operation':
      return target.run(call)
    case 'lookup':
      return fieldOptions(call, target.field)
  }
}

/** Tomcat refuses URLs with characters that must be encoded (1.4). */
function checkUrl(url: string): void {
  if (/[[\]{}|\\^"<>]/.test(url)) throw new HtmlAnswer(400, tomcatPage(400, 'Bad Request'))
  try {
    decodeURIComponent(url.split('?')[0] ?? '')
  } catch {
    throw new HtmlAnswer(400, tomcatPage(400, 'Bad Request'))
  }
}

function checkAccept(world: World, request: FastifyRequest): void {
  // A file is not JSON, so a download may be asked for in any form.
  if (/\/_?download$/.test(request.url.split('?')[0] ?? '')) return
  const given = (request.headers.accept ?? '').split(',').map(type => type.split(';')[0]?.trim().toLowerCase() ?? '')
  if (given.some(type => mediaTypes.includes(type))) return
  if (world.faults.switches.wrongAccept === 'login-page') throw new HtmlAnswer(200, loginPage)
  throw new HtmlAnswer(415, tomcatPage(415, 'Unsupported Media Type'))
}

function bearer(authorization = ''): string | undefined {
  return /^(?:Zoho-oauthtoken|Bearer) (\S+)$/i.exec(authorization)?.[1]
}

/** The username behind an Authorization header, for the log and for faults. */
export function userOfHeader(world: World, authorization: string | undefined): string | null {
  return accessTokenOf(world, bearer(authorization))?.user ?? null
}

function authenticate(world: World, authorization: string | undefined): AccessToken {
  const token = accessTokenOf(world, bearer(authorization))
  if (!token || world.faults.switches.foreignDataCenter) throw fail.unauthorized()
  return token
}

function splitPath(url: string): { portalName: string | undefined; segments: string[] } {
  const path = url.split('?')[0] ?? ''
  const [, portalName, below = ''] = /^(?:\/app\/([^/]+))?\/api\/v3(?:\/(.*))?$/.exec(path) ?? []
  return {
    portalName: portalName && decodeURIComponent(portalName),
    segments: below
      .split('/')
      .filter(Boolean)
      .map(segment => decodeURIComponent(segment)),
  }
}

/** A wrong portal is 404 on everything; without one, the default portal answers only where the site allows it (1.2). */
function portalNamed(world: World, name: string | undefined): Portal {
  const { portals } = world.state
  const portal =
    name === undefined
      ? world.faults.switches.defaultPortal && portals.find(one => one.isDefault)
      : portals.find(one => one.name === name)
  if (!portal) throw fail.invalidUrl()
  return portal
}

function callerOf(world: World, portal: Portal, token: AccessToken): Caller {
  const person = personOf(world, token.user)
  const caller = person && callerIn(portal, person.email)
  if (!caller) throw fail.notAllowed('User is not associated to this portal')
  return caller
}

/** Lookup endpoints that some sites refuse (17). */
function refuseSwitchedOff(world: World, [first = '']: string[]): void {
  const { switches } = world.faults
  const answers: Record<string, string> = {
    statuses: switches.statusesEndpoint,
    priorities: switches.prioritiesEndpoint,
    users: switches.usersEndpoint,
    technicians: switches.techniciansEndpoint,
    groups: switches.groupsEndpoint === 'support_groups' ? '404' : 'ok',
    support_groups: switches.groupsEndpoint === 'groups' ? '404' : 'ok',
  }
  if (answers[first] === '401') throw new HtmlAnswer(401, tomcatPage(401, 'Unauthorized'))
  if (answers[first] === '404') throw fail.invalidUrl()
}

/** A missing scope is a 401, never a 403 (2.9). A child needs the scope of its outermost module. */
function checkScope(token: AccessToken, target: Target, method: string): void {
  const wanted = target.module.scopes ?? target.trail[0]?.module.scopes ?? []
  if (!scopesAllow(token.scopes, wanted, scopeOperations[method] ?? 'READ')) throw fail.unauthorized()
}

function callFor(
  world: World,
  portal: Portal,
  caller: Caller,
  method: string,
  target: Target,
  { data, source, form, files }: Input,
): Call {
  return {
    world,
    portal,
    caller,
    method,
    module: target.module,
    record: target.record,
    trail: target.trail,
    params: target.what === 'operation' ? target.params : {},
    input: data,
    inputSource: source,
    form,
    files,
  }
}

/** Records outside the role's view scope answer 403/4002 or 404/4007, by switch; children hide with their parents. */
function checkVisible(call: Call, { module, record, trail }: Target): void {
  const steps = record ? [...trail, { module, record }] : trail
  const isHidden = steps.some(step => step.module.isVisible && !step.module.isVisible(step.record, call))
  if (!isHidden) return
  throw call.world.faults.switches.invisibleRecord === 404 ? fail.invalidUrl() : fail.notAllowed()
}

/** Scopes never widen the user's own role: what it forbids is 403/4002 (2.9). */
function checkRole(call: Call, target: Target): void {
  const { caller, module, method } = call
  if (caller.isAdmin) return
  const outermost = target.trail[0]?.module ?? module
  if (!caller.isTechnician && !isForRequesters(module, target, method)) throw fail.notAllowed()
  if (method === 'GET') return
  if (outermost.adminOnly || module.adminOnly) throw fail.notAllowed()
  const deletesTicket = target.what === 'verb' && target.verb === 'delete' && target.trail.length === 0
  if (deletesTicket && !caller.mayDelete) throw fail.notAllowed()
}

function isForRequesters(module: Module, target: Target, method: string): boolean {
  const allowed = module.forRequesters ?? []
  if (target.what === 'verb') return allowed.includes(target.verb)
  if (method === 'GET' && allowed.includes('get')) return true
  return target.what === 'operation' && (module.requesterOperations?.includes(target.name) ?? false)
}

/** Only `input_data` and what the call itself knows may be a parameter (4.3 EXTRA_PARAM_FOUND). */
function checkParameters(call: Call, target: Target): void {
  const known = target.what === 'operation' ? ['ids', 'addtoattachment'] : ['ids']
  for (const name of Object.keys(call.form)) if (!known.includes(name)) throw fail.extraParameter(name)
}

function send(world: World, reply: FastifyReply, { status, body, file }: Reply): FastifyReply {
  if (world.faults.switches.loginPageInsteadOfJson) return reply.status(status).type('text/html').send(loginPage)
  if (file) {
    return reply
      .status(status)
      .type(file.contentType)
      .header('content-disposition', `attachment; filename*=UTF-8''${encodeURIComponent(file.name)}`)
      .send(file.content)
  }
  if (body === undefined) return reply.status(status).send()
  return reply.status(status).type('application/vnd.manageengine.sdp.v3+json;charset=UTF-8').send(JSON.stringify(body))
}

/** Some sites answer 401 and 400 with a page instead of JSON (4.4). */
export function sendFailure(world: World, reply: FastifyReply, failure: ApiFailure): FastifyReply {
  const { unauthorizedBody, badRequestBody } = world.faults.switches
  reply.status(failure.httpStatus).headers(failure.headers)
  const isPage =
    (failure.httpStatus === 401 && unauthorizedBody === 'html') ||
    (failure.httpStatus === 400 && badRequestBody === 'html')
  if (isPage)
    return reply
      .type('text/html')
      .send(tomcatPage(failure.httpStatus, failure.httpStatus === 401 ? 'Unauthorized' : 'Bad Request'))
  return reply
    .type('application/vnd.manageengine.sdp.v3+json;charset=UTF-8')
    .send(JSON.stringify(failed(world, failure)))
}
