import pg from 'pg'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { secretsOf, unseal } from '../../support/attacker.ts'
import { callTool, connect } from '../../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../../support/stack.ts'

// Alice's instance was taken over: the attacker has her database login and her data key, and wants bob's.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let hers: Awaited<ReturnType<typeof secretsOf>>
let his: Awaited<ReturnType<typeof secretsOf>>
let thief: pg.Client
let holder: Awaited<ReturnType<typeof holdLocks>>

const loginAs = async (user: string, password: string, database = stack.database.database) => {
  const client = new pg.Client({ ...stack.database, user, password, database, connectionTimeoutMillis: 10_000 })
  client.on('error', () => {})
  await client.connect()
  return client
}

beforeAll(async () => {
  stack = await startStack()
  ;[alice] = await Promise.all([stack.addUser('alice'), stack.addUser('bob'), stack.addUser('carol')])
  ;[hers, his] = await Promise.all([secretsOf(stack, 'alice'), secretsOf(stack, 'bob')])
  thief = await loginAs(hers.role, hers.rolePassword)
  holder = await holdLocks()
})
afterAll(async () => {
  await thief?.end()
  await stack?.[Symbol.asyncDispose]()
})

const tenantTables = ['oauth_tokens', 'oauth_access_tokens', 'oauth_token_mints']
const countOf = async (sql: string, values: unknown[] = []) => (await thief.query(sql, values)).rowCount
const refused = async (sql: string, values: unknown[] = []) =>
  thief.query(sql, values).then(
    () => `allowed: ${sql}`,
    (error: { code: string }) => error.code,
  )
const denied = '42501'

/** The error of the role's own statement says "permission denied" or "must be owner": both are 42501. */
async function expectDenied(...statements: string[]): Promise<void> {
  for (const sql of statements) expect([sql, await refused(sql)]).toEqual([sql, denied])
}

async function rowsOf(userId: string): Promise<string> {
  let text = ''
  for (const table of tenantTables)
    text += JSON.stringify(await stack.sql(`select * from ${table} where user_id = $1 order by 1, 2`, [userId]))
  return text
}

test('attack: the stolen role reads the own rows and none of bob, by any query', async () => {
  for (const table of tenantTables) {
    expect(await countOf(`select 1 from ${table} where user_id = $1`, [his.userId])).toBe(0)
    expect(await countOf(`select 1 from ${table} where user_id <> $1`, [hers.userId])).toBe(0)
    expect(await countOf(`table ${table} except select * from ${table} where user_id = $1`, [hers.userId])).toBe(0)
  }
  expect(await countOf('select 1 from oauth_tokens')).toBe(1)
  expect(await countOf('select 1 from oauth_access_tokens')).toBe(1)
})

test('attack: an error, a count or a plan does not betray rows that are not shown', async () => {
  // were bob's row looked at before the policy, the division would fail
  const oracle = 'select 1 / (case when user_id = $1::uuid then 0 else 1 end) from oauth_tokens'
  expect((await thief.query(oracle, [his.userId])).rowCount).toBe(1)
  expect((await thief.query('select count(*)::integer as n from oauth_tokens')).rows).toEqual([{ n: 1 }])
  await expect(
    thief.query('select * from oauth_tokens where user_id = $1 for update', [his.userId]),
  ).resolves.toMatchObject({
    rowCount: 0,
  })
  await thief.query('set row_security = off')
  expect(await refused('select * from oauth_tokens')).toBe(denied)
  await thief.query('reset row_security')
  // statistics hold samples of columns
  expect(
    await countOf('select 1 from pg_stats where tablename = any($1) and most_common_vals is not null', [tenantTables]),
  ).toBe(0)
})

test("attack: updates and deletes of bob's rows touch nothing", async () => {
  const before = await rowsOf(his.userId)
  expect(await countOf("update oauth_tokens set state = 'needs-authorization' where user_id = $1", [his.userId])).toBe(
    0,
  )
  expect(await countOf('update oauth_access_tokens set expires_at = now() where user_id = $1', [his.userId])).toBe(0)
  for (const table of ['oauth_access_tokens', 'oauth_token_mints'])
    expect(await refused(`delete from ${table} where user_id = $1`, [his.userId])).toBe(denied)
  await thief.query('select forget_access_token($1)', [his.userId])
  expect(await refused('delete from oauth_tokens where user_id = $1', [his.userId])).toBe(denied)
  expect(await refused('truncate oauth_access_tokens')).toBe(denied)
  expect(await rowsOf(his.userId)).toBe(before)
})

test('attack: rows in the name of bob cannot be inserted, nor own rows given to him', async () => {
  const before = await rowsOf(his.userId)
  expect(await refused('insert into oauth_token_mints (user_id) values ($1)', [his.userId])).toBe(denied)
  // the function knows whose login it is, and that bob is somebody else
  expect(await refused('select record_mint($1)', [his.userId])).toBe('23502')
  expect(
    await refused(
      "insert into oauth_access_tokens (user_id, access_token_sealed, expires_at) values ($1, 'x', now()) on conflict (user_id) do update set access_token_sealed = 'x'",
      [his.userId],
    ),
  ).toBe(denied)
  expect(await refused('update oauth_access_tokens set user_id = $1', [his.userId])).toBe(denied)
  expect(await refused('update oauth_tokens set user_id = $1', [his.userId])).toBe(denied)
  expect(await refused("insert into oauth_tokens (user_id, client_id) values ($1, 'x')", [crypto.randomUUID()])).toBe(
    denied,
  )
  expect(await rowsOf(his.userId)).toBe(before)
})

test('attack: the tables of the control plane are closed: keys, users, data keys, signing keys, audit', async () => {
  const tables = await stack.sql<{ name: string }>(
    "select table_name as name from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'",
  )
  const closed = tables.map(({ name }) => name).filter(name => !tenantTables.includes(name))
  expect(closed).toEqual(
    expect.arrayContaining(['users', 'api_keys', 'data_keys', 'signing_keys', 'audit_events', 'instances']),
  )
  for (const table of closed) await expectDenied(`select * from ${table}`, `delete from ${table}`)
})

test('attack: becoming bob, the owner or a superuser is denied', async () => {
  await expectDenied(
    `set role ${his.role}`,
    `set role ${stack.database.user}`,
    'set role pg_read_all_data',
    `set session authorization ${stack.database.user}`,
    `set session authorization ${his.role}`,
    `grant ${his.role} to ${hers.role}`,
    `grant pg_read_all_data to ${hers.role}`,
    `grant sdpmcp_instance to ${his.role}`,
    'create role mallory superuser',
    `alter role ${his.role} password 'x'`,
    `drop role ${his.role}`,
  )
  await expect(loginAs(his.role, hers.rolePassword)).rejects.toThrow('password authentication failed')
  await expect(loginAs(stack.database.user, hers.rolePassword)).rejects.toThrow('password authentication failed')
})

test('attack: dropping the own limits is denied: row-level security, policies, connection limit, attributes', async () => {
  await expectDenied(
    ...tenantTables.flatMap(table => [
      `alter table ${table} disable row level security`,
      `alter table ${table} no force row level security`,
      `drop policy own_row on ${table}`,
      `create policy all_rows on ${table} using (true)`,
      `alter policy own_row on ${table} using (true)`,
      `alter table ${table} owner to ${hers.role}`,
      `create index on ${table} (user_id)`,
      `drop table ${table}`,
    ]),
    `alter role ${hers.role} connection limit -1`,
    `alter role ${hers.role} bypassrls`,
    `alter role ${hers.role} superuser`,
    `alter role ${hers.role} createrole`,
  )
  const [role] = await stack.sql(
    'select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolconnlimit > 0 as limited from pg_roles where rolname = $1',
    [hers.role],
  )
  expect(role).toEqual({
    rolsuper: false,
    rolcreaterole: false,
    rolcreatedb: false,
    rolbypassrls: false,
    rolreplication: false,
    limited: true,
  })
})

test('attack: objects that outlive the session or run with the rights of others cannot be made', async () => {
  await expectDenied(
    'create table public.loot (a text)',
    'create view public.loot as select 1',
    'create function public.loot() returns int language sql as $$ select 1 $$',
    'create schema loot',
    'create extension dblink',
    'select lo_create(0)',
    "select lo_from_bytea(0, 'x')",
    'select pg_try_advisory_lock(1)',
    'select pg_advisory_lock_shared(1, 2)',
    'select pg_advisory_unlock_all()',
    'create database loot',
    'create foreign data wrapper loot',
    'create event trigger loot on ddl_command_start execute function suppress_redundant_updates_trigger()',
    'create trigger loot before update on oauth_tokens for each row execute function suppress_redundant_updates_trigger()',
    'create publication loot for table oauth_tokens',
    "create tablespace loot location '/tmp'",
    'create language plperlu',
    `alter database ${stack.database.database} set search_path = loot`,
    "comment on table oauth_tokens is 'x'",
  )
})

test('attack: secrets of pg_catalog, files and programs of the database host are closed', async () => {
  await expectDenied(
    'select rolpassword from pg_authid',
    'select passwd from pg_shadow',
    'select * from pg_user_mapping',
    'select * from pg_hba_file_rules',
    'select * from pg_file_settings',
    'select * from pg_statistic',
    'select * from pg_largeobject',
    "select pg_read_file('postgresql.conf')",
    "select pg_read_binary_file('global/1260')",
    "select pg_ls_dir('.')",
    "select pg_stat_file('PG_VERSION')",
    "select lo_import('/etc/passwd')",
    "copy (select 1) to '/tmp/loot'",
    "copy oauth_tokens from '/etc/passwd'",
    "copy (select 1) to program 'id'",
    'select pg_reload_conf()',
    'select pg_rotate_logfile()',
    "alter system set log_statement = 'all'",
    "set log_statement = 'all'",
    "load '/tmp/loot.so'",
    "select pg_create_logical_replication_slot('loot', 'pgoutput')",
  )
  expect((await thief.query('select distinct rolpassword from pg_roles')).rows).toEqual([{ rolpassword: '********' }])
})

test("attack: other people's queries cannot be read, cancelled or ended", async () => {
  const { rows } = await thief.query('select distinct query from pg_stat_activity where usename <> current_user')
  for (const { query } of rows) expect(['<insufficient privilege>', '', null]).toContain(query)
  const [target] = await stack.sql<{ pid: number }>('select pg_backend_pid() as pid')
  expect(await refused('select pg_terminate_backend($1)', [target!.pid])).toBe(denied)
  expect(await refused('select pg_cancel_backend($1)', [target!.pid])).toBe(denied)
})

test('attack: a stolen role cannot use up the connections of the others', async () => {
  const opened = await Promise.allSettled(Array.from({ length: 15 }, () => loginAs(hers.role, hers.rolePassword)))
  const clients = opened.flatMap(result => (result.status === 'fulfilled' ? [result.value] : []))
  const errors = opened.flatMap(result => (result.status === 'rejected' ? [result.reason.code] : []))
  expect(new Set(errors)).toEqual(new Set(['53300']))
  expect(clients.length).toBeLessThanOrEqual(6)
  expect(await stack.sql('select 1 as up')).toEqual([{ up: 1 }])
  expect((await stack.admin('GET', '/v1/users/alice')).status).toBe(200)
  await Promise.all(clients.map(client => client.end()))
})

test('attack: no table can be locked against the others, not even by way of a view', async () => {
  for (const table of [...tenantTables, 'users', 'audit_events', 'schema_migrations', 'pg_catalog.pg_settings'])
    for (const mode of ['row exclusive', 'share', 'access exclusive']) {
      await thief.query('begin')
      expect([table, mode, await refused(`lock table ${table} in ${mode} mode nowait`)]).toEqual([table, mode, denied])
      await thief.query('rollback')
    }
})

/** As carol's role, without any limit of time: her row is locked and the transaction left open. */
async function holdLocks() {
  const { role, rolePassword } = await secretsOf(stack, 'carol')
  const client = await loginAs(role, rolePassword)
  let endedAfterMs: number | undefined
  await client.query('set idle_in_transaction_session_timeout = 0; set statement_timeout = 0; set lock_timeout = 0')
  await client.query('begin')
  await client.query('select from oauth_tokens for update')
  const since = performance.now()
  client.on('end', () => {
    endedAfterMs = performance.now() - since
  })
  return { endedAfterMs: () => endedAfterMs }
}

test("attack: advisory locks taken with the control plane's names do not stop its work", async () => {
  const holder = await loginAs(hers.role, hers.rolePassword)
  // whoever reads the source knows the names of the locks
  const names = ['sdp-mcp signing key', `sdp-mcp fleet ${his.userId}`]
  for (const name of names)
    await holder
      .query("select set_config('statement_timeout', '2000', false)")
      .then(() => holder.query('select pg_advisory_lock(hashtextextended($1, 0))', [name]).catch(() => {}))
  const restarted = await stack.admin('POST', '/v1/users/bob/instance/restart')
  expect(restarted.status).toBe(202)
  await stack.controlPlane().stop()
  await stack.startControlPlane()
  await eventually(async () => (await stack.admin('GET', '/v1/users/bob')).body.instance.state === 'ready', {
    withinMs: 30_000,
    what: 'the restart of bob',
  })
  await holder.end()
})

test('attack: forged notifications make the control plane look, not believe', async () => {
  const channels = await stack.sql<{ channel: string }>(
    "select distinct regexp_replace(query, '^listen \"?([a-z_]+)\"?.*$', '\\1') as channel from pg_stat_activity where query ilike 'listen %' and datname = current_database()",
  )
  expect(channels.length).toBeGreaterThan(0)
  for (const { channel } of channels)
    for (const payload of [
      his.userId,
      'x',
      '',
      '{"userId":"*","removed":true}',
      "'; drop table users; --",
      crypto.randomUUID(),
      'a'.repeat(7_000),
    ])
      await thief.query('select pg_notify($1, $2)', [channel, payload])
  await using client = await connect('mcp', alice.mcp, alice.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  expect((await stack.admin('GET', '/v1/users/bob')).body.suspended).toBe(false)
})

/** What an own session of alice sees and what reaches Zoho while the stored secrets are not hers. */
async function observe(tamper: () => Promise<unknown>) {
  const since = stack.simulator.log.list().length
  await tamper()
  const before = (await stack.admin('GET', '/v1/users/alice')).body.instance.containerId
  await stack.admin('POST', '/v1/users/alice/instance/restart')
  // until then the old instance serves, with what it read before
  await eventually(
    async () => {
      const { state, containerId } = (await stack.admin('GET', '/v1/users/alice')).body.instance
      return state === 'failed' || (state === 'ready' && containerId !== before)
    },
    { withinMs: 60_000, what: 'the restart of alice' },
  )
  let seen = ''
  await (async () => {
    await using client = await connect('mcp', alice.mcp, alice.key)
    seen = JSON.stringify(await client.callTool({ name: 'search_requests', arguments: { limit: 1 } }))
  })().catch(error => {
    seen = `failed: ${error} ${error.cause ?? ''}`
  })
  const logs = String((await stack.admin('GET', '/v1/users/alice/instance/logs?tail=500')).body)
  const user = (await stack.admin('GET', '/v1/users/alice')).body
  const asBob = stack.simulator.log
    .list()
    .slice(since)
    .filter(entry => entry.user === 'bob')
  return { seen, logs, user, asBob }
}

const sealedOf = async (userId: string) =>
  (
    await stack.sql<{ refresh: string; secret: string; access: string }>(
      'select t.refresh_token_sealed as refresh, t.client_secret_sealed as secret, a.access_token_sealed as access from oauth_tokens t join oauth_access_tokens a using (user_id) where user_id = $1',
      [userId],
    )
  )[0]!

async function put(userId: string, { access, refresh }: { access: string; refresh: string }): Promise<void> {
  await stack.sql('update oauth_access_tokens set access_token_sealed = $2 where user_id = $1', [userId, access])
  await stack.sql('update oauth_tokens set refresh_token_sealed = $2 where user_id = $1', [userId, refresh])
}

/** Puts alice's rows back as they were. */
async function restored<T>(work: () => Promise<T>): Promise<T> {
  const kept = await sealedOf(hers.userId)
  const [keys] = await stack.sql<{ wrapped_key: string; role_password_sealed: string }>(
    'select * from data_keys where user_id = $1',
    [hers.userId],
  )
  try {
    return await work()
  } finally {
    await stack.sql(
      "update oauth_tokens set refresh_token_sealed = $2, client_secret_sealed = $3, state = 'connected', reason = null, reason_code = null where user_id = $1",
      [hers.userId, kept.refresh, kept.secret],
    )
    await stack.sql('update oauth_access_tokens set access_token_sealed = $2 where user_id = $1', [
      hers.userId,
      kept.access,
    ])
    await stack.sql('update data_keys set wrapped_key = $2, role_password_sealed = $3 where user_id = $1', [
      hers.userId,
      keys!.wrapped_key,
      keys!.role_password_sealed,
    ])
  }
}

async function expectUnopened({ seen, logs, user, asBob }: Awaited<ReturnType<typeof observe>>): Promise<void> {
  expect(seen).toMatch(/isError":true|failed:/)
  expect(asBob).toEqual([])
  const { refresh, access } = await sealedOf(his.userId)
  for (const [sealed, column] of [
    [refresh, 'oauth_tokens.refresh_token_sealed'],
    [access, 'oauth_access_tokens.access_token_sealed'],
  ] as const) {
    const plain = unseal(his.dataKey, sealed, `${column}:${his.userId}`)
    for (const text of [seen, logs, JSON.stringify(user), stack.controlPlane().output()])
      expect(text).not.toContain(plain)
  }
}

test("attack: bob's sealed tokens put into alice's rows are not opened, and nothing is sent in his name", async () => {
  await restored(async () => {
    const { access, refresh } = await sealedOf(his.userId)
    await expectUnopened(await observe(() => put(hers.userId, { access, refresh })))
  })
})

test('attack: sealed values that change columns within a row are called altered and sent nowhere', async () => {
  await restored(async () => {
    const { refresh, secret, access } = await sealedOf(hers.userId)
    const seen = await observe(async () => {
      await put(hers.userId, { access: refresh, refresh: access })
    })
    await expectUnopened(seen)
    expect(seen.seen).toContain('cannot be opened')
    const plain = unseal(hers.dataKey, refresh, `oauth_tokens.refresh_token_sealed:${hers.userId}`)
    for (const text of [seen.seen, seen.logs, stack.controlPlane().output()]) expect(text).not.toContain(plain)
    // not even with the right key
    expect(() => unseal(hers.dataKey, refresh, `oauth_access_tokens.access_token_sealed:${hers.userId}`)).toThrow()
    expect(() => unseal(hers.dataKey, secret, `oauth_tokens.client_secret_sealed:${his.userId}`)).toThrow()
  })
})

test('attack: flipped bits, shortened tags and plain texts in place of sealed tokens are called altered', async () => {
  const shortened = (sealed: string) => sealed.slice(0, -16)
  const flipped = (sealed: string) => sealed.slice(0, -30) + (sealed.at(-30) === 'A' ? 'B' : 'A') + sealed.slice(-29)
  const plain = () => `1000.${'a'.repeat(32)}.${'b'.repeat(32)}`
  for (const [spoilAccess, spoilRefresh] of [
    [shortened, flipped],
    [plain, plain],
  ] as const)
    await restored(async () => {
      const { access, refresh } = await sealedOf(hers.userId)
      const seen = await observe(() =>
        put(hers.userId, { access: spoilAccess(access), refresh: spoilRefresh(refresh) }),
      )
      await expectUnopened(seen)
      expect(seen.seen).toContain('cannot be opened')
    })
})

test("attack: bob's sealed access token alone in alice's cache is replaced by a new one of her own", async () => {
  await restored(async () => {
    const { refresh } = await sealedOf(hers.userId)
    const seen = await observe(async () => put(hers.userId, { access: (await sealedOf(his.userId)).access, refresh }))
    expect(seen.asBob).toEqual([])
    expect(seen.logs).toContain('tokens.access-token.unreadable')
    expect(seen.seen).toContain('"requests"')
  })
})

test("attack: bob's wrapped data key in alice's row does not open anything for her", async () => {
  await restored(async () => {
    const seen = await observe(() =>
      stack.sql(
        'update data_keys set (wrapped_key, role_password_sealed) = (select wrapped_key, role_password_sealed from data_keys where user_id = $2) where user_id = $1',
        [hers.userId, his.userId],
      ),
    )
    await expectUnopened(seen)
    expect(JSON.stringify([seen.user, seen.seen])).not.toContain(his.rolePassword)
  })
})

test('attack: a transaction left open for ever is ended within a minute and a half, and noted', async () => {
  await eventually(() => holder.endedAfterMs() !== undefined, { withinMs: 100_000, what: 'the end of the transaction' })
  expect(holder.endedAfterMs()).toBeLessThan(90_000)
  const { body } = await stack.admin('GET', '/v1/audit?user=carol&action=instance.transaction-ended')
  expect(body.events[0]).toMatchObject({ actor: 'system', detail: { state: 'idle in transaction' } })
  expect((await stack.admin('GET', '/metrics')).body).toMatch(/sdp_mcp_instance_transactions_ended_total [1-9]/)
  await stack.sql('update oauth_tokens set updated_at = now()')
})

test('attack: after all of it alice and bob work as before', async () => {
  await stack.admin('POST', '/v1/users/alice/instance/restart')
  await eventually(
    async () => {
      await using client = await connect('mcp', alice.mcp, alice.key)
      return (await callTool(client, 'search_requests', { limit: 1 })).requests.length === 1
    },
    { withinMs: 60_000, what: "alice's next call" },
  )
  expect((await stack.admin('GET', '/v1/users/bob')).body.sdp.connection).toBe('connected')
})
