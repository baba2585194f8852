import { generateSealingKey, type SealingKey } from '@sdp-mcp/instance/seal'
import { createLocalJWKSet, type JWK, jwtVerify } from 'jose'
import { afterEach, beforeEach, expect, inject, test } from 'vitest'
import { silentLog } from './fleet/testing/support.ts'
import { createStatementSigner } from './identity.ts'
import { createKeyring, type MasterKeys } from './keyring.ts'
import { createMasterKey } from './master-key.ts'
import { dismissEverybody, openTestDatabase, type TestDatabase } from './testing/database.ts'
import { createVault } from './vault.ts'

let database: TestDatabase
const [old, next] = [generateSealingKey(), generateSealingKey()]

beforeEach(async () => {
  database = await openTestDatabase(inject('postgres'))
})
afterEach(async () => {
  await dismissEverybody(database.db, controlPlane(old).vault)
  await database[Symbol.asyncDispose]()
})

/** The parts of one control plane that is configured with these keys. */
function controlPlane(current: SealingKey, ...others: SealingKey[]) {
  return process(() => ({ current, old: others }))
}

function process(keys: () => MasterKeys, reloadElsewhere = async () => {}) {
  const keyring = createKeyring(keys)
  const { db } = database
  const vault = createVault({ db, keyring })
  const signer = createStatementSigner({ db, keyring, now: Date.now })
  const masterKey = createMasterKey({ db, keyring, vault, signer, reloadElsewhere, log: silentLog })
  return { keyring, vault, signer, masterKey }
}

async function enroll(vault: ReturnType<typeof createVault>, username: string) {
  return database.db.withTx(async tx => {
    const [row] = await tx.query<{ id: string }>(
      'insert into users (username, display_name) values ($1, $1) returning id',
      [username],
    )
    return { id: row!.id, key: await vault.enroll(tx, row!.id) }
  })
}
// one after another: on a busy machine a hundred at once wait too long for one of the ten connections
async function crowd(vault: ReturnType<typeof createVault>, count: number, name = 'u') {
  const users: Awaited<ReturnType<typeof enroll>>[] = []
  for (let index = 0; index < count; index++) users.push(await enroll(vault, `${name}-${index}`))
  return users
}

async function finished(masterKey: ReturnType<typeof createMasterKey>) {
  for (;;) {
    const status = await masterKey.status()
    if (!status.running) return status
    await new Promise(done => setTimeout(done, 10))
  }
}
const audit = (action: string) =>
  database.db.query<{ actor: string; detail: Record<string, unknown> }>(
    'select actor, detail from audit_events where action = $1 order by id',
    [action],
  )

test('every data key and signing key is wrapped anew while users are added; each stays the same key, and the old master key is no longer needed', async () => {
  const before = controlPlane(old)
  const users = await crowd(before.vault, 120)
  const statement = await before.signer.statement({ userId: users[0]!.id, username: 'u-0', generation: 1 }, 'mcp')

  const during = controlPlane(next, old)
  expect(await during.masterKey.status()).toMatchObject({ current: next.id, remaining: 121, running: false })
  await during.masterKey.rewrap('admin')
  users.push(...(await crowd(during.vault, 10, 'late')))
  for (const { id, key } of users.slice(0, 20)) expect((await during.vault.dataKey(id)).id).toBe(key.id)
  expect(await finished(during.masterKey)).toEqual({
    current: next.id,
    keys: [
      { id: next.id, configured: true, dataKeys: 130, signingKeys: 1 },
      { id: old.id, configured: true, dataKeys: 0, signingKeys: 0 },
    ],
    remaining: 0,
    running: false,
    failure: null,
  })

  const after = controlPlane(next)
  await after.masterKey.check()
  for (const { id, key } of users) {
    const now = await after.vault.dataKey(id)
    expect(now.bytes.equals(key.bytes)).toBe(true)
  }
  await after.vault.databaseLogin(users[0]!.id)
  // statements signed before and after are of one key, so instances trust both
  const keys = createLocalJWKSet({ keys: (await after.signer.publicKeys()) as JWK[] })
  await jwtVerify(statement, keys)
  await jwtVerify(await after.signer.statement({ userId: users[0]!.id, username: 'u-0', generation: 1 }, 'mcp'), keys)
  expect((await audit('master-key.rewrap-finished')).map(({ actor, detail }) => [actor, detail])).toEqual([
    ['admin', { to: next.id, dataKeys: 120, signingKeys: 1, unopened: 0 }],
  ])
}, 60_000)

test('a rotation that was interrupted goes on where it stopped, and until then both kinds open', async () => {
  const users = await crowd(controlPlane(old).vault, 70)
  const first = controlPlane(next, old)
  expect(await first.vault.rewrap(null, 30)).toMatchObject({ rewrapped: 30, unopened: [] })
  // the process dies here
  const second = controlPlane(next, old)
  for (const { id, key } of users) expect((await second.vault.dataKey(id)).id).toBe(key.id)
  expect((await second.masterKey.status()).remaining).toBe(40)
  await second.masterKey.rewrap('admin')
  expect(await finished(second.masterKey)).toMatchObject({ remaining: 0, failure: null })
  expect((await audit('master-key.rewrap-finished'))[0]!.detail).toMatchObject({ dataKeys: 40 })
}, 60_000)

test('control planes that rotate at once do each row once, and end alike', async () => {
  await crowd(controlPlane(old).vault, 60)
  const several = [controlPlane(next, old), controlPlane(next, old), controlPlane(next, old)]
  await Promise.all(several.map(({ masterKey }) => masterKey.rewrap('admin')))
  for (const { masterKey } of several) expect(await finished(masterKey)).toMatchObject({ remaining: 0, failure: null })
  const counted = (await audit('master-key.rewrap-finished')).map(({ detail }) => Number(detail.dataKeys))
  expect(counted.reduce((sum, count) => sum + count, 0)).toBe(60)
}, 60_000)

test('workers know the new key before anything is wrapped with it', async () => {
  const before = controlPlane(old)
  const [user] = await crowd(before.vault, 1, 'worker')
  let configured: MasterKeys = { current: old, old: [] }
  const other = process(() => configured)
  const asked = process(
    () => configured,
    async () => {
      expect((await other.masterKey.status()).remaining).toBe(0)
      other.keyring.reload()
    },
  )
  configured = { current: next, old: [old] }
  await asked.masterKey.rewrap('admin')
  expect(await finished(asked.masterKey)).toMatchObject({ current: next.id, remaining: 0, failure: null })
  expect((await other.vault.dataKey(user!.id)).id).toBe(user!.key.id)
  await expect(before.vault.dataKey(user!.id)).rejects.toMatchObject({ code: 'key-unknown' })
})

test('what a lost key sealed is named and left as it is; the rest is done', async () => {
  const lost = generateSealingKey()
  const [victim] = await crowd(controlPlane(lost).vault, 1, 'victim')
  const [other] = await crowd(controlPlane(old).vault, 1, 'other')
  const row = () => database.db.query('select wrapped_key from data_keys where user_id = $1', [victim!.id])
  const before = await row()
  const { masterKey, vault } = controlPlane(next, old)
  await masterKey.check()
  await masterKey.rewrap('admin')
  const status = await finished(masterKey)
  expect(status).toMatchObject({ remaining: 1, failure: expect.stringContaining('SDP_MASTER_KEYS_OLD') })
  expect(status.keys).toContainEqual({ id: lost.id, configured: false, dataKeys: 1, signingKeys: 0 })
  expect(await row()).toEqual(before)
  expect((await vault.dataKey(other!.id)).id).toBe(other!.key.id)
  await expect(vault.dataKey(victim!.id)).rejects.toMatchObject({
    code: 'key-unknown',
    message: expect.stringContaining(lost.id),
  })
  // the key is found again
  const again = controlPlane(next, lost)
  await again.masterKey.rewrap('admin')
  expect(await finished(again.masterKey)).toMatchObject({ remaining: 0, failure: null })
  expect((await again.vault.dataKey(victim!.id)).bytes.equals(victim!.key.bytes)).toBe(true)
}, 60_000)

test('with a key that opens nothing a control plane does not start, and says which one is needed', async () => {
  await crowd(controlPlane(old).vault, 2)
  await expect(controlPlane(next).masterKey.check()).rejects.toMatchObject({
    code: 'key-unknown',
    message: expect.stringMatching(new RegExp(`${old.id}.*${next.id}.*SDP_MASTER_KEYS_OLD`)),
  })
  await controlPlane(next, old).masterKey.check()
  await controlPlane(old).masterKey.check()
})
