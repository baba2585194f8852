import { randomBytes } from 'node:crypto'
import pg from 'pg'
import { type Boot, type SdpSettings, sealContext, type Toolset } from '../contract.ts'
import { generateSealingKey, open, type SealingKey, seal, sealingKey } from '../seal.ts'
import {
  type Change,
  contexts,
  fingerprint,
  type GivenCredentials,
  mintWindowMs,
  opened,
  planTakeOver,
  type SealedConnection,
  type StoredConnection,
  type TokenStore,
} from './store.ts'

export type PostgresStoreOptions = {
  database: Boot['database']
  userId: string
  key: SealingKey
  /** told when a pooled connection breaks while idle */
  onError?: (error: Error) => void
}

/**
 * Tokens in PostgreSQL, through the instance's own role, which row-level security confines to its own rows.
 *
 * The role has rights on columns only, which give none to LOCK a table, and functions for the rest
 * (0009_narrow_instance_rights.sql). The row lock is `for no key update`: the foreign key of oauth_token_mints takes `for key share` on the same row,
 * so a mint can be counted on a second connection while the first holds the lock.
 */
export function postgresStore({ database, userId, key, onError }: PostgresStoreOptions): TokenStore {
  const context = contexts(userId)
  const pool = new pg.Pool({
    ...database,
    application_name: 'sdp-mcp instance',
    max: 2,
    // many instances share the server: hold a connection only while there is something to do
    idleTimeoutMillis: 5_000,
    allowExitOnIdle: true,
    connectionTimeoutMillis: 5_000,
    // a waiter for the row lock waits for another process's call to Zoho, which ends after 10 s
    lock_timeout: 20_000,
    statement_timeout: 25_000,
    query_timeout: 30_000,
    // a process that froze while holding the lock loses it
    idle_in_transaction_session_timeout: 30_000,
    keepAlive: true,
  })
  pool.on('error', error => onError?.(error))

  async function select(client: pg.Pool | pg.PoolClient): Promise<StoredConnection | undefined> {
    const { rows } = await client.query<SealedConnection>(
      `select t.client_id, t.client_secret_sealed, t.grant_code_sealed, t.refresh_token_sealed, t.scopes, t.state,
              t.grant_redirect_uri, t.grant_client_id, t.grant_client_secret_sealed,
              t.reason_code, t.reason, t.last_refreshed_at, a.access_token_sealed,
              (extract(epoch from a.expires_at - clock_timestamp()) * 1000)::float8 as life_ms,
              (extract(epoch from clock_timestamp() - a.minted_at) * 1000)::float8 as age_ms
         from oauth_tokens t left join oauth_access_tokens a using (user_id) where t.user_id = $1`,
      [userId],
    )
    return rows[0] && opened(rows[0], userId, key)
  }

  async function save(client: pg.PoolClient, change: Change): Promise<void> {
    const columns: Record<string, unknown> = {}
    if (change.state !== undefined) columns.state = change.state
    if (change.scopes !== undefined) columns.scopes = change.scopes
    if (change.reasonCode !== undefined) columns.reason_code = change.reasonCode
    if (change.reason !== undefined) columns.reason = change.reason
    if (change.grantCode === null)
      for (const name of ['grant_code_sealed', 'grant_redirect_uri', 'grant_client_id', 'grant_client_secret_sealed'])
        columns[name] = null
    if (change.client) {
      columns.client_id = change.client.clientId
      columns.client_secret_sealed = seal(key, change.client.clientSecret, context.client_secret_sealed)
    }
    if (change.refreshToken !== undefined)
      columns.refresh_token_sealed =
        change.refreshToken === null ? null : seal(key, change.refreshToken, context.refresh_token_sealed)
    const names = Object.keys(columns)
    const sets = names.map((name, at) => `${name} = $${at + 2}`)
    if (change.accessToken) sets.push('last_refreshed_at = clock_timestamp()')
    await client.query(
      `update oauth_tokens set ${[...sets, 'updated_at = clock_timestamp()'].join(', ')} where user_id = $1`,
      [userId, ...names.map(name => columns[name])],
    )
    if (change.accessToken)
      await client.query(
        `insert into oauth_access_tokens (user_id, access_token_sealed, minted_at, expires_at)
         values ($1, $2, clock_timestamp(), clock_timestamp() + make_interval(secs => $3))
         on conflict (user_id) do update set access_token_sealed = excluded.access_token_sealed,
           minted_at = excluded.minted_at, expires_at = excluded.expires_at`,
        [userId, seal(key, change.accessToken.token, context.access_token_sealed), change.accessToken.lifeMs / 1000],
      )
    else if (change.accessToken === null) await client.query('select forget_access_token($1)', [userId])
  }

  return {
    read: () => select(pool),

    async mintAgesMs() {
      const { rows } = await pool.query<{ age_ms: number }>(
        `select (extract(epoch from clock_timestamp() - minted_at) * 1000)::float8 as age_ms
           from oauth_token_mints where user_id = $1 and minted_at > clock_timestamp() - make_interval(secs => $2)
          order by minted_at desc`,
        [userId, mintWindowMs / 1000],
      )
      return rows.map(row => row.age_ms)
    },

    async exclusively(work) {
      const client = await pool.connect()
      let broken = false
      // the connection may break while the work waits for Zoho; the next query then fails, which is enough
      const onBroken = () => {
        broken = true
      }
      client.on('error', onBroken)
      try {
        await client.query('begin')
        // a statement of its own: joined rows of a statement that waited for a lock are from before the wait
        await client.query('select from oauth_tokens where user_id = $1 for no key update', [userId])
        const result = await work({
          connection: await select(client),
          async recordMint() {
            await pool.query('select record_mint($1)', [userId])
          },
          save: change => save(client, change),
        })
        await client.query('commit')
        return result
      } catch (error) {
        await client.query('rollback').catch(() => {
          broken = true
        })
        throw error
      } finally {
        client.off('error', onBroken)
        client.release(broken)
      }
    },

    async recordToolCalls(batch) {
      // the user is taken from our login; the id counts only for somebody who runs an instance alone, as the owner
      await pool.query('select record_tool_calls($1, $2)', [JSON.stringify(batch), userId])
    },

    close: () => pool.end(),
  }
}

export type LoneUser = {
  username: string
  toolsets: Toolset[]
  readOnly: boolean
  sdp: SdpSettings
}

/**
 * For one person running an instance without a control plane, on a database they own: makes their rows in users,
 * data_keys and oauth_tokens where they are missing, and takes over the credentials given. The rows are what the
 * control plane would make; `wanted = 'stopped'` keeps it from starting a second instance.
 *
 * @returns the user's id and data key
 * @throws SealError the data key was wrapped with another master key
 */
export async function enrollLoneUser(options: {
  /** login of the owner of the schema; migrations have been run */
  database: Boot['database']
  masterKey: SealingKey
  user: LoneUser
  given: GivenCredentials | undefined
}): Promise<{ userId: string; key: SealingKey }> {
  const { user, masterKey, given } = options
  const client = new pg.Client({
    ...options.database,
    application_name: 'sdp-mcp instance',
    connectionTimeoutMillis: 5_000,
    statement_timeout: 20_000,
  })
  client.on('error', () => {})
  await client.connect()
  try {
    await client.query('begin')
    // two processes of one person may start at once
    await client.query('select pg_advisory_xact_lock(hashtext($1))', [`sdp-mcp lone user ${user.username}`])
    const { sdp } = user
    await client.query(
      `insert into users (username, display_name, toolsets, read_only, sdp_data_center, sdp_portal, sdp_base_url, sdp_accounts_url, wanted)
       values ($1, $1, $2, $3, $4, $5, $6, $7, 'stopped') on conflict (username) do nothing`,
      [user.username, user.toolsets, user.readOnly, sdp.dataCenter, sdp.portal, sdp.baseUrl, sdp.accountsUrl],
    )
    const found = await client.query<{ id: string; wrapped_key: string | null }>(
      'select u.id, k.wrapped_key from users u left join data_keys k on k.user_id = u.id where u.username = $1',
      [user.username],
    )
    const { id: userId, wrapped_key: wrapped } = found.rows[0]!
    const wrapContext = sealContext('data_keys', 'wrapped_key', userId)
    let key: SealingKey
    if (wrapped !== null) {
      key = sealingKey(open(masterKey, wrapped, wrapContext))
    } else {
      key = generateSealingKey()
      await client.query('insert into data_keys (user_id, wrapped_key, role_password_sealed) values ($1, $2, $3)', [
        userId,
        seal(masterKey, key.bytes.toString('base64'), wrapContext),
        seal(key, randomBytes(24).toString('hex'), sealContext('data_keys', 'role_password_sealed', userId)),
      ])
    }
    if (given) await takeOver(client, userId, key, user.username, given)
    await client.query('commit')
    return { userId, key }
  } finally {
    await client.end()
  }
}

async function takeOver(
  client: pg.Client,
  userId: string,
  key: SealingKey,
  username: string,
  given: GivenCredentials,
): Promise<void> {
  const context = contexts(userId)
  const { rows } = await client.query<Pick<SealedConnection, 'client_id' | 'client_secret_sealed' | 'state'>>(
    'select client_id, client_secret_sealed, state from oauth_tokens where user_id = $1 for update',
    [userId],
  )
  const before = rows[0]
  const audited = await client.query<{ fingerprint: string }>(
    `select detail->>'fingerprint' as fingerprint from audit_events where user_id = $1 and action = 'connection.credentials-taken'`,
    [userId],
  )
  let clientSecret: string | undefined
  try {
    if (before?.client_secret_sealed)
      clientSecret = open(key, before.client_secret_sealed, context.client_secret_sealed)
  } catch {
    // cannot be opened: the given one replaces it
  }
  const plan = planTakeOver(
    before && { clientId: before.client_id, clientSecret, state: before.state },
    audited.rows.map(row => row.fingerprint),
    given,
  )
  if (plan.startOver) await client.query('delete from oauth_tokens where user_id = $1', [userId])
  await client.query(
    `insert into oauth_tokens (user_id, client_id, client_secret_sealed, state) values ($1, $2, $3, $4)
     on conflict (user_id) do update set client_secret_sealed = excluded.client_secret_sealed, state = excluded.state,
       reason_code = case when oauth_tokens.state = excluded.state then oauth_tokens.reason_code end,
       reason = case when oauth_tokens.state = excluded.state then oauth_tokens.reason end,
       updated_at = now()`,
    [userId, given.clientId, seal(key, given.clientSecret, context.client_secret_sealed), plan.state],
  )
  if (plan.grantCode !== undefined)
    await client.query('update oauth_tokens set grant_code_sealed = $2 where user_id = $1', [
      userId,
      seal(key, plan.grantCode, context.grant_code_sealed),
    ])
  if (plan.refreshToken !== undefined) {
    await client.query('update oauth_tokens set refresh_token_sealed = $2 where user_id = $1', [
      userId,
      seal(key, plan.refreshToken, context.refresh_token_sealed),
    ])
    await client.query('delete from oauth_access_tokens where user_id = $1', [userId])
  }
  for (const taken of [plan.grantCode, plan.refreshToken])
    if (taken !== undefined)
      await client.query(
        `insert into audit_events (actor, action, username, user_id, detail)
         values ('stand-alone instance', 'connection.credentials-taken', $1, $2, jsonb_build_object('fingerprint', $3::text))`,
        [username, userId, fingerprint(taken)],
      )
}
