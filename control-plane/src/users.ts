import { type ConnectionState, type DataCenter, sealContext, type Toolset } from '@sdp-mcp/instance/contract'
import { seal } from '@sdp-mcp/instance/seal'
import { addKey, createApiKeys } from './api-keys.ts'
import { appendAudit } from './audit.ts'
import type { ClientFingerprints } from './client-fingerprints.ts'
import type { Config } from './config.ts'
import { type Db, notifySql, type Queryable, sqlState } from './db.ts'
import { AppError } from './errors.ts'
import { effectiveSdpSettings, type Resolve, upstreamOrigin } from './sdp-settings.ts'
import type { IssuedApiKey, NewUser, StoredLimits, UserChange, UserLimits, UserView } from './user-schemas.ts'
import type { Vault } from './vault.ts'

/** Owns users and api_keys: the desired state. The fleet makes the runtime match it. */

/** Channel told of every change of a user; the payload is the user's id. */
export const userChannel = 'sdp_mcp_user'

// ---- rows --------------------------------------------------------------------------------------------------------

type UserRow = {
  id: string
  username: string
  display_name: string
  email: string | null
  suspended: boolean
  toolsets: Toolset[]
  read_only: boolean
  limits: StoredLimits
  sdp_data_center: DataCenter | null
  sdp_portal: string | null
  sdp_base_url: string | null
  sdp_accounts_url: string | null
  wanted: 'running' | 'stopped' | 'removed'
  generation: number
  created_at: Date
}

type UserViewRow = UserRow & {
  client_id: string | null
  connection: ConnectionState | null
  connection_reason: string | null
  last_refreshed_at: Date | null
  instance_state: UserView['instance']['state'] | null
  port: number | null
  container_id: string | null
  image: string | null
  reason_code: string | null
  instance_reason: string | null
}

const viewSql = `
  select u.id, u.username, u.display_name, u.email, u.suspended, u.toolsets, u.read_only, u.limits, u.sdp_data_center, u.sdp_portal,
         u.sdp_base_url, u.sdp_accounts_url, u.wanted, u.generation::integer, u.created_at,
         t.client_id, t.state as connection, t.reason as connection_reason, t.last_refreshed_at,
         i.state as instance_state, i.port, i.container_id, i.image, i.reason_code, i.reason as instance_reason
    from users u
    left join oauth_tokens t on t.user_id = u.id
    left join instances i on i.user_id = u.id`

const noSuchUser = () => new AppError('user-not-found', 'There is no such user. List the users with GET /v1/users.')

// ---- the module --------------------------------------------------------------------------------------------------

export type Users = ReturnType<typeof createUsers>

export function createUsers({
  db,
  vault,
  config,
  resolve,
  fingerprints,
}: {
  db: Db
  vault: Vault
  config: Pick<Config, 'sdpDefaults' | 'allowInsecureUpstream' | 'allowedUpstreamHosts' | 'userLimits'>
  /** asks the DNS about upstreams an admin names; without it only names and addresses themselves are looked at */
  resolve?: Resolve
  fingerprints?: Pick<ClientFingerprints, 'put'>
}) {
  const stored = (row: UserRow) => ({
    dataCenter: row.sdp_data_center,
    portal: row.sdp_portal,
    baseUrl: row.sdp_base_url,
    accountsUrl: row.sdp_accounts_url,
  })

  function toView(row: UserViewRow): UserView {
    return {
      username: row.username,
      displayName: row.display_name,
      email: row.email,
      suspended: row.suspended,
      createdAt: row.created_at.toISOString(),
      toolsets: row.toolsets,
      readOnly: row.read_only,
      limits: effectiveLimits(row.limits, config.userLimits),
      sdp: {
        ...effectiveSdpSettings(stored(row), config),
        clientId: row.client_id,
        connection: row.connection ?? 'needs-authorization',
        connectionReason: row.connection_reason,
        lastRefreshedAt: row.last_refreshed_at?.toISOString() ?? null,
      },
      instance: {
        // a user is wanted from the moment of the POST; the fleet's first row follows
        state: row.instance_state ?? 'starting',
        port: row.port,
        containerId: row.container_id,
        image: row.image,
        reasonCode: row.reason_code,
        reason: row.instance_reason,
      },
    }
  }

  /** The user's row, locked for the transaction; users on their way out are gone for everybody but the fleet. */
  async function lockUser(tx: Queryable, name: string): Promise<UserRow> {
    const [row] = await tx.query<UserRow>(
      `select id, username, display_name, email, suspended, toolsets, read_only, limits, sdp_data_center, sdp_portal, sdp_base_url,
              sdp_accounts_url, wanted, generation::integer, created_at
         from users where username = $1 and wanted <> 'removed' for update`,
      [name],
    )
    if (!row) throw noSuchUser()
    return row
  }

  async function idOf(name: string): Promise<string> {
    const [row] = await db.query<{ id: string }>("select id from users where username = $1 and wanted <> 'removed'", [
      name,
    ])
    if (!row) throw noSuchUser()
    return row.id
  }

  const tell = (tx: Queryable, userId: string) => tx.query(notifySql, [userChannel, userId])

  /**
   * Writes the OAuth client of a user. A new client id makes the tokens of the old one worthless, so they go (docs/sdp-api.md
   * 2.8). A new secret deserves another try of what the old one was refused for.
   * @returns whether the client is another one than before
   */
  async function putClient(
    tx: Queryable,
    userId: string,
    client: { id?: string | undefined; secret?: string | undefined },
  ): Promise<boolean> {
    const dataKey = await vault.dataKey(userId, tx)
    const secretSealed =
      client.secret === undefined
        ? null
        : seal(dataKey, client.secret, sealContext('oauth_tokens', 'client_secret_sealed', userId))
    const [existing] = await tx.query<{ client_id: string }>(
      'select client_id from oauth_tokens where user_id = $1 for update',
      [userId],
    )
    if (!existing) {
      if (!client.id)
        throw new AppError(
          'client-missing',
          'sdp.clientSecret was given without sdp.clientId. Give both; they stand in the Zoho API console.',
        )
      await tx.query('insert into oauth_tokens (user_id, client_id, client_secret_sealed) values ($1, $2, $3)', [
        userId,
        client.id,
        secretSealed,
      ])
      await fingerprints?.put(tx, userId, { clientId: client.id, secret: client.secret, sealed: secretSealed })
      return false
    }
    if (client.id !== undefined && client.id !== existing.client_id) {
      await tx.query(
        `update oauth_tokens set client_id = $2, client_secret_sealed = $3, refresh_token_sealed = null, grant_code_sealed = null, scopes = '{}',
                state = 'needs-authorization', reason_code = 'client-changed',
                reason = 'The OAuth client was changed. Authorize again: POST /v1/users/<username>/authorization.', updated_at = now()
          where user_id = $1`,
        [userId, client.id, secretSealed],
      )
      await tx.query('delete from oauth_access_tokens where user_id = $1', [userId])
      await fingerprints?.put(tx, userId, { clientId: client.id, secret: client.secret, sealed: secretSealed })
      return true
    }
    if (secretSealed) {
      await fingerprints?.put(tx, userId, {
        clientId: existing.client_id,
        secret: client.secret,
        sealed: secretSealed,
      })
      await tx.query('update oauth_tokens set client_secret_sealed = $2, updated_at = now() where user_id = $1', [
        userId,
        secretSealed,
      ])
      await tx.query(
        `update oauth_tokens set state = 'needs-authorization', reason_code = null, reason = null
          where user_id = $1 and state = 'needs-reauthorization' and reason_code = 'client-rejected' and refresh_token_sealed is not null`,
        [userId],
      )
    }
    return false
  }

  /** Keys die with the commit, and the fleet is told to remove the rest. */
  async function markRemoved(tx: Queryable, { id, username }: Pick<UserRow, 'id' | 'username'>, actor: string) {
    await tx.query("update users set wanted = 'removed', updated_at = now() where id = $1", [id])
    await tx.query('update api_keys set revoked_at = now() where user_id = $1 and revoked_at is null', [id])
    await appendAudit(tx, { actor, action: 'user.removed', username, userId: id })
    await tell(tx, id)
  }

  const origin = async (field: 'baseUrl' | 'accountsUrl', value: string | null | undefined) =>
    typeof value === 'string' ? upstreamOrigin(field, value, config, resolve) : value

  return {
    /**
     * Adds a user with a first API key. The instance follows: the fleet is told with the commit.
     * @throws AppError `user-exists`, `sdp-settings-missing`, `sdp-settings-refused`, `client-missing`
     */
    async create(input: NewUser, actor: string): Promise<{ userId: string; apiKey: IssuedApiKey }> {
      const sdp = input.sdp ?? {}
      const clientId = sdp.clientId ?? config.sdpDefaults.clientId ?? undefined
      const clientSecret =
        sdp.clientSecret ?? (sdp.clientId === undefined ? config.sdpDefaults.clientSecret?.reveal() : undefined)
      const material = sdp.grantCode ?? sdp.refreshToken
      if (!(sdp.portal ?? config.sdpDefaults.portal))
        throw new AppError(
          'sdp-settings-missing',
          'The portal is missing. Give sdp.portal, the part after /app/ in the address of ServiceDesk Plus, or set SDP_INSTANCE_NAME for everybody.',
          { invalid: [{ pointer: '#/sdp/portal', detail: 'is missing and SDP_INSTANCE_NAME is not set' }] },
        )
      if (material !== undefined && (clientId === undefined || clientSecret === undefined))
        throw new AppError(
          'client-missing',
          'A grant code or refresh token belongs to an OAuth client. Give sdp.clientId and sdp.clientSecret with it; they stand in the Zoho API console.',
          {
            invalid: [
              { pointer: clientId === undefined ? '#/sdp/clientId' : '#/sdp/clientSecret', detail: 'is missing' },
            ],
          },
        )
      const baseUrl = await origin('baseUrl', sdp.baseUrl)
      const accountsUrl = await origin('accountsUrl', sdp.accountsUrl)
      try {
        return await db.withTx(async tx => {
          const [row] = await tx.query<{ id: string }>(
            `insert into users (username, display_name, email, toolsets, read_only, sdp_data_center, sdp_portal, sdp_base_url, sdp_accounts_url)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id`,
            [
              input.username,
              input.displayName ?? input.username,
              input.email ?? null,
              input.toolsets ?? ['core'],
              input.readOnly ?? false,
              sdp.dataCenter ?? null,
              sdp.portal ?? null,
              baseUrl ?? null,
              accountsUrl ?? null,
            ],
          )
          const userId = row!.id
          const dataKey = await vault.enroll(tx, userId)
          if (clientId !== undefined || clientSecret !== undefined) {
            await putClient(tx, userId, { id: clientId, secret: clientSecret })
            if (material !== undefined) {
              const column = sdp.grantCode !== undefined ? 'grant_code_sealed' : 'refresh_token_sealed'
              await tx.query(`update oauth_tokens set ${column} = $2 where user_id = $1`, [
                userId,
                seal(dataKey, material, sealContext('oauth_tokens', column, userId)),
              ])
            }
          }
          const apiKey = await addKey(tx, userId, { name: 'first key' })
          await appendAudit(tx, {
            actor,
            action: 'user.created',
            username: input.username,
            userId,
            detail: {
              toolsets: input.toolsets ?? ['core'],
              readOnly: input.readOnly ?? false,
              keyId: apiKey.id,
              keyPrefix: apiKey.prefix,
            },
          })
          await tell(tx, userId)
          return { userId, apiKey }
        })
      } catch (error) {
        if (sqlState(error) === '23505')
          throw new AppError(
            'user-exists',
            `There already is a user "${input.username}", or it is just being removed. Choose another username.`,
            {
              cause: error,
            },
          )
        throw error
      }
    },

    async get(name: string): Promise<UserView> {
      const [row] = await db.query<UserViewRow>(`${viewSql} where u.username = $1 and u.wanted <> 'removed'`, [name])
      if (!row) throw noSuchUser()
      return toView(row)
    },

    /** @param cursor - the last username of the page before */
    async list({
      limit,
      cursor,
    }: {
      limit: number
      cursor?: string | undefined
    }): Promise<{ users: UserView[]; nextCursor: string | null }> {
      const rows = await db.query<UserViewRow>(
        `${viewSql} where u.wanted <> 'removed' and ($1::text is null or u.username > $1) order by u.username limit $2`,
        [cursor ?? null, limit + 1],
      )
      const page = rows.slice(0, limit)
      return { users: page.map(toView), nextCursor: rows.length > limit ? page.at(-1)!.username : null }
    },

    idOf,
    /** Whether anybody has this OAuth client, with whatever secret. */
    async hasClient(clientId: string): Promise<boolean> {
      return (await db.query('select 1 from oauth_tokens where client_id = $1 limit 1', [clientId])).length > 0
    },
    ...createApiKeys({ db, lockUser, tell, idOf }),

    /** What the instance of a user needs to know of it, whatever its state. */
    async settings(userId: string) {
      const [row] = await db.query<UserRow>(
        `select id, username, display_name, email, suspended, toolsets, read_only, limits, sdp_data_center, sdp_portal, sdp_base_url, sdp_accounts_url,
                wanted, generation::integer, created_at from users where id = $1`,
        [userId],
      )
      if (!row) throw noSuchUser()
      return {
        id: row.id,
        username: row.username,
        displayName: row.display_name,
        email: row.email,
        toolsets: row.toolsets,
        readOnly: row.read_only,
        generation: row.generation,
        limits: effectiveLimits(row.limits, config.userLimits),
        sdp: effectiveSdpSettings(stored(row), config),
      }
    },

    /** Changes fields; what the instance must know makes a new generation, so the fleet replaces the container. */
    async change(name: string, change: UserChange, actor: string): Promise<string> {
      const baseUrl = await origin('baseUrl', change.sdp?.baseUrl)
      const accountsUrl = await origin('accountsUrl', change.sdp?.accountsUrl)
      return db.withTx(async tx => {
        const row = await lockUser(tx, name)
        const next = {
          display_name: change.displayName ?? row.display_name,
          email: change.email === undefined ? row.email : change.email,
          suspended: change.suspended ?? row.suspended,
          toolsets: change.toolsets ?? row.toolsets,
          read_only: change.readOnly ?? row.read_only,
          sdp_data_center: change.sdp?.dataCenter === undefined ? row.sdp_data_center : change.sdp.dataCenter,
          sdp_portal: change.sdp?.portal === undefined ? row.sdp_portal : change.sdp.portal,
          sdp_base_url: baseUrl === undefined ? row.sdp_base_url : baseUrl,
          sdp_accounts_url: accountsUrl === undefined ? row.sdp_accounts_url : accountsUrl,
        }
        const limits = { ...row.limits, ...change.limits }
        if (!(next.sdp_portal ?? config.sdpDefaults.portal))
          throw new AppError(
            'sdp-settings-missing',
            'Without sdp.portal the user has no portal, because SDP_INSTANCE_NAME is not set. Give a portal.',
            { invalid: [{ pointer: '#/sdp/portal', detail: 'is missing and SDP_INSTANCE_NAME is not set' }] },
          )
        const { suspended: _suspended, ...forInstance } = next
        const anotherClient =
          (change.sdp?.clientId !== undefined || change.sdp?.clientSecret !== undefined) &&
          (await putClient(tx, row.id, { id: change.sdp.clientId, secret: change.sdp.clientSecret }))
        const changesInstance = Object.entries(forInstance).some(
          ([column, value]) => JSON.stringify(value) !== JSON.stringify(row[column as keyof UserRow]),
        )
        // the instance is told of its sessions only; the others are the proxy's to keep
        const changesSessions =
          effectiveLimits(limits, config.userLimits).sessions !==
          effectiveLimits(row.limits, config.userLimits).sessions
        await tx.query(
          `update users set display_name = $2, email = $3, suspended = $4, toolsets = $5, read_only = $6, sdp_data_center = $7, sdp_portal = $8,
                  sdp_base_url = $9, sdp_accounts_url = $10, generation = generation + $11, limits = $12, updated_at = now() where id = $1`,
          // an instance holds the access token it uses, and that of another client must not outlive the change
          [row.id, ...Object.values(next), changesInstance || changesSessions || anotherClient ? 1 : 0, limits],
        )
        const { sdp, ...plain } = change
        const { clientSecret, ...sdpPlain } = sdp ?? {}
        await appendAudit(tx, {
          actor,
          action: 'user.changed',
          username: name,
          userId: row.id,
          detail: {
            ...plain,
            ...(sdp ? { sdp: { ...sdpPlain, ...(clientSecret ? { clientSecret: 'changed' } : {}) } } : {}),
          },
        })
        await tell(tx, row.id)
        return row.id
      })
    },

    /** Wanted running or stopped by hand; `restart` makes a new generation. */
    async want(name: string, action: 'start' | 'stop' | 'restart', actor: string): Promise<string> {
      return db.withTx(async tx => {
        const row = await lockUser(tx, name)
        if (row.suspended && action !== 'stop')
          throw new AppError(
            'user-suspended',
            `"${name}" is suspended. Lift it first: PATCH /v1/users/${name} {"suspended": false}.`,
          )
        await tx.query('update users set wanted = $2, generation = generation + $3, updated_at = now() where id = $1', [
          row.id,
          action === 'stop' ? 'stopped' : 'running',
          action === 'restart' ? 1 : 0,
        ])
        if (action !== 'stop')
          await tx.query('update instances set failures = 0, retry_at = null where user_id = $1', [row.id])
        await appendAudit(tx, { actor, action: `instance.${action}`, username: name, userId: row.id })
        await tell(tx, row.id)
        return row.id
      })
    },

    /** First half of a removal. Repeatable while the second half is not done yet. */
    async remove(name: string, actor: string): Promise<string> {
      return db.withTx(async tx => {
        const [row] = await tx.query<UserRow>('select id, username, wanted from users where username = $1 for update', [
          name,
        ])
        if (!row) throw noSuchUser()
        if (row.wanted !== 'removed') await markRemoved(tx, row, actor)
        return row.id
      })
    },

    /** The same for a user that was just created and could not be completed; whoever has the name by now is safe. */
    async undoCreate(userId: string): Promise<void> {
      await db.withTx(async tx => {
        const [row] = await tx.query<UserRow>(
          "select id, username from users where id = $1 and wanted <> 'removed' for update",
          [userId],
        )
        if (row) await markRemoved(tx, row, 'system')
      })
    },

    /** Second half, when the container is gone: secrets, keys and the row itself. The audit stays. */
    async erase(userId: string): Promise<void> {
      await db.withTx(async tx => {
        const [row] = await tx.query<{ username: string }>(
          "delete from users where id = $1 and wanted = 'removed' returning username",
          [userId],
        )
        if (!row) return
        await vault.dismiss(tx, userId)
        await appendAudit(tx, { actor: 'system', action: 'user.erased', username: row.username, userId })
        await tell(tx, userId)
      })
    },

    async counts(): Promise<{ users: number; suspended: number; instances: Record<string, number> }> {
      const [[users], states] = await Promise.all([
        db.query<{ users: number; suspended: number }>(
          "select count(*)::integer as users, count(*) filter (where suspended)::integer as suspended from users where wanted <> 'removed'",
        ),
        db.query<{ state: string; count: number }>('select state, count(*)::integer from instances group by state'),
      ])
      return { ...users!, instances: Object.fromEntries(states.map(row => [row.state, row.count])) }
    },
  }
}

/** A user's own limits where there are any, the control plane's defaults elsewhere. */
export function effectiveLimits(stored: StoredLimits, defaults: UserLimits): UserLimits {
  return {
    requestsPerSecond: stored.requestsPerSecond ?? defaults.requestsPerSecond,
    burst: stored.burst ?? defaults.burst,
    concurrentRequests: stored.concurrentRequests ?? defaults.concurrentRequests,
    sessions: stored.sessions ?? defaults.sessions,
  }
}
