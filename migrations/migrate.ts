import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { runner } from 'node-pg-migrate'
import type { ClientConfig } from 'pg'

const sourceFolder = dirname(fileURLToPath(import.meta.url))

/**
 * Brings a database to the schema of this version: applies the numbered SQL files that it lacks, each in a
 * transaction of its own, under one advisory lock. Twenty processes may call it at once; one works, the others wait.
 *
 * @param options.folder - where the SQL files are; a bundle passes its own copy
 * @param options.log - told of each applied file
 * @returns names of the files applied now, oldest first
 */
export async function migrate(
  connection: ClientConfig,
  options: { folder?: string; log?: (message: string) => void } = {},
): Promise<string[]> {
  const applied = await runner({
    databaseUrl: connection,
    dir: `${options.folder ?? sourceFolder}/*.sql`,
    useGlob: true,
    direction: 'up',
    migrationsTable: 'schema_migrations',
    advisoryLockMode: 'wait',
    // a newer version may already have run files this one does not know: they only add
    checkOrder: false,
    log: () => {},
  })
  for (const { name } of applied) options.log?.(`applied migration ${name}`)
  return applied.map(({ name }) => name)
}
