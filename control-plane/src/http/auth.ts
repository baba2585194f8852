import type { IncomingMessage } from 'node:http'
import type { Attempts } from '../attempts.ts'
import type { Secret } from '../config.ts'
import { AppError } from '../errors.ts'
import { type AdminTokens, sameSecret } from '../identity.ts'
import type { App } from './server.ts'

/** How admins prove who they are. */
export type AdminGuard = {
  /** the static token; its holder is `admin` in the audit */
  adminToken: Secret
  /** tokens of the company's identity provider; their holder is `oidc:<subject>` */
  adminTokens?: AdminTokens
  attempts?: Attempts
  addressOf?: (request: IncomingMessage) => string
}

const actors = new WeakMap<object, string>()
const readingMethods = ['GET', 'HEAD']

/** Lets only admins into the routes of `scope`, and viewers to what reads. */
export function requireAdmin(
  scope: App,
  { adminToken, adminTokens, attempts, addressOf = request => request.socket.remoteAddress ?? '' }: AdminGuard,
): void {
  async function identify(given: string): Promise<{ actor: string; role: 'admin' | 'viewer' }> {
    // three parts with dots between them: a JWT, and never our token by accident
    if (adminTokens && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(given) && !sameSecret(given, adminToken.reveal())) {
      const { subject, role } = await adminTokens.verify(given)
      return { actor: `oidc:${subject}`, role }
    }
    if (sameSecret(given, adminToken.reveal())) return { actor: 'admin', role: 'admin' }
    throw new AppError(
      'admin-token-required',
      adminTokens
        ? 'This is neither the admin token (SDP_ADMIN_TOKEN of the control plane) nor a token of the identity provider.'
        : 'This is not the admin token. It is the value of SDP_ADMIN_TOKEN of the control plane.',
    )
  }

  scope.addHook('onRequest', async request => {
    const given = /^Bearer (.+)$/i.exec(request.headers.authorization ?? '')?.[1]?.trim()
    if (given === undefined)
      throw new AppError(
        'admin-token-required',
        'Send the admin token as "Authorization: Bearer <token>". It is the value of SDP_ADMIN_TOKEN.',
      )
    const address = addressOf(request.raw)
    attempts?.check(address)
    const { actor, role } = await identify(given).catch(error => {
      if (error instanceof AppError && error.code === 'admin-token-required') {
        attempts?.failed(address)
        request.log.warn({ address }, 'admin.refused')
      }
      throw error
    })
    attempts?.succeeded(address)
    if (role === 'viewer' && !readingMethods.includes(request.method))
      throw new AppError(
        'admin-role-required',
        'Your role is viewer, which may look at everything and change nothing. Ask for the role admin at your identity provider.',
      )
    actors.set(request, actor)
  })
}

/** Who acts, for the audit: `admin`, or `oidc:` and the subject of the token. */
export function actorOf(request: object): string {
  return actors.get(request) ?? 'admin'
}
