import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'
import { databaseRole, sealContext } from '@sdp-mcp/instance/contract'
import { generateSealingKey, open, SealError, type SealingKey, seal, sealingKey } from '@sdp-mcp/instance/seal'
import type { Db, Queryable } from './db.ts'
import { AppError } from './errors.ts'

/**
 * Owns table data_keys and the database roles of the instances: each user has a data key, wrapped by the master key,
 * and a database role whose password is sealed with that data key.
 */
export interface Vault {
  /** Makes the data key and the database role of a new user, in the user's own transaction. */
  enroll(tx: Queryable, userId: string): Promise<SealingKey>
  /** @throws AppError `key-unknown` when it was wrapped with a master key that is not configured */
  dataKey(userId: string, tx?: Queryable): Promise<SealingKey>
  databaseLogin(userId: string): Promise<{ user: string; password: string }>
  /** Drops the database role; the data key goes with the user's row. */
  dismiss(tx: Queryable, userId: string): Promise<void>
}

const connectionsPerInstance = 6 // two pools of two while one container replaces another, and two to spare

export function createVault({ db, masterKey }: { db: Db; masterKey: SealingKey }): Vault {
  const wrapContext = (userId: string) => sealContext('data_keys', 'wrapped_key', userId)
  const passwordContext = (userId: string) => sealContext('data_keys', 'role_password_sealed', userId)

  async function load(userId: string, tx: Queryable) {
    const [row] = await tx.query<{ wrapped_key: string; role_password_sealed: string }>(
      'select wrapped_key, role_password_sealed from data_keys where user_id = $1',
      [userId],
    )
    if (!row) throw new AppError('user-not-found', 'There is no such user. List the users with GET /v1/users.')
    return {
      key: sealingKey(openStored(masterKey, row.wrapped_key, wrapContext(userId))),
      passwordSealed: row.role_password_sealed,
    }
  }

  return {
    async enroll(tx, userId) {
      const key = generateSealingKey()
      const password = randomBytes(24).toString('hex')
      await tx.query('insert into data_keys (user_id, wrapped_key, role_password_sealed) values ($1, $2, $3)', [
        userId,
        seal(masterKey, key.bytes.toString('base64'), wrapContext(userId)),
        seal(key, password, passwordContext(userId)),
      ])
      // role names and passwords are ours (hex digits), and DDL takes no parameters
      await tx.query(
        `create role ${databaseRole(userId)} login password '${scramVerifier(password)}' connection limit ${connectionsPerInstance} in role sdpmcp_instance`,
      )
      return key
    },

    async dataKey(userId, tx = db) {
      return (await load(userId, tx)).key
    },

    async databaseLogin(userId) {
      const { key, passwordSealed } = await load(userId, db)
      return { user: databaseRole(userId), password: openStored(key, passwordSealed, passwordContext(userId)) }
    },

    async dismiss(tx, userId) {
      const role = databaseRole(userId)
      const [found] = await tx.query('select 1 from pg_roles where rolname = $1', [role])
      if (!found) return
      // a role that owns something cannot be dropped, and a misused one could make temporary tables or large objects;
      // an owner of the database that is no superuser must be a member first
      await tx.query(`grant ${role} to current_user`)
      await tx.query(`drop owned by ${role}`)
      // a role that is still logged in can be dropped; its sessions lose their rights at once
      await tx.query(`drop role ${role}`)
    },
  }
}

/**
 * Opens what stands sealed in our own tables.
 * @param context - see {@link sealContext}; the table in it is named in the error
 * @throws AppError `key-unknown`
 */
export function openStored(key: SealingKey, sealed: string, context: string): string {
  try {
    return open(key, sealed, context)
  } catch (error) {
    if (!(error instanceof SealError)) throw error
    const [table] = context.split('.')
    throw new AppError(
      'key-unknown',
      error.kind === 'unknown-key'
        ? `A secret in table ${table} was sealed with another master key. Start the control plane with the master key it had at that time (SDP_MASTER_KEY or SDP_MASTER_KEY_FILE).`
        : `A secret in table ${table} was altered. Restore the table from a backup.`,
      { cause: error },
    )
  }
}

/**
 * The form in which PostgreSQL stores a SCRAM password (RFC 5802, RFC 7677). Sending it in place of the password keeps
 * the password out of the server's statement log.
 */
function scramVerifier(password: string): string {
  const salt = randomBytes(16)
  const iterations = 4096
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256')
  const hmac = (text: string) => createHmac('sha256', salted).update(text).digest()
  const storedKey = createHash('sha256').update(hmac('Client Key')).digest('base64')
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${storedKey}:${hmac('Server Key').toString('base64')}`
}
