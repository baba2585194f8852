import type { Secret } from '../config.ts'
import { AppError } from '../errors.ts'
import { sameSecret } from '../identity.ts'
import type { App } from './server.ts'

/** Lets only admins into the routes of `scope`. */
export function requireAdmin(scope: App, token: Secret): void {
  scope.addHook('onRequest', async request => {
    const given = /^Bearer (.+)$/i.exec(request.headers.authorization ?? '')?.[1]?.trim()
    if (given === undefined)
      throw new AppError(
        'admin-token-required',
        'Send the admin token as "Authorization: Bearer <token>". It is the value of SDP_ADMIN_TOKEN.',
      )
    if (!sameSecret(given, token.reveal()))
      throw new AppError(
        'admin-token-required',
        'This is not the admin token. It is the value of SDP_ADMIN_TOKEN of the control plane.',
      )
  })
}

/** Who acts, for the audit. */
export function actorOf(_request: unknown): string {
  return 'admin'
}
