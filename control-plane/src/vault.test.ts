import { databaseRole } from '@sdp-mcp/instance/contract'
import { generateSealingKey } from '@sdp-mcp/instance/seal'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { eventually } from './fleet/testing/support.ts'
import { fixedKeyring } from './keyring.ts'
import { dismissEverybody, openTestDatabase, type TestDatabase } from './testing/database.ts'
import { createVault } from './vault.ts'

const masterKey = generateSealingKey()
let database: TestDatabase
let vault: ReturnType<typeof createVault>
const clients: pg.Client[] = []

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  vault = createVault({ db: database.db, keyring: fixedKeyring(masterKey) })
})
afterEach(async () => {
  await Promise.all(clients.splice(0).map(client => client.end()))
})
afterAll(async () => {
  if (!database) return
  await dismissEverybody(database.db, vault)
  await database[Symbol.asyncDispose]()
})

/** A user with an OAuth row, an access token and a counted mint. */
async function enroll(username: string): Promise<string> {
  return database.db.withTx(async tx => {
    const [row] = await tx.query<{ id: string }>(
      'insert into users (username, display_name) values ($1, $1) returning id',
      [username],
    )
    const { id } = row!
    await vault.enroll(tx, id)
    await tx.query('insert into api_keys (user_id, prefix, hash) values ($1, $2, sha256($3::bytea))', [
      id,
      'sdpmcp_',
      id,
    ])
    await tx.query("insert into oauth_tokens (user_id, client_id, refresh_token_sealed) values ($1, 'client', $2)", [
      id,
      `sealed-refresh-token-of-${username}`,
    ])
    await tx.query("insert into oauth_access_tokens values ($1, $2, now(), now() + interval '1 hour')", [
      id,
      `sealed-access-token-of-${username}`,
    ])
    await tx.query('insert into oauth_token_mints (user_id) values ($1)', [id])
    return id
  })
}

/** A connection as the user's instance makes it. */
async function login(userId: string): Promise<pg.Client> {
  const client = new pg.Client({ ...database.login, ...(await vault.databaseLogin(userId)) })
  client.on('error', () => {})
  await client.connect()
  clients.push(client)
  return client
}

const tables = {
  oauth_tokens: { update: true },
  oauth_access_tokens: { update: true },
  oauth_token_mints: { update: false },
}

describe('the database role of an instance', () => {
  test('logs in with the stored password, and with no other', async () => {
    const id = await enroll('login')
    const client = await login(id)
    expect((await client.query('select current_user as name')).rows).toEqual([{ name: databaseRole(id) }])
    const wrong = new pg.Client({ ...database.login, user: databaseRole(id), password: 'guess' })
    await expect(wrong.connect()).rejects.toMatchObject({ code: '28P01' })
  })

  test('is made again, by whoever starts first, when a dump was restored into a cluster without it', async () => {
    const [lost, kept] = [await enroll('lost-role'), await enroll('kept-role')]
    await database.db.query(`drop role ${databaseRole(lost)}`)
    const { password } = await vault.databaseLogin(lost)
    const all = await Promise.all([vault.restoreRoles(), vault.restoreRoles(), vault.restoreRoles()])
    expect(all.flatMap(({ made }) => made)).toEqual([lost])
    expect(all.flatMap(({ unopened }) => unopened)).toEqual([])
    expect(await vault.databaseLogin(lost)).toEqual({ user: databaseRole(lost), password })
    const rows = async (client: pg.Client) => (await client.query('select user_id from oauth_tokens')).rows
    expect(await rows(await login(lost))).toEqual([{ user_id: lost }])
    expect(await rows(await login(kept))).toEqual([{ user_id: kept }])
    expect(await vault.restoreRoles()).toEqual({ made: [], unopened: [] })
  })

  test('stays missing, and is told, when no configured master key opens its password', async () => {
    const id = await enroll('other-master-key')
    await database.db.query(`drop role ${databaseRole(id)}`)
    const stranger = createVault({ db: database.db, keyring: fixedKeyring(generateSealingKey()) })
    expect(await stranger.restoreRoles()).toEqual({ made: [], unopened: [id] })
    expect((await vault.restoreRoles()).made).toEqual([id])
  })

  test('is bound by its number of connections and has no right beyond logging in', async () => {
    const id = await enroll('modest')
    const [role] = await database.db.query(
      'select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin, rolconnlimit from pg_roles where rolname = $1',
      [databaseRole(id)],
    )
    expect(role).toEqual({
      rolsuper: false,
      rolcreaterole: false,
      rolcreatedb: false,
      rolreplication: false,
      rolbypassrls: false,
      rolcanlogin: true,
      rolconnlimit: 6,
    })
  })

  test.each(Object.entries(tables))('sees and changes in %s only rows of its own user', async (table, may) => {
    const [alice, bob] = await Promise.all([
      enroll(`a-${table.replaceAll('_', '-')}`),
      enroll(`b-${table.replaceAll('_', '-')}`),
    ])
    const client = await login(alice)
    const rows = async (sql: string) => (await client.query(sql)).rowCount
    const before = await snapshot(bob)

    // reading
    expect((await client.query(`select user_id from ${table}`)).rows.map(row => row.user_id)).toEqual([alice])
    expect(await rows(`select 1 from ${table} where user_id = '${bob}'`)).toBe(0)
    expect((await client.query(`select count(*)::integer as count from ${table}`)).rows).toEqual([{ count: 1 }])
    expect(await rows(`copy ${table} to stdout`)).toBe(1)

    // changing
    const column = {
      oauth_tokens: 'reason',
      oauth_access_tokens: 'access_token_sealed',
      oauth_token_mints: 'minted_at',
    }[table]
    const update = `update ${table} set ${column} = ${column} where user_id = '${bob}'`
    if (may.update) {
      expect(await rows(update)).toBe(0)
      expect(await rows(`update ${table} set ${column} = ${column}`)).toBe(1)
      // giving one's row to somebody else
      await expect(client.query(`update ${table} set user_id = '${bob}'`)).rejects.toMatchObject({ code: '42501' })
    } else await expect(client.query(update)).rejects.toMatchObject({ code: '42501' })

    // adding
    const insert = {
      oauth_tokens: `insert into oauth_tokens (user_id, client_id) values ('${bob}', 'evil')`,
      oauth_access_tokens: `insert into oauth_access_tokens values ('${bob}', 'evil', now(), now())
        on conflict (user_id) do update set access_token_sealed = 'evil'`,
      oauth_token_mints: `insert into oauth_token_mints (user_id) values ('${bob}')`,
    }[table]!
    await expect(client.query(insert)).rejects.toMatchObject({ code: '42501' })

    // deleting: only through functions, instance-transactions.test.ts
    await expect(client.query(`delete from ${table}`)).rejects.toMatchObject({ code: '42501' })
    await expect(client.query(`truncate ${table}`)).rejects.toMatchObject({ code: '42501' })

    expect(await snapshot(bob)).toEqual(before)
  })

  test('reaches no other table at all', async () => {
    const client = await login(await enroll('curious'))
    const others = await database.db.query<{ name: string }>(
      `select table_name as name from information_schema.tables
        where table_schema = 'public' and table_name <> all($1) order by 1`,
      [Object.keys(tables)],
    )
    expect(others.map(row => row.name)).toEqual(
      expect.arrayContaining([
        'api_keys',
        'audit_events',
        'data_keys',
        'instances',
        'schema_migrations',
        'signing_keys',
        'users',
      ]),
    )
    for (const { name } of others)
      for (const sql of [`select 1 from ${name}`, `delete from ${name}`, `insert into ${name} default values`])
        await expect(client.query(sql), sql).rejects.toMatchObject({ code: '42501' })
  })

  test('cannot become anybody else, or loosen what holds it', async () => {
    const [alice, bob] = await Promise.all([enroll('climber'), enroll('target')])
    const client = await login(alice)
    for (const sql of [
      `set role ${databaseRole(bob)}`,
      `set role ${database.login.user}`,
      `set session authorization ${databaseRole(bob)}`,
      `grant ${databaseRole(bob)} to ${databaseRole(alice)}`,
      `alter role ${databaseRole(bob)} password 'known'`,
      'alter table oauth_tokens disable row level security',
      'drop policy own_row on oauth_tokens',
      'create policy mine on oauth_tokens using (true)',
      'create table public.mine (x integer)',
      'create role helper',
      `comment on table oauth_tokens is 'mine'`,
    ])
      await expect(client.query(sql), sql).rejects.toThrow()
    // as the group it belongs to, it is nobody's instance
    await client.query('set role sdpmcp_instance')
    expect((await client.query('select * from oauth_tokens')).rows).toEqual([])
  })

  test('cannot read a row of another user through an error, a function of its own or a leaky operator', async () => {
    const [alice, bob] = await Promise.all([enroll('leaky'), enroll('leaked')])
    const client = await login(alice)
    const seen: string[] = []
    client.on('notice', notice => seen.push(notice.message ?? ''))
    await client.query(
      `create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as $$ begin raise notice '%', $1; return true; end $$`,
    )
    await client.query('select 1 from oauth_tokens where pg_temp.leak(refresh_token_sealed)')
    const failure = await client
      .query('select 1 from oauth_tokens where refresh_token_sealed::integer = 1')
      .catch(error => String(error.message))
    expect(seen).toEqual(['sealed-refresh-token-of-leaky'])
    expect(failure).not.toContain('leaked')
    expect(await snapshot(bob)).toMatchObject({ tokens: 1 })
  })

  test('is gone with its user, even if it left things behind, and its open connections can do nothing any more', async () => {
    const id = await enroll('leaving')
    const client = await login(id)
    await client.query('create temporary table left_behind (x integer)')
    // as in a database whose owner could not take that right away
    await database.db.query(`grant execute on function lo_create(oid) to ${databaseRole(id)}`)
    await client.query('select lo_create(0)')
    await database.db.withTx(async tx => {
      await tx.query('delete from users where id = $1', [id])
      await vault.dismiss(tx, id)
    })
    expect(await database.db.query('select 1 from pg_roles where rolname = $1', [databaseRole(id)])).toEqual([])
    await expect(client.query('select * from oauth_tokens')).rejects.toThrow()
  })

  test('dismissing a user that never had a role is no failure', async () => {
    await database.db.withTx(tx => vault.dismiss(tx, '00000000-0000-4000-8000-000000000000'))
  })

  test('is not made when its user is not', async () => {
    const id = '11111111-1111-4111-8111-111111111111'
    const failing = database.db.withTx(async tx => {
      await tx.query("insert into users (id, username, display_name) values ($1, 'unmade', 'x')", [id])
      await vault.enroll(tx, id)
      throw new Error('no')
    })
    await expect(failing).rejects.toThrow('no')
    expect(await database.db.query('select 1 from pg_roles where rolname = $1', [databaseRole(id)])).toEqual([])
  })
})

describe('the keys', () => {
  test('each user has a data key of its own, stored only wrapped, and its password only sealed', async () => {
    const [alice, bob] = await Promise.all([enroll('key-alice'), enroll('key-bob')])
    const [one, two] = await Promise.all([vault.dataKey(alice), vault.dataKey(bob)])
    expect(one.id).not.toBe(two.id)
    const { password } = await vault.databaseLogin(alice)
    const [row] = await database.db.query('select * from data_keys where user_id = $1', [alice])
    const text = JSON.stringify(row)
    expect(text).not.toContain(password)
    expect(text).not.toContain(one.bytes.toString('base64'))
    expect(row!.wrapped_key).toMatch(new RegExp(`^v1\\.${masterKey.id}\\.`))
    expect(row!.role_password_sealed).toMatch(new RegExp(`^v1\\.${one.id}\\.`))
  })

  test('the password never stands in a statement the server could log', async () => {
    const statements: string[] = []
    await database.db
      .withTx(async tx => {
        const [row] = await tx.query<{ id: string }>(
          "insert into users (username, display_name) values ('logged', 'x') returning id",
        )
        const { id } = row!
        await vault.enroll(
          {
            query: (sql, values) => {
              statements.push(sql)
              return tx.query(sql, values)
            },
          },
          id,
        )
        statements.push((await vault.dataKey(id, tx)).bytes.toString('base64'))
        throw new Error('undo')
      })
      .catch(() => {})
    expect(statements.join()).toContain('SCRAM-SHA-256$4096:')
    expect(statements.join()).not.toMatch(/[0-9a-f]{48}/)
  })

  test('another master key opens nothing and says which one is needed', async () => {
    const id = await enroll('other-master')
    const other = createVault({ db: database.db, keyring: fixedKeyring(generateSealingKey()) })
    for (const failing of [() => other.dataKey(id), () => other.databaseLogin(id)])
      await expect(failing()).rejects.toMatchObject({
        code: 'key-unknown',
        status: 500,
        message: expect.stringContaining('SDP_MASTER_KEY'),
      })
  })

  test('an altered or swapped row is told as such', async () => {
    const [alice, bob] = await Promise.all([enroll('swap-alice'), enroll('swap-bob')])
    await database.db.query(
      'update data_keys set wrapped_key = (select wrapped_key from data_keys where user_id = $2) where user_id = $1',
      [alice, bob],
    )
    await expect(vault.dataKey(alice)).rejects.toMatchObject({
      code: 'key-unknown',
      message: expect.stringContaining('was altered'),
    })
    await database.db.query(
      'update data_keys set role_password_sealed = (select role_password_sealed from data_keys where user_id = $2) where user_id = $1',
      [bob, alice],
    )
    await expect(vault.databaseLogin(bob)).rejects.toMatchObject({ code: 'key-unknown' })
  })

  test('a user that does not exist has no key', async () => {
    await expect(vault.dataKey('00000000-0000-4000-8000-000000000000')).rejects.toMatchObject({
      code: 'user-not-found',
    })
  })

  test('thirty users can be enrolled at once', async () => {
    const ids = await Promise.all([...Array(30)].map((_, index) => enroll(`crowd-${index}`)))
    await eventually('all can log in', async () => (await Promise.all(ids.slice(0, 5).map(login))).length === 5)
    expect(new Set(ids).size).toBe(30)
  })
})

async function snapshot(userId: string) {
  const [row] = await database.db.query<Record<string, unknown>>(
    `select (select count(*)::integer from oauth_tokens where user_id = $1) as tokens,
            (select string_agg(t::text, ',') from oauth_tokens t where user_id = $1) as token_row,
            (select string_agg(t::text, ',') from oauth_access_tokens t where user_id = $1) as access_row,
            (select string_agg(t::text, ',') from oauth_token_mints t where user_id = $1) as mint_rows`,
    [userId],
  )
  return row!
}
