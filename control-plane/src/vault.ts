import { randomBytes } from 'node:crypto'
import { databaseRole, sealContext } from '@sdp-mcp/instance/contract'
import { generateSealingKey, type SealingKey, seal, sealingKey } from '@sdp-mcp/instance/seal'
import { scramVerifier } from './database-setup.ts'
import type { Db, Queryable } from './db.ts'
import { AppError } from './errors.ts'
import { type Keyring, openStored } from './keyring.ts'

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
  /**
   * Makes the database roles that are missing, as they all are after a dump was restored into another cluster: a dump
   * holds no roles. Any number of control planes may do it at once.
   * @returns ids of users: those whose role was made, and those whose data key no configured master key opens
   */
  restoreRoles(): Promise<{ made: string[]; unopened: string[] }>
  /** Drops the database role; the data key goes with the user's row. */
  dismiss(tx: Queryable, userId: string): Promise<void>
  /**
   * Wraps a batch of data keys with the current master key, in a transaction of its own.
   * @param after - where the batch before ended
   */
  rewrap(after: string | null, limit: number): Promise<Rewrapped>
}

export type Rewrapped = {
  rewrapped: number
  /** ids of rows whose key is not configured; they stay as they are */
  unopened: string[]
  /** where the next batch begins; null: this was the last one */
  last: string | null
}

const connectionsPerInstance = 6 // two pools of two while one container replaces another, and two to spare

export function createVault({ db, keyring }: { db: Db; keyring: Keyring }): Vault {
  const wrapContext = (userId: string) => sealContext('data_keys', 'wrapped_key', userId)
  const passwordContext = (userId: string) => sealContext('data_keys', 'role_password_sealed', userId)

  async function load(userId: string, tx: Queryable) {
    const [row] = await tx.query<{ wrapped_key: string; role_password_sealed: string }>(
      'select wrapped_key, role_password_sealed from data_keys where user_id = $1',
      [userId],
    )
    if (!row) throw new AppError('user-not-found', 'There is no such user. List the users with GET /v1/users.')
    return {
      key: sealingKey(openStored(keyring.all(), row.wrapped_key, wrapContext(userId))),
      passwordSealed: row.role_password_sealed,
    }
  }

  async function databaseLogin(userId: string) {
    const { key, passwordSealed } = await load(userId, db)
    return { user: databaseRole(userId), password: openStored(key, passwordSealed, passwordContext(userId)) }
  }

  return {
    async enroll(tx, userId) {
      const key = generateSealingKey()
      const password = randomBytes(24).toString('hex')
      await tx.query('insert into data_keys (user_id, wrapped_key, role_password_sealed) values ($1, $2, $3)', [
        userId,
        seal(keyring.current(), key.bytes.toString('base64'), wrapContext(userId)),
        seal(key, password, passwordContext(userId)),
      ])
      await makeRole(tx, userId, password)
      return key
    },

    async dataKey(userId, tx = db) {
      return (await load(userId, tx)).key
    },

    databaseLogin,

    async restoreRoles() {
      const missing = await db.query<{ user_id: string }>(
        `select user_id from data_keys
          where not exists (select 1 from pg_roles where rolname = 'sdpmcp_u_' || replace(user_id::text, '-', ''))
          order by user_id`,
      )
      const made: string[] = []
      const unopened: string[] = []
      for (const { user_id: userId } of missing) {
        let password: string
        try {
          password = (await databaseLogin(userId)).password
        } catch (error) {
          // removed meanwhile
          if (error instanceof AppError && error.code === 'user-not-found') continue
          unopened.push(userId)
          continue
        }
        await makeRole(db, userId, password).then(
          () => made.push(userId),
          (error: { code?: string }) => {
            if (!isMadeElsewhere(error.code)) throw error
          },
        )
      }
      return { made, unopened }
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

    async rewrap(after, limit) {
      const current = keyring.current()
      return db.withTx(async tx => {
        const rows = await tx.query<{ user_id: string; wrapped_key: string }>(
          `select user_id, wrapped_key from data_keys
            where split_part(wrapped_key, '.', 2) <> $1 and ($2::uuid is null or user_id > $2)
            order by user_id limit $3 for no key update`,
          [current.id, after, limit],
        )
        const unopened: string[] = []
        for (const { user_id: userId, wrapped_key: wrapped } of rows) {
          const context = wrapContext(userId)
          let material: string
          try {
            material = openStored(keyring.all(), wrapped, context)
          } catch {
            unopened.push(userId)
            continue
          }
          await tx.query('update data_keys set wrapped_key = $2 where user_id = $1', [
            userId,
            seal(current, material, context),
          ])
        }
        return {
          rewrapped: rows.length - unopened.length,
          unopened,
          last: rows.length < limit ? null : rows.at(-1)!.user_id,
        }
      })
    },
  }
}

/** Role names and passwords are ours (hex digits), and DDL takes no parameters. */
async function makeRole(tx: Queryable, userId: string, password: string): Promise<void> {
  await tx.query(
    `create role ${databaseRole(userId)} login password '${scramVerifier(password)}' connection limit ${connectionsPerInstance} in role sdpmcp_instance`,
  )
}

/** duplicate_object, or unique_violation when both were at it at the same time (PostgreSQL, appendix A) */
const isMadeElsewhere = (code: string | undefined) => code === '42710' || code === '23505'
