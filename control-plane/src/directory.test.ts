import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, expect, inject, test } from 'vitest'
import { createDb } from './db.ts'
import { type Directory, openDirectory, type Revocation } from './directory.ts'
import { eventually, silentLog } from './fleet/testing/support.ts'
import { hashApiKey } from './identity.ts'
import { fixedKeyring } from './keyring.ts'
import { testConfig } from './testing/config.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'
import { openRelay, type Relay } from './testing/relay.ts'
import { createUsers } from './users.ts'
import { createVault } from './vault.ts'

let database: TestDatabase
let users: ReturnType<typeof createUsers>
const config = testConfig()
const open: Watched[] = []

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  users = createUsers({
    db: database.db,
    vault: createVault({ db: database.db, keyring: fixedKeyring(config.masterKey) }),
    config,
  })
})
afterEach(async () => {
  for (const watched of open.splice(0)) await watched.dispose()
  const rows = await database.db.query<{ username: string }>('select username from users')
  for (const { username } of rows) await users.erase(await users.remove(username, 'admin'))
})
afterAll(() => database?.[Symbol.asyncDispose]())

type Watched = Directory & {
  revoked: (Revocation & { at: number })[]
  changed: (string | null)[]
  dispose(): Promise<void>
}

/** A directory as a control plane of its own has it, on a connection of its own. */
async function watch({
  relay,
  now = Date.now,
  elapsed = () => performance.now(),
}: {
  relay?: Relay
  now?: () => number
  elapsed?: () => number
} = {}): Promise<Watched> {
  const db = createDb({ ...database.login, ...(relay ? { port: relay.port } : {}) })
  const revoked: Watched['revoked'] = []
  const changed: (string | null)[] = []
  const directory = await openDirectory({
    db,
    log: silentLog,
    now,
    elapsed,
    config,
    onRevoked: revocation => revoked.push({ ...revocation, at: performance.now() }),
    onChanged: userId => changed.push(userId),
  })
  const watched = {
    ...directory,
    revoked,
    changed,
    async dispose() {
      await directory.close()
      await db.close()
    },
  }
  open.push(watched)
  return watched
}

const find = (directory: Directory, { key }: { key: string }) => directory.find(hashApiKey(key))

test('a key is known from the start, and one that is issued later within a second, to every control plane', async () => {
  const { userId, apiKey } = await users.create({ username: 'alice' }, 'admin')
  const [one, two] = await Promise.all([watch(), watch()])
  for (const directory of [one, two])
    expect(find(directory, apiKey)).toEqual({
      keyId: apiKey.id,
      userId,
      username: 'alice',
      suspended: false,
      expiresAt: null,
      limits: config.userLimits,
    })
  const second = await users.issueKey('alice', {}, 'admin', Date.now())
  for (const directory of [one, two])
    await eventually('known', () => find(directory, second)?.keyId === second.id, 1_000)
  expect(find(one, apiKey)?.keyId).toBe(apiKey.id)
  expect(find(one, { key: `${apiKey.key.slice(0, -1)}!` })).toBeUndefined()
})

test('a revoked key is unknown within a second to every control plane, which tells what to cut', async () => {
  const { userId, apiKey } = await users.create({ username: 'bob' }, 'admin')
  const other = await users.issueKey('bob', {}, 'admin', Date.now())
  const directories = await Promise.all([watch(), watch()])
  const before = performance.now()
  await users.revokeKey('bob', apiKey.id, 'admin')
  for (const directory of directories) {
    await eventually('unknown', () => find(directory, apiKey) === undefined, 1_000)
    expect(directory.revoked).toEqual([{ userId, keyIds: [apiKey.id], reason: 'key-revoked', at: expect.any(Number) }])
    expect(directory.revoked[0]!.at - before).toBeLessThan(1_000)
    expect(find(directory, other)?.keyId).toBe(other.id)
  }
})

test('a revocation that could not be read is seen once the database lets it, though nobody asks again', async () => {
  const { userId, apiKey } = await users.create({ username: 'bert' }, 'admin')
  const directory = await watch()
  await database.db.withTx(async tx => {
    await tx.query('lock table client_fingerprints in access exclusive mode')
    await users.revokeKey('bert', apiKey.id, 'admin')
    // that of the notification fails, too
    for (let look = 0; look < 2; look++) await expect(directory.refresh(userId)).rejects.toThrow()
  })
  await eventually('unknown', () => find(directory, apiKey) === undefined, 3_000)
  expect(directory.revoked).toMatchObject([{ keyIds: [apiKey.id], reason: 'key-revoked' }])
}, 30_000)

test('a key that has expired by our clock is none, even if the clock of the database is behind', async () => {
  const { userId } = await users.create({ username: 'berta' }, 'admin')
  let ahead = 0
  const directory = await watch({ now: () => Date.now() + ahead })
  const expiresAt = new Date(Date.now() + 50_000).toISOString()
  const key = await users.issueKey('berta', { expiresAt }, 'admin', Date.now())
  await eventually('known', () => find(directory, key), 1_000)
  ahead = 51_000
  await directory.refresh(userId)
  expect(find(directory, key)).toBeUndefined()
  expect(directory.revoked).toMatchObject([{ keyIds: [key.id], reason: 'key-revoked' }])
})

test('a suspension is told once, and keys are known as suspended, then as active again', async () => {
  const { userId, apiKey } = await users.create({ username: 'carol' }, 'admin')
  const directory = await watch()
  await users.change('carol', { suspended: true }, 'admin')
  await eventually('suspended', () => find(directory, apiKey)?.suspended, 1_000)
  await directory.refresh(userId)
  await directory.refresh(userId)
  expect(directory.revoked).toMatchObject([{ userId, reason: 'user-suspended' }])
  await users.change('carol', { suspended: false }, 'admin')
  await eventually('active', () => find(directory, apiKey)?.suspended === false, 1_000)
  expect(directory.revoked).toHaveLength(1)
})

test('a control plane that starts while a user is suspended has nothing to cut', async () => {
  const { apiKey } = await users.create({ username: 'dave' }, 'admin')
  await users.change('dave', { suspended: true }, 'admin')
  const directory = await watch()
  expect(find(directory, apiKey)?.suspended).toBe(true)
  expect(directory.revoked).toEqual([])
})

test('all keys of a removed user are unknown at once, and the removal is told as such', async () => {
  const { userId, apiKey } = await users.create({ username: 'erin' }, 'admin')
  const second = await users.issueKey('erin', {}, 'admin', Date.now())
  const directory = await watch()
  await users.remove('erin', 'admin')
  await eventually('unknown', () => !find(directory, apiKey) && !find(directory, second), 1_000)
  expect(directory.revoked).toMatchObject([{ userId, reason: 'user-removed' }])
  expect(directory.revoked[0]!.keyIds.sort()).toEqual([apiKey.id, second.id].sort())
})

test('what was committed before a refresh is in force after it, whatever else is being read', async () => {
  const { userId, apiKey } = await users.create({ username: 'frank' }, 'admin')
  const directory = await watch()
  const keys = await Promise.all([...Array(30)].map(() => users.issueKey('frank', {}, 'admin', Date.now())))
  await directory.refresh(userId)
  await Promise.all(
    keys.map(async key => {
      // reads under way while the key is revoked
      void directory.refresh(userId).catch(() => {})
      await users.revokeKey('frank', key.id, 'admin')
      await directory.refresh(userId)
      expect(find(directory, key)).toBeUndefined()
    }),
  )
  await delay(300)
  for (const key of keys) expect(find(directory, key)).toBeUndefined()
  expect(find(directory, apiKey)?.keyId).toBe(apiKey.id)
  expect(directory.revoked.flatMap(one => one.keyIds).sort()).toEqual(keys.map(key => key.id).sort())
})

test('a key ends at its expiry, and its streams are told to end within a second', async () => {
  await users.create({ username: 'heidi' }, 'admin')
  const directory = await watch()
  const expiresAt = Date.now() + 1_500
  const key = await users.issueKey('heidi', { expiresAt: new Date(expiresAt).toISOString() }, 'admin', Date.now())
  await eventually('known', () => find(directory, key), 1_000)
  expect(find(directory, key)?.expiresAt).toBe(expiresAt)
  await eventually('expired', () => directory.revoked.length > 0, 4_000)
  expect(Date.now() - expiresAt).toBeLessThan(1_000)
  expect(Date.now()).toBeGreaterThanOrEqual(expiresAt)
  expect(directory.revoked).toMatchObject([{ keyIds: [key.id], reason: 'key-revoked' }])
  expect(find(directory, key)).toBeUndefined()
})

test('what happened while the listening connection was lost is known as soon as it is back', async () => {
  const { apiKey } = await users.create({ username: 'ivan' }, 'admin')
  await using relay = await openRelay(database.login)
  const directory = await watch({ relay })
  await relay.shut()
  await users.revokeKey('ivan', apiKey.id, 'admin')
  const second = await users.issueKey('ivan', {}, 'admin', Date.now())
  // an outage cuts nobody off
  expect(find(directory, apiKey)?.username).toBe('ivan')
  expect(directory.isFresh()).toBe(true)
  await relay.reopen()
  await eventually('caught up', () => find(directory, second) && !find(directory, apiKey), 2_500)
  expect(directory.revoked).toMatchObject([{ keyIds: [apiKey.id], reason: 'key-revoked' }])
  expect(directory.changed).toContain(null)
  await directory.dispose()
  open.length = 0
})

test('with a terminated listener a revocation is still known within a second or two', async () => {
  const { apiKey } = await users.create({ username: 'judy' }, 'admin')
  const directory = await watch()
  await database.db.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%' and datname = current_database()",
  )
  await users.revokeKey('judy', apiKey.id, 'admin')
  await eventually('unknown', () => find(directory, apiKey) === undefined, 2_000)
})

test('after five minutes without a look at the database nobody is let in', async () => {
  let time = Date.now()
  const directory = await watch({ elapsed: () => time })
  expect(directory.isFresh()).toBe(true)
  time += 299_000
  expect(directory.isFresh()).toBe(true)
  time += 2_000
  expect(directory.isFresh()).toBe(false)
})

test('a clock that is set forward locks nobody out', async () => {
  let skewMs = 0
  const directory = await watch({ now: () => Date.now() + skewMs })
  skewMs = 2 * 60 * 60_000
  expect(directory.isFresh()).toBe(true)
})

test('a use that another control plane saw before a later one does not take its place', async () => {
  const { apiKey } = await users.create({ username: 'nora' }, 'admin')
  let time = Date.now()
  const [slow, quick] = [await watch({ now: () => time }), await watch({ now: () => time })]
  slow.used(apiKey.id, '127.0.0.1', 'curl')
  time += 1_000
  quick.used(apiKey.id, '127.0.0.77', 'claude-code')
  const newest = { lastAddress: '127.0.0.77', lastClient: 'claude-code' }
  const key = async () => (await users.listKeys('nora'))[0]!
  // an end writes what is left: the later use first
  await quick.close()
  expect(await key()).toMatchObject(newest)
  await slow.close()
  expect(await key()).toMatchObject(newest)
  time += 1_000
  const third = await watch({ now: () => time })
  third.used(apiKey.id, '127.0.0.2', 'curl')
  await third.close()
  expect(await key()).toMatchObject({ lastAddress: '127.0.0.2', lastClient: 'curl' })
})

test('the first use of a key stands in the database within a second, further ones about once a minute', async () => {
  const { apiKey } = await users.create({ username: 'kim' }, 'admin')
  let time = Date.now()
  const directory = await watch({ now: () => time })
  const lastUsed = async () => (await users.listKeys('kim'))[0]!.lastUsedAt
  expect(await lastUsed()).toBeNull()
  const first = time
  directory.used(apiKey.id)
  await eventually('written', async () => (await lastUsed()) === new Date(first).toISOString(), 1_000)
  time += 30_000
  directory.used(apiKey.id)
  await delay(500)
  expect(await lastUsed()).toBe(new Date(first).toISOString())
  time += 31_000
  directory.used(apiKey.id)
  await eventually('written again', async () => (await lastUsed()) === new Date(time).toISOString(), 1_000)
  // an older use, told late by another control plane, does not turn the time back
  time = first
  directory.used(apiKey.id)
  await directory.dispose()
  open.length = 0
  expect(await lastUsed()).toBe(new Date(first + 61_000).toISOString())
})

test('two programs that share a key take no turns in the database', async () => {
  const { apiKey } = await users.create({ username: 'kit' }, 'admin')
  const directory = await watch()
  const row = async () =>
    (await database.db.query('select xmin, last_client from api_keys where id = $1', [apiKey.id]))[0]!
  for (const program of ['first/1.0', 'second/1.0']) {
    directory.used(apiKey.id, '192.0.2.1', program)
    await eventually('written', async () => (await row()).last_client === program, 1_000)
  }
  const before = await row()
  for (let turn = 0; turn < 20; turn++) {
    directory.used(apiKey.id, '192.0.2.1', turn % 2 ? 'second/1.0' : 'first/1.0')
    await delay(30)
  }
  await delay(400)
  expect(await row()).toEqual(before)
  // a third one is news
  directory.used(apiKey.id, '192.0.2.1', 'third/1.0')
  await eventually('written', async () => (await row()).last_client === 'third/1.0', 1_000)
})

test('the audit tells of the first use of a key on each day, not of every use', async () => {
  const { apiKey } = await users.create({ username: 'lea' }, 'admin')
  let time = Date.parse('2026-03-01T23:00:00Z')
  const directory = await watch({ now: () => time })
  const told = () =>
    database.db.query<{ actor: string; day: string; prefix: string }>(
      `select actor, detail->>'day' as day, detail->>'keyPrefix' as prefix from audit_events
        where action = 'api-key.used' and username = 'lea' order by id`,
    )
  const use = async (count: number) => {
    directory.used(apiKey.id)
    await eventually(
      'written',
      async () => (await users.listKeys('lea'))[0]!.lastUsedAt === new Date(time).toISOString(),
    )
    expect(await told()).toHaveLength(count)
  }
  await use(1)
  time += 30 * 60_000
  await use(1)
  time += 60 * 60_000
  await use(2)
  expect((await told())[1]).toEqual({ actor: 'user:lea', day: '2026-03-02', prefix: apiKey.prefix })
})

test('a use that is not written yet is written when the control plane ends', async () => {
  const { apiKey } = await users.create({ username: 'leo' }, 'admin')
  const directory = await watch()
  directory.used(apiKey.id)
  await directory.dispose()
  open.length = 0
  expect((await users.listKeys('leo'))[0]!.lastUsedAt).not.toBeNull()
})

test('a notification that names no user is ignored', async () => {
  const { apiKey } = await users.create({ username: 'mia' }, 'admin')
  const directory = await watch()
  for (const payload of ['', 'nonsense', "'; drop table users; --", 'x'.repeat(5_000)])
    await database.db.notify('sdp_mcp_user', payload)
  const second = await users.issueKey('mia', {}, 'admin', Date.now())
  await eventually('known', () => find(directory, second), 1_000)
  expect(find(directory, apiKey)?.username).toBe('mia')
  expect(directory.changed.every(id => id === null || /^[0-9a-f-]{36}$/.test(id))).toBe(true)
})

test('two hundred changes at once are caught up with quickly', async () => {
  const directory = await watch()
  const created = await Promise.all([...Array(50)].map((_, index) => users.create({ username: `u-${index}` }, 'admin')))
  await eventually('all known', () => created.every(({ apiKey }) => find(directory, apiKey)), 2_000)
  await Promise.all(created.map(({ apiKey }, index) => users.revokeKey(`u-${index}`, apiKey.id, 'admin')))
  await eventually('all unknown', () => created.every(({ apiKey }) => !find(directory, apiKey)), 2_000)
})
