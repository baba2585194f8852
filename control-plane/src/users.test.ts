import { databaseRole, sealContext } from '@sdp-mcp/instance/contract'
import { open } from '@sdp-mcp/instance/seal'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { AppError } from './errors.ts'
import { eventually } from './fleet/testing/support.ts'
import { hashApiKey } from './identity.ts'
import { fixedKeyring } from './keyring.ts'
import { testConfig } from './testing/config.ts'
import { emptyAudit, openTestDatabase, type TestDatabase } from './testing/database.ts'
import { newUser } from './user-schemas.ts'
import { createUsers, userChannel } from './users.ts'
import { createVault } from './vault.ts'

let database: TestDatabase
let users: ReturnType<typeof createUsers>
let vault: ReturnType<typeof createVault>
/** database roles belong to the whole server, where other test files work as well */
const ourRoles: string[] = []
const config = testConfig({ SDP_CLIENT_ID: '1000.DEFAULT', SDP_CLIENT_SECRET: 'default-secret' })

const usersWith = (environment: Record<string, string>) =>
  createUsers({ db: database.db, vault, config: testConfig(environment) })

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  const real = createVault({ db: database.db, keyring: fixedKeyring(config.masterKey) })
  vault = {
    ...real,
    enroll(tx, userId) {
      ourRoles.push(databaseRole(userId))
      return real.enroll(tx, userId)
    },
  }
  users = createUsers({ db: database.db, vault, config })
})
afterEach(async () => {
  const rows = await database.db.query<{ username: string }>('select username from users')
  for (const { username } of rows) await users.erase(await users.remove(username, 'admin'))
  await emptyAudit(database.db)
})
afterAll(() => database?.[Symbol.asyncDispose]())

const one = async (sql: string, values: unknown[] = []) => (await database.db.query(sql, values))[0]!
const audited = async (username: string) =>
  (
    await database.db.query<{ action: string }>('select action from audit_events where username = $1 order by id', [
      username,
    ])
  ).map(row => row.action)
const generationOf = async (username: string) =>
  Number((await one('select generation from users where username = $1', [username])).generation)
const roles = async () =>
  (
    await database.db.query<{ rolname: string }>('select rolname from pg_roles where rolname = any($1) order by 1', [
      ourRoles,
    ])
  ).map(row => row.rolname)
/** Everything the database holds, for comparing before and after something that must change nothing. */
async function everything() {
  const tables = ['users', 'api_keys', 'instances', 'data_keys', 'oauth_tokens', 'oauth_access_tokens', 'audit_events']
  const dump: Record<string, unknown> = {}
  for (const table of tables) dump[table] = await database.db.query(`select t::text as row from ${table} t order by 1`)
  dump.roles = await roles()
  return dump
}
async function rejected(work: Promise<unknown>): Promise<AppError> {
  const error = await work.then(() => undefined).catch(error => error)
  expect(error).toBeInstanceOf(AppError)
  return error
}

describe('adding a user', () => {
  test('makes the row, a key of which only the hash is stored, a data key, a database role and the audit entry, together', async () => {
    const { userId, apiKey } = await users.create({ username: 'alice' }, 'admin')
    expect(await users.get('alice')).toEqual({
      username: 'alice',
      displayName: 'alice',
      email: null,
      suspended: false,
      createdAt: expect.stringMatching(/^\d{4}-.*Z$/),
      toolsets: ['core'],
      readOnly: false,
      limits: { requestsPerSecond: 100, burst: 200, concurrentRequests: 200, sessions: 100 },
      sdp: {
        dataCenter: 'US',
        portal: 'itdesk',
        baseUrl: 'https://sdpondemand.manageengine.com',
        accountsUrl: 'https://accounts.zoho.com',
        clientId: '1000.DEFAULT',
        connection: 'needs-authorization',
        connectionReason: null,
        lastRefreshedAt: null,
      },
      instance: { state: 'starting', port: null, containerId: null, image: null, reasonCode: null, reason: null },
    })
    const key = await one('select * from api_keys where id = $1', [apiKey.id])
    expect(key).toMatchObject({ user_id: userId, prefix: apiKey.prefix, expires_at: null, revoked_at: null })
    expect(key.hash).toEqual(hashApiKey(apiKey.key))
    expect(await database.db.query('select 1 from pg_roles where rolname = $1', [databaseRole(userId)])).toHaveLength(1)
    expect(await audited('alice')).toContain('user.created')
    expect(JSON.stringify(await everything())).not.toContain(apiKey.key.slice(11))
  })

  test('keeps what was given, and seals what is secret', async () => {
    const { userId } = await users.create(
      newUser.parse({
        username: 'bob',
        displayName: ' Bob B. ',
        email: 'bob@example.com',
        toolsets: ['core', 'problems', 'core'],
        readOnly: true,
        sdp: {
          dataCenter: 'EU',
          portal: 'hr',
          baseUrl: 'https://Helpdesk.example.com/app/hr',
          clientId: '1000.BOB',
          clientSecret: 'secret-of-bob',
          grantCode: '1000.grant-of-bob',
        },
      }),
      'admin',
    )
    expect(await users.get('bob')).toMatchObject({
      displayName: 'Bob B.',
      email: 'bob@example.com',
      toolsets: ['core', 'problems'],
      readOnly: true,
      sdp: {
        dataCenter: 'EU',
        portal: 'hr',
        baseUrl: 'https://helpdesk.example.com',
        accountsUrl: 'https://accounts.zoho.eu',
        clientId: '1000.BOB',
      },
    })
    const row = await one('select * from oauth_tokens where user_id = $1', [userId])
    const key = await vault.dataKey(userId)
    const opened = (column: string) => open(key, row[column] as string, sealContext('oauth_tokens', column, userId))
    expect(opened('client_secret_sealed')).toBe('secret-of-bob')
    expect(opened('grant_code_sealed')).toBe('1000.grant-of-bob')
    expect(row.refresh_token_sealed).toBeNull()
    const text = JSON.stringify(await everything())
    for (const secret of ['secret-of-bob', 'grant-of-bob', 'default-secret']) expect(text).not.toContain(secret)
  })

  test('a refresh token may stand in for a grant code', async () => {
    const { userId } = await users.create({ username: 'carol', sdp: { refreshToken: '1000.refresh' } }, 'admin')
    const row = await one('select * from oauth_tokens where user_id = $1', [userId])
    expect(row).toMatchObject({ client_id: '1000.DEFAULT', grant_code_sealed: null, state: 'needs-authorization' })
    expect(
      open(
        await vault.dataKey(userId),
        row.refresh_token_sealed as string,
        sealContext('oauth_tokens', 'refresh_token_sealed', userId),
      ),
    ).toBe('1000.refresh')
  })

  test('a client id of one’s own is never paired with the secret of the default client', async () => {
    const { userId } = await users.create({ username: 'dave', sdp: { clientId: '1000.DAVE' } }, 'admin')
    expect(await one('select * from oauth_tokens where user_id = $1', [userId])).toMatchObject({
      client_id: '1000.DAVE',
      client_secret_sealed: null,
    })
  })

  test('without any client the user waits for one', async () => {
    await usersWith({}).create({ username: 'erin' }, 'admin')
    expect((await users.get('erin')).sdp).toMatchObject({ clientId: null, connection: 'needs-authorization' })
  })

  test.each([
    ['a portal nobody gave', { SDP_INSTANCE_NAME: '' }, {}, 'sdp-settings-missing', '#/sdp/portal'],
    ['a grant code without a client', {}, { grantCode: 'x' }, 'client-missing', '#/sdp/clientId'],
    [
      'a grant code without the client’s secret',
      {},
      { clientId: 'x', grantCode: 'x' },
      'client-missing',
      '#/sdp/clientSecret',
    ],
    ['an http address', {}, { baseUrl: 'http://sdp.example.com' }, 'sdp-settings-refused', '#/sdp/baseUrl'],
    [
      'an address with a password',
      {},
      { accountsUrl: 'https://a:b@zoho.example' },
      'sdp-settings-refused',
      '#/sdp/accountsUrl',
    ],
  ] as const)('%s is refused and changes nothing', async (_what, environment, sdp, code, pointer) => {
    const before = await everything()
    const error = await rejected(usersWith(environment).create({ username: 'frank', sdp }, 'admin'))
    expect(error).toMatchObject({ code, status: 422 })
    expect(error.invalid?.map(part => part.pointer)).toEqual([pointer])
    expect(await everything()).toEqual(before)
  })

  test('a secret without its client is refused and changes nothing', async () => {
    const before = await everything()
    expect(
      await rejected(usersWith({}).create({ username: 'frank', sdp: { clientSecret: 'x' } }, 'admin')),
    ).toMatchObject({
      code: 'client-missing',
    })
    expect(await everything()).toEqual(before)
  })

  test('a name that is taken is refused and changes nothing', async () => {
    await users.create({ username: 'grace' }, 'admin')
    const before = await everything()
    expect(await rejected(users.create({ username: 'grace', displayName: 'Other' }, 'admin'))).toMatchObject({
      code: 'user-exists',
      status: 409,
    })
    expect(await everything()).toEqual(before)
  })

  test('of twenty who add the same name at once one succeeds, and one role and one key exist', async () => {
    const results = await Promise.allSettled([...Array(20)].map(() => users.create({ username: 'heidi' }, 'admin')))
    const made = results.filter(result => result.status === 'fulfilled')
    expect(made).toHaveLength(1)
    for (const result of results)
      if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'user-exists' })
    expect(await database.db.query("select 1 from users where username = 'heidi'")).toHaveLength(1)
    expect(await users.listKeys('heidi')).toHaveLength(1)
    expect(await roles()).toHaveLength(1)
    expect(await audited('heidi')).toEqual(['user.created'])
  })

  test('forty different users can be added at once', async () => {
    const names = [...Array(40)].map((_, index) => `many-${index}`)
    await Promise.all(names.map(username => users.create({ username }, 'admin')))
    expect((await users.list({ limit: 200 })).users.map(user => user.username)).toEqual([...names].sort())
  })

  test.each(['audit_events', 'api_keys', 'data_keys', 'oauth_tokens'])(
    'a failure while writing %s undoes everything, the database role too',
    async table => {
      await database.db.query(
        `create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$`,
      )
      await database.db.query(`create trigger refuse before insert on ${table} execute function refuse()`)
      try {
        const before = await everything()
        await expect(users.create({ username: 'ivan' }, 'admin')).rejects.toThrow('refused')
        expect(await everything()).toEqual(before)
      } finally {
        await database.db.query(`drop trigger refuse on ${table}; drop function refuse`)
      }
    },
  )

  test('the fleet is told with the commit', async () => {
    const told: (string | null)[] = []
    const listener = await database.db.listen(userChannel, payload => told.push(payload))
    const { userId } = await users.create({ username: 'judy' }, 'admin')
    await eventually('told', () => told.includes(userId))
    await users.create({ username: 'judy' }, 'admin').catch(() => {})
    await users.issueKey('judy', {}, 'admin', Date.now())
    await eventually('told again', () => told.filter(id => id === userId).length === 2)
    expect(told).toEqual([null, userId, userId])
    await listener.close()
  })
})

describe('listing users', () => {
  test('pages are complete, in order, without repetition, and end with null', async () => {
    const names = ['alice', 'alice-2', 'bob', 'carol', 'dave', 'erin', 'frank']
    for (const username of [...names].reverse()) await users.create({ username }, 'admin')
    const seen: string[] = []
    let cursor: string | undefined
    for (let round = 0; round < 10; round++) {
      const page = await users.list({ limit: 3, cursor })
      seen.push(...page.users.map(user => user.username))
      if (page.nextCursor === null) break
      expect(page.users).toHaveLength(3)
      cursor = page.nextCursor
    }
    expect(seen).toEqual(names)
    expect((await users.list({ limit: 7 })).nextCursor).toBeNull()
    expect((await users.list({ limit: 6 })).nextCursor).toBe('erin')
    expect(await users.list({ limit: 5, cursor: 'zz' })).toEqual({ users: [], nextCursor: null })
  })

  test('a user on its way out is in no list and cannot be found', async () => {
    const { userId } = await users.create({ username: 'leaving' }, 'admin')
    await users.remove('leaving', 'admin')
    expect((await users.list({ limit: 10 })).users).toEqual([])
    for (const work of [
      () => users.get('leaving'),
      () => users.idOf('leaving'),
      () => users.listKeys('leaving'),
      () => users.change('leaving', { readOnly: true }, 'admin'),
      () => users.want('leaving', 'start', 'admin'),
      () => users.issueKey('leaving', {}, 'admin', Date.now()),
    ])
      expect(await rejected(work())).toMatchObject({ code: 'user-not-found', status: 404 })
    expect(await users.settings(userId)).toMatchObject({ username: 'leaving' })
    expect(await users.counts()).toMatchObject({ users: 0 })
  })
})

describe('changing a user', () => {
  test('what the instance must know makes a new generation, once', async () => {
    await users.create({ username: 'alice' }, 'admin')
    for (const change of [
      { displayName: 'Alice A.' },
      { email: 'alice@example.com' },
      { toolsets: ['core', 'assets'] as const },
      { readOnly: true },
      { sdp: { dataCenter: 'EU' as const } },
      { sdp: { portal: 'hr' } },
      { sdp: { baseUrl: 'https://sdp.example.com' } },
      { sdp: { accountsUrl: 'https://accounts.example.com' } },
      { sdp: { clientId: '1000.OTHER', clientSecret: 'other' } },
    ]) {
      const before = await generationOf('alice')
      await users.change('alice', structuredClone(change) as Parameters<typeof users.change>[1], 'admin')
      expect(await generationOf('alice'), JSON.stringify(change)).toBe(before + 1)
      // the same again changes nothing the instance would see
      await users.change('alice', structuredClone(change) as Parameters<typeof users.change>[1], 'admin')
      expect(await generationOf('alice'), JSON.stringify(change)).toBe(before + 1)
    }
  })

  test('what the instance need not know makes none', async () => {
    await users.create({ username: 'bob' }, 'admin')
    for (const change of [{ suspended: true }, { suspended: false }, { sdp: { clientSecret: 'rotated' } }, { sdp: {} }])
      await users.change('bob', change, 'admin')
    expect(await generationOf('bob')).toBe(1)
  })

  test('a field that is not named stays, and null goes back to the default of the moment', async () => {
    await users.create({ username: 'carol', email: 'c@example.com', sdp: { portal: 'hr', dataCenter: 'EU' } }, 'admin')
    await users.change('carol', { displayName: 'Carol' }, 'admin')
    expect(await users.get('carol')).toMatchObject({ email: 'c@example.com', sdp: { portal: 'hr', dataCenter: 'EU' } })
    await users.change('carol', { email: null, sdp: { portal: null, dataCenter: null } }, 'admin')
    expect(await users.get('carol')).toMatchObject({ email: null, sdp: { portal: 'itdesk', dataCenter: 'US' } })
  })

  test('another OAuth client forgets the grant of the old one', async () => {
    const { userId } = await users.create({ username: 'dave', sdp: { refreshToken: 'r' } }, 'admin')
    await database.db.query("update oauth_tokens set state = 'connected', scopes = '{a}' where user_id = $1", [userId])
    await database.db.query("insert into oauth_access_tokens values ($1, 'sealed', now(), now())", [userId])
    await users.change('dave', { sdp: { clientId: '1000.NEW', clientSecret: 'new' } }, 'admin')
    expect(await one('select * from oauth_tokens where user_id = $1', [userId])).toMatchObject({
      client_id: '1000.NEW',
      refresh_token_sealed: null,
      grant_code_sealed: null,
      scopes: [],
      state: 'needs-authorization',
      reason_code: 'client-changed',
    })
    expect(await database.db.query('select 1 from oauth_access_tokens where user_id = $1', [userId])).toEqual([])
  })

  test('a corrected client secret keeps the grant, and lets a refused one be tried again', async () => {
    const { userId } = await users.create({ username: 'erin', sdp: { refreshToken: 'r' } }, 'admin')
    const state = async () => (await one('select state from oauth_tokens where user_id = $1', [userId])).state
    await database.db.query("update oauth_tokens set state = 'connected' where user_id = $1", [userId])
    await users.change('erin', { sdp: { clientSecret: 'rotated' } }, 'admin')
    expect(await state()).toBe('connected')
    await database.db.query(
      "update oauth_tokens set state = 'needs-reauthorization', reason_code = 'refresh-token-rejected' where user_id = $1",
      [userId],
    )
    await users.change('erin', { sdp: { clientSecret: 'rotated again' } }, 'admin')
    expect(await state()).toBe('needs-reauthorization')
    await database.db.query("update oauth_tokens set reason_code = 'client-rejected' where user_id = $1", [userId])
    await users.change('erin', { sdp: { clientSecret: 'right at last' } }, 'admin')
    expect(await state()).toBe('needs-authorization')
    const row = await one('select * from oauth_tokens where user_id = $1', [userId])
    expect(row.refresh_token_sealed).not.toBeNull()
    expect(
      open(
        await vault.dataKey(userId),
        row.client_secret_sealed as string,
        sealContext('oauth_tokens', 'client_secret_sealed', userId),
      ),
    ).toBe('right at last')
  })

  test('taking away the only portal, or an address that is not allowed, is refused and changes nothing', async () => {
    const without = usersWith({ SDP_INSTANCE_NAME: '' })
    await without.create({ username: 'frank', sdp: { portal: 'hr' } }, 'admin')
    const before = await everything()
    expect(await rejected(without.change('frank', { readOnly: true, sdp: { portal: null } }, 'admin'))).toMatchObject({
      code: 'sdp-settings-missing',
      invalid: [{ pointer: '#/sdp/portal' }],
    })
    expect(
      await rejected(without.change('frank', { readOnly: true, sdp: { baseUrl: 'http://x.example' } }, 'admin')),
    ).toMatchObject({ code: 'sdp-settings-refused' })
    expect(await rejected(users.change('nobody', { readOnly: true }, 'admin'))).toMatchObject({
      code: 'user-not-found',
    })
    expect(await everything()).toEqual(before)
  })

  test('thirty changes at once are all counted, and none is lost', async () => {
    await users.create({ username: 'grace' }, 'admin')
    await Promise.all([
      ...[...Array(15)].map((_, index) => users.change('grace', { displayName: `Grace ${index}` }, 'admin')),
      ...[...Array(15)].map((_, index) => users.change('grace', { email: `g${index}@example.com` }, 'admin')),
    ])
    expect(await generationOf('grace')).toBe(31)
    const { displayName, email } = await users.get('grace')
    expect(displayName).toMatch(/^Grace \d+$/)
    expect(email).toMatch(/^g\d+@/)
  })

  test('the audit tells what changed and never a secret', async () => {
    await users.create({ username: 'heidi' }, 'admin')
    await users.change('heidi', { readOnly: true, sdp: { portal: 'hr', clientSecret: 'secret-Wd39' } }, 'admin')
    const row = await one("select * from audit_events where username = 'heidi' and action = 'user.changed'")
    expect(row).toMatchObject({
      actor: 'admin',
      detail: { readOnly: true, sdp: { portal: 'hr', clientSecret: 'changed' } },
    })
    expect(JSON.stringify(await everything())).not.toContain('secret-Wd39')
  })
})

describe('wanting an instance', () => {
  test('stop and start set what is wanted; restart makes a new generation', async () => {
    await users.create({ username: 'alice' }, 'admin')
    const wanted = async () => one("select wanted, generation::integer from users where username = 'alice'")
    await users.want('alice', 'stop', 'admin')
    expect(await wanted()).toEqual({ wanted: 'stopped', generation: 1 })
    await users.want('alice', 'start', 'admin')
    expect(await wanted()).toEqual({ wanted: 'running', generation: 1 })
    await users.want('alice', 'stop', 'admin')
    await users.want('alice', 'restart', 'admin')
    expect(await wanted()).toEqual({ wanted: 'running', generation: 2 })
    expect(await audited('alice')).toEqual([
      'user.created',
      'instance.stop',
      'instance.start',
      'instance.stop',
      'instance.restart',
    ])
  })

  test('starting by hand forgets earlier failures', async () => {
    const { userId } = await users.create({ username: 'bob' }, 'admin')
    await database.db.query(
      "insert into instances (user_id, state, failures, retry_at) values ($1, 'failed', 5, now() + interval '5 minutes')",
      [userId],
    )
    await users.want('bob', 'stop', 'admin')
    expect(await one('select failures from instances where user_id = $1', [userId])).toEqual({ failures: 5 })
    await users.want('bob', 'start', 'admin')
    expect(await one('select failures, retry_at from instances where user_id = $1', [userId])).toEqual({
      failures: 0,
      retry_at: null,
    })
  })

  test('an instance of a suspended user can be stopped but not started', async () => {
    await users.create({ username: 'carol' }, 'admin')
    await users.change('carol', { suspended: true }, 'admin')
    await users.want('carol', 'stop', 'admin')
    for (const action of ['start', 'restart'] as const)
      expect(await rejected(users.want('carol', action, 'admin'))).toMatchObject({
        code: 'user-suspended',
        status: 403,
      })
    expect(await one("select wanted, generation::integer from users where username = 'carol'")).toEqual({
      wanted: 'stopped',
      generation: 1,
    })
  })
})

describe('removing a user', () => {
  test('its keys die with the first half, everything secret goes with the second, the audit stays', async () => {
    const { userId } = await users.create({ username: 'alice', sdp: { refreshToken: 'r' } }, 'admin')
    await database.db.query("insert into oauth_access_tokens values ($1, 'sealed', now(), now())", [userId])
    await database.db.query("insert into instances (user_id, state) values ($1, 'ready')", [userId])
    expect(await users.remove('alice', 'admin')).toBe(userId)
    expect(
      await database.db.query('select 1 from api_keys where user_id = $1 and revoked_at is null', [userId]),
    ).toEqual([])
    await users.erase(userId)
    for (const table of [
      'users where id',
      'api_keys where user_id',
      'data_keys where user_id',
      'oauth_tokens where user_id',
      'oauth_access_tokens where user_id',
      'instances where user_id',
    ])
      expect(await database.db.query(`select 1 from ${table} = $1`, [userId]), table).toEqual([])
    expect(await database.db.query('select 1 from pg_roles where rolname = $1', [databaseRole(userId)])).toEqual([])
    expect(await audited('alice')).toEqual(expect.arrayContaining(['user.created', 'user.removed', 'user.erased']))
  })

  test('both halves can be repeated, and the audit tells of each once', async () => {
    const { userId } = await users.create({ username: 'bob' }, 'admin')
    const ids = await Promise.all([...Array(5)].map(() => users.remove('bob', 'admin')))
    expect(new Set(ids)).toEqual(new Set([userId]))
    await Promise.all([...Array(5)].map(() => users.erase(userId)))
    await users.erase(userId)
    expect(await audited('bob')).toEqual(['user.created', 'user.removed', 'user.erased'])
    expect(await rejected(users.remove('bob', 'admin'))).toMatchObject({ code: 'user-not-found' })
  })

  test('a user that is wanted is never erased', async () => {
    const { userId } = await users.create({ username: 'carol' }, 'admin')
    await users.erase(userId)
    expect(await users.get('carol')).toMatchObject({ username: 'carol' })
  })

  test('a name is free again as soon as its user is erased, not before', async () => {
    const { userId, apiKey } = await users.create({ username: 'dave' }, 'admin')
    await users.remove('dave', 'admin')
    expect(await rejected(users.create({ username: 'dave' }, 'admin'))).toMatchObject({ code: 'user-exists' })
    await users.erase(userId)
    const again = await users.create({ username: 'dave' }, 'admin')
    expect(again.userId).not.toBe(userId)
    expect(again.apiKey.key).not.toBe(apiKey.key)
  })

  test('undoing a creation never touches whoever has the name by then', async () => {
    const { userId } = await users.create({ username: 'erin' }, 'admin')
    await users.erase(await users.remove('erin', 'admin'))
    await users.create({ username: 'erin' }, 'admin')
    await users.undoCreate(userId)
    expect(await users.get('erin')).toMatchObject({ username: 'erin' })
    const other = await users.create({ username: 'frank' }, 'admin')
    await users.undoCreate(other.userId)
    expect(await rejected(users.get('frank'))).toMatchObject({ code: 'user-not-found' })
  })

  test('adding and removing the same name at once ends with one user or none, and never with a leftover', async () => {
    for (let round = 0; round < 5; round++) {
      const work = [...Array(6)].flatMap(() => [
        users.create({ username: 'grace' }, 'admin'),
        users.remove('grace', 'admin').then(id => users.erase(id)),
      ])
      for (const result of await Promise.allSettled(work))
        if (result.status === 'rejected') expect(result.reason.code).toMatch(/^user-(exists|not-found)$/)
      const rows = await database.db.query<{ id: string }>("select id from users where username = 'grace'")
      expect(rows.length).toBeLessThan(2)
      expect(await roles()).toEqual(rows.map(row => databaseRole(row.id)))
      if (rows.length > 0) await users.erase(await users.remove('grace', 'admin'))
    }
  })
})

describe('API keys', () => {
  const now = Date.parse('2027-01-01T00:00:00Z')

  test('a new key is told once, kept as a hash, and listed with its prefix only', async () => {
    await users.create({ username: 'alice' }, 'admin')
    const issued = await users.issueKey(
      'alice',
      { name: 'laptop', expiresAt: '2027-06-01T02:00:00+02:00' },
      'admin',
      now,
    )
    const keys = await users.listKeys('alice')
    expect(keys).toHaveLength(2)
    expect(keys[1]).toEqual({
      id: issued.id,
      name: 'laptop',
      prefix: issued.prefix,
      createdAt: expect.any(String),
      expiresAt: '2027-06-01T00:00:00.000Z',
      lastUsedAt: null,
      lastClient: null,
      lastAddress: null,
      replacedBy: null,
    })
    expect(JSON.stringify([keys, await everything()])).not.toContain(issued.key.slice(11))
    expect(await audited('alice')).toContain('api-key.issued')
  })

  test('an expiry in the past is refused and makes no key', async () => {
    await users.create({ username: 'bob' }, 'admin')
    const before = await everything()
    for (const expiresAt of ['2026-12-31T23:59:59Z', '2027-01-01T00:00:00Z'])
      expect(await rejected(users.issueKey('bob', { expiresAt }, 'admin', now))).toMatchObject({
        code: 'request-invalid',
        invalid: [{ pointer: '#/expiresAt' }],
      })
    expect(await everything()).toEqual(before)
  })

  test('a revoked key is in no list, and revoking again, or a key of somebody else, is not found', async () => {
    const alice = await users.create({ username: 'carol' }, 'admin')
    const bob = await users.create({ username: 'dave' }, 'admin')
    await users.revokeKey('carol', alice.apiKey.id, 'admin')
    expect(await users.listKeys('carol')).toEqual([])
    const before = await everything()
    for (const id of [alice.apiKey.id, bob.apiKey.id, '00000000-0000-4000-8000-000000000000'])
      expect(await rejected(users.revokeKey('carol', id, 'admin'))).toMatchObject({
        code: 'api-key-not-found',
        status: 404,
      })
    expect(await everything()).toEqual(before)
    expect(await users.listKeys('dave')).toHaveLength(1)
    expect(await audited('carol')).toEqual(expect.arrayContaining(['api-key.revoked']))
  })

  test('a key issued while its user is removed is either refused or dead', async () => {
    await users.create({ username: 'erin' }, 'admin')
    const [, issued] = await Promise.allSettled([
      users.remove('erin', 'admin'),
      users.issueKey('erin', {}, 'admin', now),
    ])
    if (issued.status === 'rejected') expect(issued.reason).toMatchObject({ code: 'user-not-found' })
    expect(await database.db.query('select 1 from api_keys where revoked_at is null')).toEqual([])
  })
})
