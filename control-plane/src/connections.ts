import { type ConnectionReport, sealContext } from '@sdp-mcp/instance/contract'
import { seal } from '@sdp-mcp/instance/seal'
import type { z } from 'zod'
import { appendAudit } from './audit.ts'
import type { Db } from './db.ts'
import { AppError, catalogue, type ErrorCode } from './errors.ts'
import type { Fleet } from './fleet/fleet.ts'
import type { InstanceControl } from './instance-control.ts'
import type { Logger } from './log.ts'
import type { authorizationMaterial } from './user-schemas.ts'
import type { Users } from './users.ts'
import type { Vault } from './vault.ts'

/**
 * Authorization of a user at Zoho. The control plane never talks to Zoho itself: it seals what the admin gave into the
 * user's row and asks the user's instance to exchange or revoke it.
 */
export type Connections = ReturnType<typeof createConnections>

const readyTimeoutMs = 25_000

/** What an admin gave, or what came back from the consent page together with the client that asked for it. */
type Material = z.infer<typeof authorizationMaterial> & {
  consent?: { redirectUri: string; clientId: string; clientSecret: string }
}

type Dependencies = {
  db: Db
  users: Users
  vault: Vault
  fleet: Pick<Fleet, 'ensureReady'>
  control: Pick<InstanceControl, 'exchange' | 'revoke'>
  log: Logger
}

export function createConnections({ db, users, vault, fleet, control, log }: Dependencies) {
  const targetOf = async (userId: string, { address, generation }: { address: string; generation: number }) => ({
    userId,
    username: (await users.settings(userId)).username,
    address,
    generation,
  })

  return {
    /**
     * Waits until the user's instance runs and has tried what was given to it.
     * @throws AppError when the instance fails, or when Zoho rejected the material
     */
    async settle(
      userId: string,
      { timeoutMs, signal }: { timeoutMs: number; signal?: AbortSignal },
    ): Promise<ConnectionReport> {
      const instance = await fleet.ensureReady(userId, { timeoutMs, ...(signal ? { signal } : {}) })
      const report = await control.exchange(await targetOf(userId, instance))
      if (isRejection(report) || leadsNowhere(report)) throw rejection(report)
      return report
    },

    /**
     * Hands a grant code or refresh token to the user's instance, which exchanges and keeps it. When Zoho rejects it, what
     * was there before stays in force. A grant that Zoho accepted stays, too, when the portal is wrong: the report then
     * says `portal-unknown`, and what to change.
     * @throws AppError `grant-code-rejected`, `client-rejected`, `refresh-token-rejected`, `accounts-unavailable`,
     *   `client-missing`
     */
    async authorize(name: string, material: Material, actor: string): Promise<ConnectionReport> {
      const userId = await users.idOf(name)
      const column = material.grantCode !== undefined ? 'grant_code_sealed' : 'refresh_token_sealed'
      type Kept = {
        state: string
        refresh_token_sealed: string | null
        reason_code: string | null
        reason: string | null
        scopes: string[]
      }
      const before = await db.withTx(async tx => {
        const dataKey = await vault.dataKey(userId, tx)
        const { consent } = material
        const isNew =
          consent !== undefined &&
          (
            await tx.query(
              'insert into oauth_tokens (user_id, client_id) values ($1, $2) on conflict do nothing returning 1 as made',
              [userId, consent.clientId],
            )
          ).length > 0
        const [row] = await tx.query<Kept & { client_secret_sealed: string | null }>(
          'select state, refresh_token_sealed, client_secret_sealed, reason_code, reason, scopes from oauth_tokens where user_id = $1 for update',
          [userId],
        )
        if (!row || (!row.client_secret_sealed && !consent))
          throw new AppError(
            'client-missing',
            `"${name}" has no OAuth client. Set it first: PATCH /v1/users/${name} {"sdp": {"clientId": "...", "clientSecret": "..."}}.`,
          )
        const value = seal(
          dataKey,
          (material.grantCode ?? material.refreshToken)!,
          sealContext('oauth_tokens', column, userId),
        )
        if (column === 'grant_code_sealed')
          await tx.query(
            `update oauth_tokens set grant_code_sealed = $2, grant_redirect_uri = $3, grant_client_id = $4, grant_client_secret_sealed = $5,
                    updated_at = now() where user_id = $1`,
            [
              userId,
              value,
              consent?.redirectUri ?? null,
              consent?.clientId ?? null,
              consent
                ? seal(dataKey, consent.clientSecret, sealContext('oauth_tokens', 'grant_client_secret_sealed', userId))
                : null,
            ],
          )
        else {
          await tx.query(
            `update oauth_tokens set refresh_token_sealed = $2, grant_code_sealed = null, state = 'needs-authorization', reason_code = null, reason = null, updated_at = now()
              where user_id = $1`,
            [userId, value],
          )
          await tx.query('delete from oauth_access_tokens where user_id = $1', [userId])
        }
        return { ...row, isNew, tried: value }
      })
      const restore = () =>
        column === 'refresh_token_sealed'
          ? db.query(
              `update oauth_tokens set refresh_token_sealed = $3, state = $4, reason_code = $5, reason = $6, scopes = $7, updated_at = now()
                where user_id = $1 and refresh_token_sealed is not distinct from $2 and state <> 'connected'`,
              [
                userId,
                before.tried,
                before.refresh_token_sealed,
                before.state,
                before.reason_code,
                before.reason,
                before.scopes,
              ],
            )
          : db
              .query(
                `update oauth_tokens set grant_code_sealed = null, grant_redirect_uri = null, grant_client_id = null, grant_client_secret_sealed = null,
                        updated_at = now() where user_id = $1 and grant_code_sealed = $2`,
                [userId, before.tried],
              )
              // a row that was made for a consent which came to nothing would say that there is a client
              .then(() =>
                before.isNew
                  ? db.query(
                      'delete from oauth_tokens where user_id = $1 and client_secret_sealed is null and refresh_token_sealed is null',
                      [userId],
                    )
                  : [],
              )
      let report: ConnectionReport
      try {
        const instance = await fleet.ensureReady(userId, { timeoutMs: readyTimeoutMs })
        report = await control.exchange(await targetOf(userId, instance))
      } catch (error) {
        await restore()
        throw error
      }
      const accepted = !isRejection(report)
      await appendAudit(db, {
        actor,
        action: accepted ? 'connection.authorized' : 'connection.rejected',
        username: name,
        userId,
        detail: {
          with: material.consent ? 'consent' : column === 'grant_code_sealed' ? 'grantCode' : 'refreshToken',
          state: report.state,
          reasonCode: report.reasonCode,
          scopes: report.scopes,
        },
      })
      if (!accepted) {
        await restore()
        throw rejection(report)
      }
      return report
    },

    /**
     * Ends the user's grant: the instance revokes it at Zoho and erases the tokens, which stay when Zoho cannot be
     * reached. Repeatable. The OAuth client is kept.
     *
     * @param force - erases what is kept here even when the grant could not be revoked at Zoho
     * @returns whether it ended at Zoho; when not, the instance may still hold an access token in memory
     * @throws AppError `accounts-unavailable`, `instance-unreachable` or why the instance does not run; nothing is erased
     */
    async deauthorize(name: string, actor: string, { force }: { force: boolean }): Promise<boolean> {
      const userId = await users.idOf(name)
      const [row] = await db.query<{ held: boolean }>(
        `select (refresh_token_sealed is not null or grant_code_sealed is not null) as held from oauth_tokens where user_id = $1`,
        [userId],
      )
      if (!row?.held) return true
      let failure: unknown
      try {
        const instance = await fleet.ensureReady(userId, { timeoutMs: readyTimeoutMs })
        const report = await control.revoke(await targetOf(userId, instance))
        if (report.reasonCode !== null)
          throw new AppError('accounts-unavailable', report.reason ?? 'Zoho did not revoke the grant. Try again.', {
            retryAfterSeconds: 30,
          })
      } catch (error) {
        if (!force) throw error
        failure = error
      }
      await db.withTx(async tx => {
        // what the instance did already, or what could only be done here
        await tx.query(
          `update oauth_tokens set refresh_token_sealed = null, grant_code_sealed = null, scopes = '{}', state = 'needs-authorization',
                  reason_code = 'revoked', reason = 'The authorization was revoked. Authorize again: POST /v1/users/' || $2 || '/authorization.',
                  updated_at = now() where user_id = $1`,
          [userId, name],
        )
        await tx.query('delete from oauth_access_tokens where user_id = $1', [userId])
        await appendAudit(tx, {
          actor,
          action: failure === undefined ? 'connection.revoked' : 'connection.erased',
          username: name,
          userId,
          detail: failure === undefined ? {} : { next: endAtZoho },
        })
      })
      if (failure !== undefined) log.warn({ error: failure, username: name }, 'connection.revoke.failed')
      return failure === undefined
    },

    /** Revokes the user's grant at Zoho through its running instance; on failure says so in the audit and goes on. */
    async revoke(userId: string, instance: { address: string; generation: number } | null): Promise<void> {
      const [row] = await db.query<{ username: string; refresh_token_sealed: string | null }>(
        'select u.username, t.refresh_token_sealed from users u join oauth_tokens t on t.user_id = u.id where u.id = $1',
        [userId],
      )
      if (!row?.refresh_token_sealed) return
      const { username } = row
      try {
        if (!instance) throw new Error('no instance is running')
        const report = await control.revoke(await targetOf(userId, instance))
        if (report.reasonCode !== null) throw new Error(report.reason ?? report.reasonCode)
        await appendAudit(db, { actor: 'system', action: 'connection.revoked', username, userId })
      } catch (error) {
        log.warn({ error, username }, 'connection.revoke.failed')
        await appendAudit(db, {
          actor: 'system',
          action: 'connection.revoke-failed',
          username,
          userId,
          detail: {
            next: endAtZoho,
          },
        })
      }
    },
  }
}

/** Codes of a user who gave nothing yet and merely waits. */
const waiting = ['authorization-missing', 'client-missing', 'revoked']

const endAtZoho =
  'Erased here. To end the grant at Zoho as well, the person removes it at accounts.zoho.com, Sessions, Connected Apps.'

/** Whether a report tells that what was given did not work. */
function isRejection(report: ConnectionReport): boolean {
  const { reasonCode } = report
  return reasonCode !== null && !waiting.includes(reasonCode) && !leadsNowhere(report)
}

/** Whether the grant is fine, but the settings it is used with are not. */
function leadsNowhere({ reasonCode }: ConnectionReport): boolean {
  return reasonCode === 'portal-unknown'
}

function rejection(report: ConnectionReport): AppError {
  const code =
    report.reasonCode !== null && Object.hasOwn(catalogue, report.reasonCode)
      ? (report.reasonCode as ErrorCode)
      : 'accounts-unavailable'
  return new AppError(
    code,
    report.reason ?? 'Zoho did not accept it. Make a new grant code in the Zoho API console and try again.',
  )
}
