import { readdir } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PG_MIGRATE_LOCK_ID, runner } from 'node-pg-migrate'
import pg, { type ClientConfig } from 'pg'

const sourceFolder = dirname(fileURLToPath(import.meta.url))

/**
 * Who waits for a table holds up everybody who comes after: behind a transaction that does not end, a file gives up, and
 * the next start tries it again.
 */
const lockTimeoutSeconds = 30

/**
 * Brings a database to the schema of this version: applies the numbered SQL files that it lacks, each in a
 * transaction of its own, under one advisory lock. Twenty processes may call it at once; one works, the others wait.
 *
 * When nothing is to do it only looks, so that a role which owns nothing may call it.
 *
 * @param options.folder - where the SQL files are; a bundle passes its own copy
 * @param options.log - told of each applied file
 * @returns names of the files applied now, oldest first
 */
export async function migrate(
  connection: ClientConfig,
  options: { folder?: string; log?: (message: string) => void } = {},
): Promise<string[]> {
  const folder = options.folder ?? sourceFolder
  if (await isUpToDate(connection, folder)) return []
  const applied = await withClient(connection, async dbClient => {
    // taken here and not by the runner, because this wait may be long; the end of the connection gives it back
    await dbClient.query('select pg_advisory_lock($1)', [PG_MIGRATE_LOCK_ID])
    await dbClient.query(`set lock_timeout = '${lockTimeoutSeconds}s'`)
    return runner({
      dbClient,
      dir: `${folder}/*.sql`,
      useGlob: true,
      direction: 'up',
      migrationsTable: 'schema_migrations',
      noLock: true,
      // a newer version may already have run files this one does not know: they only add
      checkOrder: false,
      log: () => {},
    })
  })
  for (const { name } of applied) options.log?.(`applied migration ${name}`)
  return applied.map(({ name }) => name)
}

function isUpToDate(connection: ClientConfig, folder: string): Promise<boolean> {
  return withClient(connection, async client => {
    const { rows: found } = await client.query("select to_regclass('schema_migrations') is not null as there")
    if (!found[0].there) return false
    const { rows } = await client.query<{ name: string }>('select name from schema_migrations')
    const applied = new Set(rows.map(row => row.name))
    const files = (await readdir(folder)).filter(name => name.endsWith('.sql'))
    return files.every(name => applied.has(name.slice(0, -'.sql'.length)))
  })
}

/** A connection of its own, closed when this returns: the runner does not wait for the end of one that it makes. */
async function withClient<T>(connection: ClientConfig, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client(connection)
  // a connection that breaks fails the query, which is told; without a listener it would end the process
  client.on('error', () => {})
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}
