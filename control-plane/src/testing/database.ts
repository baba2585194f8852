import { cloneDatabase, type DatabaseConnection } from '@sdp-mcp/migrations/testing'
import { createDb, type Db, type DbOptions } from '../db.ts'

/** A migrated database of its own, and the door to it. */
export type TestDatabase = { db: Db; login: DatabaseConnection } & AsyncDisposable

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
