import { cloneDatabase, type DatabaseConnection } from '@sdp-mcp/migrations/testing'
import { createDb, type Db, type DbOptions } from '../db.ts'
import type { Vault } from '../vault.ts'

/** A migrated database of its own, and the door to it. */
export type TestDatabase = { db: Db; login: DatabaseConnection } & AsyncDisposable

/** For tests that begin with an audit of their own. The test server's superuser may do what the product may not. */
export function emptyAudit(db: Db): Promise<void> {
  return db.withTx(async tx => {
    await tx.query("set local session_replication_role = 'replica'")
    await tx.query('delete from audit_events')
  })
}

/** Takes the database roles of all users away: they belong to the whole server, not to the database that is dropped. */
export async function dismissEverybody(db: Db, vault: Pick<Vault, 'dismiss'>): Promise<void> {
  await db.withTx(async tx => {
    for (const { id } of await tx.query<{ id: string }>('select id from users')) await vault.dismiss(tx, id)
  })
}

/** @param server - `inject('postgres')` of vitest */
export async function openTestDatabase(
  server: DatabaseConnection,
  options: Partial<DbOptions> = {},
): Promise<TestDatabase> {
  const login = await cloneDatabase(server)
  const db = createDb({ ...login, ...options })
  return {
    db,
    login,
    async [Symbol.asyncDispose]() {
      await db.close()
      await login[Symbol.asyncDispose]()
    },
  }
}
