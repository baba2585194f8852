import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { generateSealingKey, SealError, type SealingKey } from '../seal.ts'
import { fileStore } from './file-store.ts'
import { enrollLoneUser, postgresStore } from './postgres-store.ts'
import type { TokenStore } from './store.ts'
import { type TestDatabase, testDatabase } from './testing.ts'

let database: TestDatabase
let folder: string
beforeAll(async () => {
  database = await testDatabase(inject('postgres'))
  folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-store-'))
})
afterAll(async () => {
  await rm(folder, { recursive: true, force: true })
  await database[Symbol.asyncDispose]()
})

type Fixture = {
  /** opens the same connection once more, as another process would */
  open(key?: SealingKey): TokenStore
  /** everything that is stored, as text */
  dump(): Promise<string>
}
const secrets = { clientSecret: 'a-client-secret', grantCode: 'a-grant-code', refreshToken: 'a-refresh-token' }

const kinds: Record<string, () => Promise<Fixture>> = {
  async PostgreSQL() {
    const user = await database.addUser({ ...secrets, state: 'needs-authorization' })
    return {
      open: (key = user.key) => postgresStore({ ...user, key }),
      async dump() {
        const { rows } = await database.admin.query(
          'select t.*, a.* from oauth_tokens t left join oauth_access_tokens a using (user_id) where user_id = $1',
          [user.userId],
        )
        return JSON.stringify(rows)
      },
    }
  },
  async 'sealed file'() {
    const key = generateSealingKey()
    const path = join(await mkdtemp(join(folder, 'user-')), 'alice.json')
    const open = (other = key) => fileStore({ path, userId: 'alice', key: other })
    await open().takeOver({ clientId: '1000.CLIENT', ...secrets })
    return { open, dump: () => readFile(path, 'utf8') }
  },
}

describe.for(Object.entries(kinds))('a token store in a %s', ([, make]) => {
  test('keeps what was saved for the next process, and nothing in clear', async () => {
    const { open, dump } = await make()
    const store = open()
    await store.exclusively(async held => {
      expect(held.connection?.grantCode()).toBe('a-grant-code')
      await held.save({
        state: 'connected',
        scopes: ['a.b', 'c.d'],
        grantCode: null,
        refreshToken: 'another-refresh-token',
        accessToken: { token: 'an-access-token', lifeMs: 3_600_000 },
        reason: null,
      })
    })
    await store.close()
    const next = open()
    const connection = await next.read()
    expect(connection).toMatchObject({
      clientId: '1000.CLIENT',
      state: 'connected',
      scopes: ['a.b', 'c.d'],
      hasGrantCode: false,
    })
    expect(connection?.clientSecret()).toBe('a-client-secret')
    expect(connection?.refreshToken()).toBe('another-refresh-token')
    expect(connection?.accessToken?.token()).toBe('an-access-token')
    expect(connection?.accessToken?.lifeMs).toBeGreaterThan(3_590_000)
    expect(connection?.accessToken?.lifeMs).toBeLessThanOrEqual(3_600_000)
    expect(connection?.lastRefreshedAt).toBeInstanceOf(Date)
    expect(await dump()).not.toMatch(/a-client-secret|a-grant-code|refresh-token"|an-access-token/)
    await next.close()
  })

  test('undoes what a failing work saved, but keeps its mints counted', async () => {
    const { open } = await make()
    const store = open()
    await expect(
      store.exclusively(async held => {
        await held.save({ refreshToken: null, state: 'connected' })
        await held.recordMint()
        throw new Error('crash')
      }),
    ).rejects.toThrow('crash')
    const connection = await store.read()
    expect(connection?.refreshToken()).toBe('a-refresh-token')
    expect(connection?.state).toBe('needs-authorization')
    const ages = await store.mintAgesMs()
    expect(ages).toHaveLength(1)
    expect(ages[0]).toBeLessThan(5_000)
    await store.close()
  })

  test('lets one process work at a time, and shows the second what the first saved', async () => {
    const { open } = await make()
    const stores = [open(), open(), open()]
    let inside = 0
    const seen = await Promise.all(
      stores.map((store, at) =>
        store.exclusively(async held => {
          expect(++inside).toBe(1)
          await held.recordMint()
          await held.save({ scopes: [...(held.connection?.scopes ?? []), `s${at}`] })
          await new Promise(done => setTimeout(done, 50))
          inside--
          return held.connection?.scopes.length
        }),
      ),
    )
    expect(seen.sort()).toEqual([0, 1, 2])
    expect((await stores[0]!.read())?.scopes.toSorted()).toEqual(['s0', 's1', 's2'])
    expect(await stores[0]!.mintAgesMs()).toHaveLength(3)
    await Promise.all(stores.map(store => store.close()))
  })

  test('opened with another key tells so and overwrites nothing', async () => {
    const { open, dump } = await make()
    const before = await dump()
    const store = open(generateSealingKey())
    const connection = await store.read()
    expect(connection?.hasRefreshToken).toBe(true)
    expect(() => connection?.refreshToken()).toThrow(SealError)
    expect(() => connection?.refreshToken()).toThrow(/sealed with key [0-9a-f]{12}/)
    expect(await dump()).toBe(before)
    await store.close()
  })
})

describe('the sealed file', () => {
  test('can be read by its owner only, and leaves no drafts behind', async () => {
    const path = join(folder, 'deep', 'er', 'alice.json')
    const store = fileStore({ path, userId: 'alice', key: generateSealingKey() })
    await store.takeOver({ clientId: '1000.CLIENT', ...secrets })
    await store.exclusively(held => held.recordMint())
    for (const name of await readdir(join(folder, 'deep', 'er')))
      expect([name, ((await stat(join(folder, 'deep', 'er', name))).mode & 0o777).toString(8)]).toEqual([name, '600'])
    expect((await readdir(join(folder, 'deep', 'er'))).sort()).toEqual([
      'alice.json',
      'alice.json.lock',
      'alice.json.mints',
    ])
    expect((await stat(join(folder, 'deep', 'er'))).mode & 0o777).toBe(0o700)
  })

  test('that is none is left alone and named', async () => {
    const path = join(folder, 'foreign.json')
    await writeFile(path, '{"my":"notes"}')
    const store = fileStore({ path, userId: 'alice', key: generateSealingKey() })
    await expect(store.takeOver({ clientId: 'x', clientSecret: 'y' })).rejects.toThrow(
      /foreign\.json is not a token file/,
    )
    expect(await readFile(path, 'utf8')).toBe('{"my":"notes"}')
  })

  test('takes a grant code once, and a different one anew', async () => {
    const path = join(folder, 'given.json')
    const store = fileStore({ path, userId: 'alice', key: generateSealingKey() })
    const client = { clientId: '1000.A', clientSecret: 's' }
    await store.takeOver({ ...client, grantCode: 'one' })
    await store.exclusively(held =>
      held.save({ grantCode: null, state: 'needs-authorization', reasonCode: 'grant-code-rejected', reason: 'no.' }),
    )
    await store.takeOver({ ...client, grantCode: 'one' })
    expect(await store.read()).toMatchObject({ hasGrantCode: false, reason: 'no.' })
    await store.takeOver({ ...client, grantCode: 'two' })
    expect((await store.read())?.grantCode()).toBe('two')
    expect(await store.read()).toMatchObject({ hasGrantCode: true })
  })

  test('parked for its client secret gets one more try with another secret', async () => {
    const store = fileStore({ path: join(folder, 'secret.json'), userId: 'alice', key: generateSealingKey() })
    await store.takeOver({ clientId: '1000.A', clientSecret: 'old', refreshToken: 'r' })
    await store.exclusively(held => held.save({ state: 'needs-reauthorization', reason: 'wrong secret' }))
    await store.takeOver({ clientId: '1000.A', clientSecret: 'old', refreshToken: 'r' })
    expect(await store.read()).toMatchObject({ state: 'needs-reauthorization', hasRefreshToken: true })
    await store.takeOver({ clientId: '1000.A', clientSecret: 'new', refreshToken: 'r' })
    expect(await store.read()).toMatchObject({ state: 'needs-authorization', hasRefreshToken: true, reason: null })
  })
})

describe('PostgreSQL', () => {
  test('gives an instance its own rows and nobody else’s', async () => {
    const alice = await database.addUser(secrets)
    const bob = await database.addUser(secrets)
    const asBob = new pg.Client({ ...bob.database })
    await asBob.connect()
    const rows = async (sql: string, values: unknown[] = []) => (await asBob.query(sql, values)).rows.length
    expect(await rows('select from oauth_tokens')).toBe(1)
    expect(await rows('select from oauth_tokens where user_id = $1', [alice.userId])).toBe(0)
    expect(await rows('update oauth_tokens set reason = null where user_id = $1 returning 1', [alice.userId])).toBe(0)
    await expect(asBob.query('select record_mint($1)', [alice.userId])).rejects.toThrow(
      /null value in column "user_id"/,
    )
    await asBob.query('select record_mint($1)', [bob.userId])
    expect(await rows('select from oauth_token_mints')).toBe(1)
    for (const table of ['users', 'api_keys', 'data_keys', 'signing_keys', 'audit_events'])
      await expect(asBob.query(`select from ${table}`)).rejects.toThrow(/permission denied/)
    await asBob.end()
    const store = postgresStore({ ...alice, database: bob.database })
    expect(await store.read()).toBeUndefined()
    await store.close()
  })

  test('holds no connection while there is nothing to do', async () => {
    const user = await database.addUser(secrets)
    const store = postgresStore(user)
    await store.read()
    const count = async () =>
      (await database.admin.query('select from pg_stat_activity where usename = $1', [user.database.user])).rows.length
    expect(await count()).toBe(1)
    await expect.poll(count, { timeout: 8_000, interval: 500 }).toBe(0)
    expect(await store.read()).toBeDefined()
    await store.close()
  })

  test('of a person alone gets the rows the control plane would make, once for two starts at a time', async () => {
    const masterKey = generateSealingKey()
    const options = {
      database: database.connection,
      masterKey,
      user: {
        username: 'lonely',
        toolsets: ['core' as const],
        readOnly: false,
        sdp: {
          dataCenter: 'EU' as const,
          portal: 'itdesk',
          baseUrl: 'https://sdp.example.com',
          accountsUrl: 'https://accounts.zoho.eu',
        },
      },
      given: { clientId: '1000.A', clientSecret: 's', grantCode: 'one' },
    }
    const [first, second] = await Promise.all([enrollLoneUser(options), enrollLoneUser(options)])
    expect(second.userId).toBe(first.userId)
    expect(second.key.id).toBe(first.key.id)
    const store = postgresStore({ database: database.connection, ...first })
    expect((await store.read())?.grantCode()).toBe('one')
    await store.exclusively(held => held.save({ grantCode: null, refreshToken: 'r', state: 'connected' }))
    await enrollLoneUser(options)
    expect(await store.read()).toMatchObject({ hasGrantCode: false, state: 'connected', hasRefreshToken: true })
    await enrollLoneUser({ ...options, given: { ...options.given, grantCode: 'two' } })
    expect(await store.read()).toMatchObject({ hasGrantCode: true, state: 'connected', hasRefreshToken: true })
    await expect(enrollLoneUser({ ...options, masterKey: generateSealingKey() })).rejects.toThrow(/sealed with key/)
    await store.close()
  })
})
