import { readdirSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { expect, inject, test } from 'vitest'
import { migrate } from './migrate.ts'
import { cloneDatabase } from './testing.ts'

const tables = 'select table_name from information_schema.tables where table_schema = current_schema() order by 1'

test('twenty processes migrating an empty database at once apply each file exactly once', async () => {
  const server = inject('postgres')
  await using empty = await cloneDatabase(server)
  const admin = new pg.Client({ ...empty })
  await admin.connect()
  await admin.query('drop schema public cascade; create schema public')
  const runs = await Promise.all(Array.from({ length: 20 }, () => migrate({ ...empty })))
  const files = readdirSync(import.meta.dirname).filter(name => /^\d{4}_.*\.sql$/.test(name))
  expect(runs.flat().sort()).toEqual(files.map(name => name.replace(/\.sql$/, '')).sort())
  const { rows } = await admin.query<{ table_name: string }>(tables)
  expect(rows.map(row => row.table_name)).toContain('oauth_tokens')
  // what a role may do that is granted nothing: no temporary tables, no advisory locks, no large objects
  await admin.query('set role sdpmcp_instance')
  await expect(admin.query('create temporary table loot (a text)')).rejects.toMatchObject({ code: '42501' })
  await expect(admin.query('select pg_try_advisory_lock(1)')).rejects.toMatchObject({ code: '42501' })
  await expect(admin.query('select lo_create(0)')).rejects.toMatchObject({ code: '42501' })
  await admin.end()
})

test('migrating again changes nothing', async () => {
  await using database = await cloneDatabase(inject('postgres'))
  expect(await migrate({ ...database })).toEqual([])
})

test('a database that a newer version has migrated is left alone by an older one', async () => {
  await using database = await cloneDatabase(inject('postgres'))
  const client = new pg.Client({ ...database })
  await client.connect()
  await client.query("insert into schema_migrations (name, run_on) values ('9999_of_a_newer_version', now())")
  await client.end()
  expect(await migrate({ ...database })).toEqual([])
})

test('a file waits for a table for thirty seconds at most', async () => {
  await using database = await cloneDatabase(inject('postgres'))
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-migrations-'))
  const sql = "create table waiting as select current_setting('lock_timeout') as longest"
  await writeFile(join(folder, '9998_tell_how_long.sql'), sql)
  expect(await migrate({ ...database }, { folder })).toEqual(['9998_tell_how_long'])
  const client = new pg.Client({ ...database })
  await client.connect()
  expect((await client.query('select longest from waiting')).rows).toEqual([{ longest: '30s' }])
  await client.end()
  await rm(folder, { recursive: true })
})
