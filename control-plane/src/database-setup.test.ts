import { randomBytes } from 'node:crypto'
import { migrate } from '@sdp-mcp/migrations'
import pg from 'pg'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { keepRetention } from './audit.ts'
import { prepareControlPlaneRole } from './database-setup.ts'
import { createDb, type Db } from './db.ts'
import { silentLog } from './fleet/testing/support.ts'
import { createStatementSigner } from './identity.ts'
import { fixedKeyring } from './keyring.ts'
import { testConfig } from './testing/config.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'
import { createUsers } from './users.ts'
import { createVault } from './vault.ts'

// A control plane that is not the owner of its database can do its work, and nothing beyond.

let database: TestDatabase
let db: Db
const name = `sdpmcp_control_${randomBytes(4).toString('hex')}`
const password = randomBytes(24).toString('hex')
const config = testConfig()

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  await prepareControlPlaneRole(database.db, { name, password })
  db = createDb({ ...database.login, user: name, password })
})
afterAll(async () => {
  await db.close()
  const roles = await database.db.query<{ role: string }>(
    `select 'sdpmcp_u_' || replace(id::text, '-', '') as role from users`,
  )
  for (const { role } of roles) await database.db.query(`drop owned by ${role}; drop role ${role}`)
  await database.db.query(`drop owned by ${name}; drop role ${name}`)
  await database[Symbol.asyncDispose]()
})

const parts = (as: Db) => {
  const keyring = fixedKeyring(config.masterKey)
  const vault = createVault({ db: as, keyring })
  return { keyring, vault, users: createUsers({ db: as, vault, config }) }
}

test('it is neither superuser nor owner, bypasses no policy, and its connections are limited', async () => {
  const [role] = await database.db.query(
    'select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolconnlimit from pg_roles where rolname = $1',
    [name],
  )
  expect(role).toEqual({
    rolsuper: false,
    rolcreaterole: true,
    rolcreatedb: false,
    rolreplication: false,
    rolbypassrls: false,
    rolconnlimit: 200,
  })
  expect(await database.db.query('select 1 from pg_class where relowner = $1::regrole', [name])).toEqual([])
})

test('it adds users whose instances can log in, changes them, issues keys, signs, and removes users with their roles', async () => {
  const { users, vault, keyring } = parts(db)
  const { userId } = await users.create(
    { username: 'alice', sdp: { clientId: 'c', clientSecret: 'secret-of-a-client', grantCode: 'code' } },
    'admin',
  )
  const login = { ...database.login, ...(await vault.databaseLogin(userId)) }
  const instance = new pg.Client(login)
  await instance.connect()
  expect((await instance.query('select client_id from oauth_tokens')).rows).toEqual([{ client_id: 'c' }])
  await instance.query(`update oauth_tokens set state = 'connected'`)
  await instance.query('select record_tool_calls($1)', [JSON.stringify([{ tool: 'get_request', outcome: 'ok' }])])
  await instance.end()

  await users.change('alice', { displayName: 'Alice', sdp: { clientId: 'd', clientSecret: 'another-secret' } }, 'admin')
  const key = await users.issueKey('alice', {}, 'admin', Date.now())
  await users.revokeKey('alice', key.id, 'admin')
  await createStatementSigner({ db, keyring, now: Date.now }).statement(
    { userId, username: 'alice', generation: 1 },
    'mcp',
  )
  const retention = keepRetention({ db, days: 30, log: silentLog })
  expect(await retention.run()).toBe(0)
  await retention.close()

  await users.erase(await users.remove('alice', 'admin'))
  expect(await database.db.query('select 1 from pg_roles where rolname = $1', [login.user])).toEqual([])
  const actions = await db.query<{ action: string }>("select action from audit_events where username = 'alice'")
  expect(actions.map(({ action }) => action)).toEqual(
    expect.arrayContaining(['user.created', 'tool.called', 'user.erased']),
  )
})

test('it takes turns with other control planes, and can be the one that leads and ends what an instance holds up', async () => {
  const other = createDb({ ...database.login, user: name, password })
  const leads = await Promise.all([db, other].map(one => one.lead('test', () => {})))
  expect(leads.map(one => one.leading()).sort()).toEqual([false, true])
  await Promise.all(leads.map(one => one.close()))
  expect(await other.withLock('test', async () => 'held')).toBe('held')
  expect(await db.query('select * from end_instance_transactions(1)')).toEqual([])
  await other.close()
})

test('it removes users that the owner had added before, after the set-up was repeated', async () => {
  const { userId } = await parts(database.db).users.create({ username: 'earlier' }, 'admin')
  await Promise.all([1, 2, 3].map(() => prepareControlPlaneRole(database.db, { name, password })))
  const { users, vault } = parts(db)
  const { user } = await vault.databaseLogin(userId)
  await users.erase(await users.remove('earlier', 'admin'))
  expect(await database.db.query('select 1 from pg_roles where rolname = $1', [user])).toEqual([])
})

test('it cannot change, delete or empty the audit, or lift what protects it', async () => {
  for (const sql of [
    `update audit_events set actor = 'nobody'`,
    'delete from audit_events',
    'truncate audit_events',
    'alter table audit_events disable trigger all',
    'drop trigger audit_events_stay on audit_events',
    "set session_replication_role = 'replica'",
    `select set_config('sdp_mcp.audit_retention', 'on', false); delete from audit_events`,
    'create or replace function audit_forget(integer, integer) returns integer language sql as $$ select 1 $$',
    'alter table oauth_tokens disable row level security',
    'alter table users add column x text',
    'create table public.mine (x integer)',
    'drop table users',
    'create role evil superuser',
    `alter role ${database.login.user} password 'known'`,
    `set role ${database.login.user}`,
    "select pg_read_file('/etc/passwd')",
    "copy users to program 'cat'",
  ])
    await expect(db.query(sql), sql).rejects.toMatchObject({ code: expect.stringMatching(/^(42501|42809|0A000)$/) })
  await expect(db.query('select audit_forget(1)')).rejects.toMatchObject({ code: '23514' })
})

test('it may ask whether the schema is up to date, and is told when it is not', async () => {
  const login = { ...database.login, user: name, password }
  expect(await migrate(login)).toEqual([])
  await database.db.query("delete from schema_migrations where name = '0001_init'")
  await expect(migrate(login)).rejects.toThrow()
  await database.db.query("insert into schema_migrations (name, run_on) values ('0001_init', now())")
})
