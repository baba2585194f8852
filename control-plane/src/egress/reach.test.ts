import { randomUUID } from 'node:crypto'
import { databaseRole } from '@sdp-mcp/instance/contract'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { silentLog } from '../fleet/testing/support.ts'
import { createStatementSigner } from '../identity.ts'
import { fixedKeyring } from '../keyring.ts'
import { testConfig } from '../testing/config.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { createUsers } from '../users.ts'
import { createVault } from '../vault.ts'
import { createEgressNotes } from './notes.ts'
import { createReach } from './reach.ts'

let database: TestDatabase
let userId: string
let users: ReturnType<typeof createUsers>
let at = Date.now()
const now = () => at
const keyring = fixedKeyring(testConfig().masterKey)

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  const vault = createVault({ db: database.db, keyring })
  users = createUsers({ db: database.db, vault, config: testConfig() })
  userId = (await users.create({ username: 'alice', sdp: { dataCenter: 'EU' } }, 'admin')).userId
})
afterAll(async () => {
  await database.db.query(`drop owned by ${databaseRole(userId)}; drop role ${databaseRole(userId)}`)
  await database[Symbol.asyncDispose]()
})

test('an instance reaches the hosts of its user’s data center, as long as it is the user’s and the user is let in', async () => {
  const reachOf = createReach({ db: database.db, users, allowedHosts: ['files.example'], now })
  const hosts = {
    username: 'alice',
    origins: ['https://sdpondemand.manageengine.eu', 'https://accounts.zoho.eu'],
    hosts: ['files.example'],
  }
  expect(await reachOf({ userId, generation: 1 })).toEqual(hosts)
  for (const stranger of [
    { userId, generation: 2 },
    { userId: randomUUID(), generation: 1 },
  ])
    expect(await reachOf(stranger)).toBeUndefined()
  // both instances of a user who is being moved
  await database.db.query(
    "insert into instances (user_id, state, generation) values ($1, 'ready', 1) on conflict (user_id) do update set generation = 1",
    [userId],
  )
  await database.db.query('update users set generation = 2 where id = $1', [userId])
  at += 10_000
  for (const generation of [1, 2]) expect(await reachOf({ userId, generation })).toEqual(hosts)
  await users.change('alice', { suspended: true }, 'admin')
  at += 10_000
  expect(await reachOf({ userId, generation: 2 })).toBeUndefined()
  await users.change('alice', { suspended: false }, 'admin')
})

test('a token is worth what the signing key says, and opens no instance; nor does a statement open the way out', async () => {
  const signer = createStatementSigner({ db: database.db, keyring, now })
  const token = await signer.egressToken({ userId, generation: 7 })
  expect(await signer.egressHolder(token)).toEqual({ userId, generation: 7 })
  const statement = await signer.statement({ userId, username: 'alice', generation: 7 }, 'control')
  const [head, body, signature] = token.split('.') as [string, string, string]
  const claims = JSON.parse(Buffer.from(body, 'base64url').toString())
  expect(claims).toMatchObject({ aud: 'egress', sub: userId })
  const other = Buffer.from(JSON.stringify({ ...claims, sub: randomUUID() })).toString('base64url')
  const none = Buffer.from(JSON.stringify({ alg: 'none' })).toString('base64url')
  for (const forged of [statement, `${head}.${other}.${signature}`, `${none}.${body}.`, `${head}.${body}.`, 'x', ''])
    expect(await signer.egressHolder(forged)).toBeUndefined()
})

test('what an instance was refused is in the audit once a minute, with how often it tried', async () => {
  const counted: string[] = []
  const note = createEgressNotes({
    db: database.db,
    metrics: { egress: outcome => counted.push(outcome) },
    now,
    log: silentLog,
  })
  const holder = { userId, generation: 1 }
  note('opened', holder, { host: 'desk.example', port: 443 })
  for (let attempt = 0; attempt < 5; attempt++) note('refused', holder, { host: 'evil.example', port: 443 })
  note('unauthorized', undefined, { host: 'evil.example', port: 443 })
  at += 61_000
  note('refused', holder, { host: '169.254.169.254', port: 80 })
  const read = () =>
    database.db.query<{ detail: object }>(
      "select detail from audit_events where action = 'instance.egress-refused' order by id",
    )
  await expect.poll(async () => (await read()).length).toBe(2)
  expect((await read()).map(event => event.detail)).toEqual([
    { outcome: 'refused', host: 'evil.example', port: 443, more: 0 },
    { outcome: 'refused', host: '169.254.169.254', port: 80, more: 4 },
  ])
  expect(counted).toHaveLength(8)
})
