import { setTimeout as delay } from 'node:timers/promises'
import { databaseRole } from '@sdp-mcp/instance/contract'
import pg from 'pg'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { prepareControlPlaneRole } from './database-setup.ts'
import { createDb, type Db } from './db.ts'
import { silentLog } from './fleet/testing/support.ts'
import { watchInstanceTransactions } from './instance-transactions.ts'
import { fixedKeyring } from './keyring.ts'
import { testConfig } from './testing/config.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'
import { createUsers } from './users.ts'
import { createVault } from './vault.ts'

// Somebody holds the login of alice's instance. How much of the database can be held up with it?

let database: TestDatabase
let db: Db
let alice: { user: string; password: string }
let ids: { alice: string; bob: string }
const control = { name: `sdpmcp_control_${process.pid}`, password: 'a-password-of-the-control-plane' }

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  await prepareControlPlaneRole(database.db, control)
  db = createDb({ ...database.login, user: control.name, password: control.password })
  const config = testConfig()
  const vault = createVault({ db, keyring: fixedKeyring(config.masterKey) })
  const users = createUsers({ db, vault, config })
  const add = async (username: string) =>
    (await users.create({ username, sdp: { clientId: 'c', clientSecret: 'secret-of-a-client' } }, 'admin')).userId
  ids = { alice: await add('alice'), bob: await add('bob') }
  alice = await vault.databaseLogin(ids.alice)
})
afterAll(async () => {
  await db.close()
  for (const id of Object.values(ids))
    await database.db.query(`drop owned by ${databaseRole(id)}; drop role ${databaseRole(id)}`)
  await database.db.query(`drop owned by ${control.name}; drop role ${control.name}`)
  await database[Symbol.asyncDispose]()
})

/** A session of alice's role, told of its end. */
async function steal() {
  const client = new pg.Client({ ...database.login, ...alice })
  let ended = false
  client.on('error', () => {
    ended = true
  })
  await client.connect()
  return { query: (sql: string) => client.query(sql), ended: () => ended, end: () => client.end().catch(() => {}) }
}

const strongModes = [
  'row share',
  'row exclusive',
  'share update exclusive',
  'share',
  'share row exclusive',
  'exclusive',
  'access exclusive',
]

test('the role of an instance can lock no relation of the database beyond reading it', async () => {
  const thief = await steal()
  const { rows } = await thief.query(
    `select format('%I.%I', n.nspname, c.relname) as name
       from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v') order by 1`,
  )
  expect(rows.map(row => row.name)).toEqual(
    expect.arrayContaining(['public.oauth_tokens', 'public.users', 'pg_catalog.pg_settings', 'pg_catalog.pg_authid']),
  )
  const locked: string[] = []
  for (const { name } of rows)
    for (const mode of strongModes) {
      await thief.query('begin')
      await thief.query(`lock table ${name} in ${mode} mode nowait`).then(
        () => locked.push(`${name} ${mode}`),
        () => {},
      )
      await thief.query('rollback')
    }
  // what it may do, so that the test is known to look
  await thief.query('begin')
  await thief.query('lock table oauth_tokens in access share mode nowait')
  await thief.query('rollback')
  await thief.end()
  expect(locked).toEqual([])
})

test('its functions change rows of its own user only, whoever it names', async () => {
  const thief = await steal()
  await db.query(
    "insert into oauth_access_tokens (user_id, access_token_sealed, expires_at) select id, 'sealed', now() from users",
  )
  for (const id of Object.values(ids)) {
    await thief.query(`select forget_access_token('${id}')`)
    await thief.query(`select record_mint('${id}')`).catch(() => {})
  }
  expect(await db.query('select user_id from oauth_access_tokens')).toEqual([{ user_id: ids.bob }])
  expect(await db.query('select user_id from oauth_token_mints')).toEqual([{ user_id: ids.alice }])
  for (const sql of [
    'delete from oauth_token_mints',
    'delete from oauth_access_tokens',
    'truncate oauth_token_mints',
    'insert into oauth_token_mints default values',
    `select token_owner('${ids.bob}')`,
    'select end_instance_transactions(0)',
  ])
    await expect(thief.query(sql), sql).rejects.toMatchObject({ code: '42501' })
  await thief.end()
})

test('a transaction it leaves open holds up nobody for long: callers are told, and it is ended, counted and audited', async () => {
  const thief = await steal()
  for (const limit of ['statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout'])
    await thief.query(`set ${limit} = 0`)
  await thief.query('begin')
  await thief.query('select from oauth_tokens for update')
  const started = performance.now()
  await expect(
    db.query('update oauth_tokens set updated_at = now() where user_id = $1', [ids.alice]),
  ).rejects.toMatchObject({ code: 'database-busy', retryAfterSeconds: 15 })
  expect(performance.now() - started).toBeLessThan(9_000)
  // bob does not notice
  await db.query('update oauth_tokens set updated_at = now() where user_id = $1', [ids.bob])

  let count = 0
  const watch = (longestSeconds: number) =>
    watchInstanceTransactions({
      db,
      log: silentLog,
      leading: () => false,
      longestSeconds,
      ended: () => {
        count++
      },
    })
  // one that is young enough is left alone
  const patient = watch(600)
  expect(await patient.look()).toBe(0)
  await patient.close()
  const strict = watch(1)
  expect(await strict.look()).toBe(1)
  await strict.close()
  expect(count).toBe(1)
  for (const deadline = Date.now() + 5_000; !thief.ended() && Date.now() < deadline; ) await delay(20)
  expect(thief.ended()).toBe(true)
  await db.query('update oauth_tokens set updated_at = now() where user_id = $1', [ids.alice])
  const [event] = await db.query<{ username: string; detail: { state: string; seconds: number } }>(
    "select username, detail from audit_events where action = 'instance.transaction-ended'",
  )
  expect(event).toMatchObject({ username: 'alice', detail: { state: 'idle in transaction' } })
  expect(event!.detail.seconds).toBeGreaterThanOrEqual(4)
})
