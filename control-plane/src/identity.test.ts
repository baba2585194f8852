import { generateSealingKey } from '@sdp-mcp/instance/seal'
import { decodeJwt, decodeProtectedHeader, jwtVerify } from 'jose'
import { afterAll, beforeAll, beforeEach, expect, inject, test } from 'vitest'
import { AppError } from './errors.ts'
import { createStatementSigner, hashApiKey, looksLikeApiKey, makeApiKey, sameSecret } from './identity.ts'
import { fixedKeyring } from './keyring.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
})
afterAll(() => database?.[Symbol.asyncDispose]())
beforeEach(() => database.db.query('delete from signing_keys'))

const masterKey = generateSealingKey()
const instance = { userId: '5c0d2a44-7a59-4c14-9d1e-0a3b5f6c7d8e', username: 'alice', generation: 3 }
const signer = (now = Date.now, key = masterKey) =>
  createStatementSigner({ db: database.db, keyring: fixedKeyring(key), now })
type PublicKey = Parameters<typeof jwtVerify>[1]

test('an API key has 256 random bits, is told by its prefix, and never repeats', () => {
  const keys = [...Array(200)].map(() => makeApiKey())
  expect(new Set(keys.map(one => one.key)).size).toBe(200)
  for (const { key, prefix, hash } of keys) {
    expect(key).toMatch(/^sdpmcp_[A-Za-z0-9_-]{43}$/)
    expect(Buffer.from(key.slice(7), 'base64url')).toHaveLength(32)
    expect(prefix).toBe(key.slice(0, 11))
    expect(hash).toEqual(hashApiKey(key))
    expect(hash.toString('latin1')).not.toContain(key.slice(11))
  }
})

test.each([
  '',
  'sdpmcp_',
  'sdpmcp_short',
  `sdpmcp_${'a'.repeat(42)}`,
  `sdpmcp_${'a'.repeat(44)}`,
  `SDPMCP_${'a'.repeat(43)}`,
  ` sdpmcp_${'a'.repeat(43)}`,
  `sdpmcp_${'a'.repeat(43)}\n`,
  `sdpmcp_${'a'.repeat(42)}=`,
])('%j is told from a key without hashing it', text => {
  expect(looksLikeApiKey(text)).toBe(false)
})

test('secrets are the same or not, whatever their lengths', () => {
  expect(sameSecret('one', 'one')).toBe(true)
  expect(sameSecret('one', 'two')).toBe(false)
  expect(sameSecret('one', 'one more')).toBe(false)
  expect(sameSecret('', 'one')).toBe(false)
})

test('a statement names user, instance, generation and purpose, lasts five minutes, and the published key verifies it', async () => {
  const subject = signer()
  const [publicKey] = await subject.publicKeys()
  const { payload, protectedHeader } = await jwtVerify(
    await subject.statement(instance, 'mcp'),
    publicKey as unknown as PublicKey,
    { issuer: 'sdp-mcp', audience: `instance:${instance.userId}:3`, subject: 'alice' },
  )
  expect(payload).toMatchObject({ purpose: 'mcp' })
  expect(payload.exp! - payload.iat!).toBe(300)
  expect(protectedHeader).toMatchObject({ alg: 'EdDSA', kid: publicKey!.kid })
})

test('a statement for one instance, generation or purpose is not that for another', async () => {
  const subject = signer()
  const [first, ...others] = await Promise.all([
    subject.statement(instance, 'mcp'),
    subject.statement(instance, 'control'),
    subject.statement({ ...instance, generation: 4 }, 'mcp'),
    subject.statement({ ...instance, userId: '00000000-0000-4000-8000-000000000000' }, 'mcp'),
  ])
  for (const other of others) expect(other).not.toBe(first)
  expect(decodeJwt(others[0]!).purpose).toBe('control')
  expect(decodeJwt(others[1]!).aud).toBe(`instance:${instance.userId}:4`)
})

test('a statement is handed out again while at least a minute of it is left, and never later', async () => {
  let time = 1_700_000_000_000
  const subject = signer(() => time)
  const first = await subject.statement(instance, 'mcp')
  for (const seconds of [1, 100, 239]) {
    time = 1_700_000_000_000 + seconds * 1000
    expect(await subject.statement(instance, 'mcp')).toBe(first)
  }
  time = 1_700_000_000_000 + 240_000
  const second = await subject.statement(instance, 'mcp')
  expect(second).not.toBe(first)
  expect(decodeJwt(second).exp).toBe(1_700_000_000 + 240 + 300)
})

test('no private key is published', async () => {
  for (const key of await signer().publicKeys()) expect(key).not.toHaveProperty('d')
})

test('the private key stands in the database sealed only', async () => {
  await signer().publicKeys()
  const [row] = await database.db.query<{ public_jwk: Record<string, unknown>; private_sealed: string }>(
    'select public_jwk, private_sealed from signing_keys',
  )
  expect(row!.public_jwk).not.toHaveProperty('d')
  expect(row!.private_sealed).toMatch(new RegExp(`^v1\\.${masterKey.id}\\.`))
  expect(row!.private_sealed).not.toContain('"d"')
})

test('twenty control planes starting on an empty database agree on one key, which outlives them', async () => {
  const signers = [...Array(20)].map(() => signer())
  const published = await Promise.all(signers.map(one => one.publicKeys()))
  expect(new Set(published.map(keys => JSON.stringify(keys))).size).toBe(1)
  expect(published[0]).toHaveLength(1)
  const later = signer()
  expect(await later.publicKeys()).toEqual(published[0])
  expect(decodeProtectedHeader(await later.statement(instance, 'mcp')).kid).toBe(published[0]![0]!.kid)
})

test('the newest key signs, and instances are given the older ones as well', async () => {
  const [newest] = await signer().publicKeys()
  await database.db.query(
    `insert into signing_keys (kid, public_jwk, private_sealed, created_at)
     select 'older', jsonb_set(public_jwk, '{kid}', '"older"'), 'never opened', now() - interval '1 day' from signing_keys`,
  )
  const subject = signer()
  expect((await subject.publicKeys()).map(key => key.kid)).toEqual([newest!.kid, 'older'])
  expect(decodeProtectedHeader(await subject.statement(instance, 'mcp')).kid).toBe(newest!.kid)
})

test('a signing key that was moved to another row signs nothing', async () => {
  await signer().publicKeys()
  await database.db.query("update signing_keys set kid = 'moved'")
  await expect(signer().publicKeys()).rejects.toMatchObject({
    code: 'key-unknown',
    message: expect.stringContaining('signing_keys was altered'),
  })
})

test('a signing key sealed with another master key is told as such, with what to do', async () => {
  await signer().publicKeys()
  const failing = signer(Date.now, generateSealingKey()).publicKeys()
  await expect(failing).rejects.toBeInstanceOf(AppError)
  await expect(failing).rejects.toMatchObject({
    code: 'key-unknown',
    message: expect.stringContaining('SDP_MASTER_KEY'),
  })
})

test('a signer that could not read its keys tries again with the next request', async () => {
  await signer().publicKeys()
  const subject = signer(Date.now)
  await database.db.query('alter table signing_keys rename to signing_keys_away')
  await expect(subject.statement(instance, 'mcp')).rejects.toThrow()
  await database.db.query('alter table signing_keys_away rename to signing_keys')
  expect(await subject.statement(instance, 'mcp')).toMatch(/^eyJ/)
})
