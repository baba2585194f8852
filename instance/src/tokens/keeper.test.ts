import { startSimulator } from '@sdp-mcp/simulator'
import { pino } from 'pino'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest'
import { AuthorizationError } from '../context.ts'
import { createOutgoing } from '../outgoing.ts'
import { generateSealingKey, type SealingKey, seal } from '../seal.ts'
import { createKeeper, type Keeper } from './keeper.ts'
import { postgresStore } from './postgres-store.ts'
import { contexts } from './store.ts'
import {
  fakeToken,
  goodGrant,
  type ScriptedAccounts,
  scriptedAccounts,
  type TestConnection,
  type TestDatabase,
  testDatabase,
} from './testing.ts'
import { createZohoAccounts } from './zoho-accounts.ts'

const simulator = await startSimulator()
const http = createOutgoing({ upstreams: 'any', behindProxy: false })
let database: TestDatabase
let scripted: ScriptedAccounts
const keepers = new Set<Keeper>()

beforeAll(async () => {
  database = await testDatabase(inject('postgres'))
  scripted = await scriptedAccounts()
})
beforeEach(() => {
  simulator.reset()
  simulator.faults.set({ grantCodesPer10Minutes: 1000 })
  scripted.calls.length = 0
  scripted.reply = () => ({ body: goodGrant() })
})
afterEach(async () => {
  await Promise.all([...keepers].map(keeper => keeper.close()))
  keepers.clear()
})
afterAll(async () => {
  await simulator.close()
  await scripted[Symbol.asyncDispose]()
  await database[Symbol.asyncDispose]()
})

type User = Awaited<ReturnType<TestDatabase['addUser']>>
type KeeperSetup = {
  key?: SealingKey
  now?: () => number
  accountsUrl?: string
  breakerMs?: number
  timeoutMs?: number
}

/** A keeper as a process of its own has it. */
function keep(user: User, setup: KeeperSetup = {}): Keeper {
  const { accountsUrl = simulator.url, timeoutMs = 2_000 } = setup
  const keeper = createKeeper({
    store: postgresStore({ ...user, key: setup.key ?? user.key }),
    accounts: createZohoAccounts({ accountsUrl, consoleUrl: 'https://api-console.zoho.com', http, timeoutMs }),
    log: pino({ level: 'silent' }),
    howToAuthorize: 'Make a grant code.',
    ...(setup.now && { now: setup.now }),
    ...(setup.breakerMs && { breakerMs: setup.breakerMs }),
  })
  keepers.add(keeper)
  return keeper
}

/** A user of the simulator with a grant code waiting. */
async function withCode(more: TestConnection = {}, expiresInSeconds?: number) {
  const { code, clientId, clientSecret } = simulator.createGrantCode({ user: 'alice', expiresInSeconds })
  return database.addUser({ clientId, clientSecret, grantCode: code, ...more })
}

/** A user of the scripted server, connected, without an access token. */
const connected = (more: TestConnection = {}) => database.addUser({ refreshToken: fakeToken(), ...more })
const onScript = { accountsUrl: '' }
beforeAll(() => {
  onScript.accountsUrl = scripted.url
})

const simulatorTokenCalls = () => simulator.log.filter(({ path }) => path === '/oauth/v2/token').length

async function row(user: User) {
  const { rows } = await database.admin.query('select * from oauth_tokens where user_id = $1', [user.userId])
  return rows[0] as Record<string, unknown>
}
const mints = async (user: User) =>
  (await database.admin.query('select from oauth_token_mints where user_id = $1', [user.userId])).rows.length
const expireStored = (user: User) =>
  database.admin.query(
    "update oauth_access_tokens set minted_at = now() - interval '2 hours', expires_at = now() - interval '1 hour' where user_id = $1",
    [user.userId],
  )

async function refusal(call: Promise<unknown>): Promise<AuthorizationError> {
  const error = await call.then(
    () => expect.unreachable('a token was given'),
    (thrown: unknown) => thrown,
  )
  expect(error).toBeInstanceOf(AuthorizationError)
  return error as AuthorizationError
}

describe('a grant code', () => {
  test('is exchanged once and erased as its refresh token is stored; a restart mints nothing', async () => {
    const user = await withCode()
    const keeper = keep(user)
    keeper.start()
    const token = await keeper.accessToken()
    expect(simulatorTokenCalls()).toBe(1)
    expect(await row(user)).toMatchObject({
      state: 'connected',
      grant_code_sealed: null,
      refresh_token_sealed: expect.stringMatching(/^v1\./),
      reason: null,
    })
    expect((await keeper.status()).scopes).toContain('SDPOnDemand.requests.ALL')
    const restarted = keep(user)
    restarted.start()
    expect(await restarted.accessToken()).toBe(token)
    expect(simulatorTokenCalls()).toBe(1)
    expect(await keeper.exchange()).toMatchObject({ state: 'connected', reasonCode: null })
    expect(simulatorTokenCalls()).toBe(1)
  })

  test('two processes start with is exchanged by one of them', async () => {
    const user = await withCode()
    const tokens = await Promise.all([keep(user), keep(user), keep(user)].map(keeper => keeper.accessToken()))
    expect(new Set(tokens).size).toBe(1)
    expect(simulatorTokenCalls()).toBe(1)
  })

  test('that expired is erased, with a reason a person can act on and no second try', async () => {
    const user = await withCode({}, -1)
    const keeper = keep(user)
    const report = await keeper.exchange()
    expect(report).toMatchObject({ state: 'needs-authorization', reasonCode: 'grant-code-rejected' })
    expect(report.reason).toContain('https://api-console.zoho.com')
    expect(await row(user)).toMatchObject({ grant_code_sealed: null, reason: report.reason })
    expect((await refusal(keeper.accessToken())).kind).toBe('needs-authorization')
    expect(await keeper.exchange()).toEqual(report)
    expect(simulatorTokenCalls()).toBe(1)
  })

  test('with the wrong client secret names the secret', async () => {
    const user = await withCode({ clientSecret: 'wrong' })
    expect(await keep(user).exchange()).toMatchObject({
      state: 'needs-authorization',
      reasonCode: 'client-rejected',
      reason: expect.stringContaining('client secret'),
    })
  })

  test('that is refused leaves an earlier grant in force', async () => {
    const user = await withCode()
    const keeper = keep(user)
    const token = await keeper.accessToken()
    await database.admin.query('update oauth_tokens set grant_code_sealed = $2 where user_id = $1', [
      user.userId,
      sealedCode(user, fakeToken()),
    ])
    expect(await keeper.exchange()).toMatchObject({ state: 'connected', reasonCode: 'grant-code-rejected' })
    expect(await keeper.accessToken()).toBe(token)
    await expireStored(user)
    expect(await keep(user).accessToken()).not.toBe(token)
    expect(await row(user)).toMatchObject({ state: 'connected', reason: null })
  })

  test('survives an outage and is exchanged afterwards', async () => {
    const user = await withCode()
    const keeper = keep(user)
    simulator.faults.add({ kind: 'status', status: 502, body: 'html', match: { server: 'accounts' }, count: 1 })
    const report = await keeper.exchange()
    expect(report).toMatchObject({ state: 'needs-authorization', reasonCode: 'accounts-unavailable' })
    expect(await row(user)).toMatchObject({ grant_code_sealed: expect.any(String), reason_code: null })
    expect(await keeper.exchange()).toMatchObject({ state: 'connected', reasonCode: null })
  })

  test('whose answer came but could not be committed is not lost', async () => {
    const user = await database.addUser({ grantCode: fakeToken() })
    const keeper = keep(user, onScript)
    const refreshToken = fakeToken()
    scripted.reply = () => ({ body: goodGrant({ refresh_token: refreshToken }), delayMs: 100 })
    const first = keeper.exchange()
    await expect.poll(() => scripted.tokenCalls()).toBe(1)
    await database.admin.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [
      user.database.user,
    ])
    expect(await first).toMatchObject({ state: 'needs-authorization', reasonCode: 'accounts-unavailable' })
    expect(await keeper.accessToken()).toMatch(/^1000\./)
    expect(scripted.tokenCalls()).toBe(1)
    expect(await row(user)).toMatchObject({ state: 'connected', grant_code_sealed: null })
    expect(await mints(user)).toBe(1)
  })
})

function sealedCode(user: User, code: string): string {
  return seal(user.key, code, contexts(user.userId).grant_code_sealed)
}

describe('an access token', () => {
  test('that expired is refreshed by one call, however many ask in however many processes', async () => {
    const user = await connected()
    scripted.reply = () => ({ body: goodGrant(), delayMs: 150 })
    const both = [keep(user, onScript), keep(user, onScript)]
    const tokens = await Promise.all(Array.from({ length: 200 }, (_, at) => both[at % 2]!.accessToken()))
    expect(new Set(tokens).size).toBe(1)
    expect(scripted.tokenCalls()).toBe(1)
    await expireStored(user)
    const others = [keep(user, onScript), keep(user, onScript)]
    const again = await Promise.all(Array.from({ length: 200 }, (_, at) => others[at % 2]!.accessToken()))
    expect(new Set(again).size).toBe(1)
    expect(again[0]).not.toBe(tokens[0])
    expect(scripted.tokenCalls()).toBe(2)
  })

  test('lives as long as the database says, also where the clock of an instance is hours wrong', async () => {
    const user = await connected()
    const twoHours = 7_200_000
    const skewed = [0, twoHours, -twoHours].map(by => keep(user, { ...onScript, now: () => Date.now() + by }))
    const tokens = []
    for (const keeper of skewed) tokens.push(await keeper.accessToken(), await keeper.accessToken())
    expect(new Set(tokens).size).toBe(1)
    expect(scripted.tokenCalls()).toBe(1)
    // and ends as the database says
    await expireStored(user)
    const late = keep(user, { ...onScript, now: () => Date.now() - twoHours })
    expect(await late.accessToken()).not.toBe(tokens[0])
    expect(scripted.tokenCalls()).toBe(2)
  })

  test('is renewed ahead of its end, without anybody waiting', async () => {
    const user = await connected()
    let clock = Date.now()
    const keeper = keep(user, { ...onScript, now: () => clock })
    const token = await keeper.accessToken()
    clock += 3_600_000 - 61_000
    await database.admin.query(
      "update oauth_access_tokens set minted_at = now() - interval '59 min', expires_at = now() + interval '61 s' where user_id = $1",
      [user.userId],
    )
    scripted.reply = () => ({ body: goodGrant(), delayMs: 50 })
    expect(await keeper.accessToken()).toBe(token)
    await expect.poll(() => keeper.accessToken()).not.toBe(token)
    expect(scripted.tokenCalls()).toBe(2)
  })

  test('whose renewal fails is not renewed again at each call', async () => {
    const user = await connected()
    let clock = Date.now()
    const keeper = keep(user, { ...onScript, now: () => clock })
    const token = await keeper.accessToken()
    clock += 3_600_000 - 61_000
    await database.admin.query(
      "update oauth_access_tokens set minted_at = now() - interval '59 min', expires_at = now() + interval '61 s' where user_id = $1",
      [user.userId],
    )
    scripted.reply = () => ({ status: 503, body: '' })
    for (let at = 0; at < 20; at++) {
      expect(await keeper.accessToken()).toBe(token)
      await new Promise(done => setTimeout(done, 5))
    }
    await expect.poll(() => scripted.tokenCalls()).toBe(2)
  })

  test('near its end still serves while the accounts server is away', async () => {
    const user = await connected()
    let clock = Date.now()
    const keeper = keep(user, { ...onScript, now: () => clock })
    const token = await keeper.accessToken()
    scripted.reply = () => ({ status: 503, body: '' })
    clock += 3_600_000 - 20_000
    await database.admin.query(
      "update oauth_access_tokens set minted_at = now() - interval '59 min', expires_at = now() + interval '20 s' where user_id = $1",
      [user.userId],
    )
    expect(await keeper.accessToken()).toBe(token)
    clock += 19_000
    await expireStored(user)
    expect((await refusal(keeper.accessToken())).kind).toBe('unavailable')
  })

  test.for([-7_200_000, 7_200_000])('is judged by the database’s clock when ours is %i ms off', async skew => {
    const user = await connected()
    const token = await keep(user, onScript).accessToken()
    expect(await keep(user, { ...onScript, now: () => Date.now() + skew }).accessToken()).toBe(token)
    await expireStored(user)
    expect(await keep(user, { ...onScript, now: () => Date.now() + skew }).accessToken()).not.toBe(token)
  })

  test('the API refused is replaced once; a second refusal at once is not its fault', async () => {
    const user = await connected()
    const keeper = keep(user, onScript)
    const token = await keeper.accessToken()
    await Promise.all(Array.from({ length: 20 }, () => keeper.invalidate(token)))
    const next = await keeper.accessToken()
    expect(next).not.toBe(token)
    await keeper.invalidate(token)
    await keeper.invalidate(next)
    expect(await keeper.accessToken()).toBe(next)
    expect(scripted.tokenCalls()).toBe(2)
    // another process does not fall back to the refused one
    expect(await keep(user, onScript).accessToken()).toBe(next)
  })

  test('in memory serves while the database is away', async () => {
    const user = await connected()
    const keeper = keep(user, onScript)
    const token = await keeper.accessToken()
    const role = user.database.user
    await database.admin.query(`alter role ${role} nologin`)
    await database.admin.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [role])
    expect(await keeper.accessToken()).toBe(token)
    expect((await keeper.status()).reason).toMatch(/store/)
    const error = await refusal(keep(user, onScript).accessToken())
    expect(error).toMatchObject({ kind: 'unavailable', retryAfterSeconds: 10 })
    await database.admin.query(`alter role ${role} login`)
    expect(await keep(user, onScript).accessToken()).toBe(token)
  })

  test('is not waited for by a caller who left; the others get it', async () => {
    const user = await connected()
    scripted.reply = () => ({ body: goodGrant(), delayMs: 150 })
    const keeper = keep(user, onScript)
    const left = new AbortController()
    const leaving = keeper.accessToken(left.signal)
    const staying = keeper.accessToken()
    left.abort(new Error('gone'))
    await expect(leaving).rejects.toThrow('gone')
    expect(await staying).toMatch(/^1000\./)
    expect(scripted.tokenCalls()).toBe(1)
  })
})

describe('a refresh', () => {
  test('without a new refresh token keeps the old one; a new one is stored before anything is used', async () => {
    const user = await connected()
    const before = (await row(user)).refresh_token_sealed
    const keeper = keep(user, onScript)
    await keeper.accessToken()
    expect((await row(user)).refresh_token_sealed).toBe(before)
    await expireStored(user)
    const rotated = fakeToken()
    scripted.reply = () => ({ body: goodGrant({ refresh_token: rotated }) })
    const store = postgresStore(user)
    await keep(user, onScript).accessToken()
    expect((await store.read())?.refreshToken()).toBe(rotated)
    await store.close()
  })

  test('Zoho refuses for good parks the connection at once, without further calls', async () => {
    const user = await withCode()
    const keeper = keep(user)
    await keeper.accessToken()
    const refreshToken = simulator.state.refreshTokens.at(-1)!.token
    await fetch(`${simulator.url}/oauth/v2/token/revoke?token=${refreshToken}`, { method: 'POST' })
    await expireStored(user)
    const restarted = keep(user)
    const calls = simulatorTokenCalls()
    for (let at = 0; at < 3; at++)
      expect(await refusal(restarted.accessToken())).toMatchObject({ kind: 'needs-reauthorization' })
    expect(simulatorTokenCalls()).toBe(calls + 1)
    expect(await row(user)).toMatchObject({
      state: 'needs-reauthorization',
      reason_code: 'refresh-token-rejected',
      refresh_token_sealed: expect.any(String),
    })
    expect((await refusal(keep(user).accessToken())).message).toContain('refresh token')
    expect(simulatorTokenCalls()).toBe(calls + 1)
  })

  test('that is throttled changes nothing and is left alone for the time', async () => {
    const user = await withCode()
    await keep(user).accessToken()
    await expireStored(user)
    simulator.faults.add({ kind: 'throttle', match: { server: 'accounts' } })
    const keeper = keep(user)
    const calls = simulatorTokenCalls()
    const error = await refusal(keeper.accessToken())
    expect(error.kind).toBe('unavailable')
    expect(error.retryAfterSeconds).toBeGreaterThan(60)
    await refusal(keeper.accessToken())
    expect(simulatorTokenCalls()).toBe(calls + 1)
    expect(await row(user)).toMatchObject({ state: 'connected', reason_code: null })
    expect((await keeper.status()).accountsServer).toBe('failing')
  })

  test('is not tried at a server that keeps failing, until it had a pause', async () => {
    const user = await connected()
    const keeper = keep(user, { ...onScript, breakerMs: 200 })
    scripted.reply = () => 'hang up'
    for (let at = 0; at < 8; at++) expect((await refusal(keeper.accessToken())).kind).toBe('unavailable')
    expect(scripted.tokenCalls()).toBe(3)
    expect((await keeper.status()).accountsServer).toBe('failing')
    scripted.reply = () => ({ body: goodGrant() })
    await expect.poll(() => keeper.accessToken().catch(() => 'none'), { interval: 50 }).toMatch(/^1000\./)
    expect((await keeper.status()).accountsServer).toBe('fine')
    expect(scripted.tokenCalls()).toBe(4)
  })

  test('stays within ten calls in ten minutes, counted over restarts; two are kept for who waits', async () => {
    const user = await connected()
    await database.admin.query(
      'insert into oauth_token_mints (user_id, minted_at) select $1, now() - make_interval(mins => 9) from generate_series(1, 9)',
      [user.userId],
    )
    const keeper = keep(user, onScript)
    expect(await keeper.accessToken()).toMatch(/^1000\./)
    expect((await keeper.status()).mintsInWindow).toBe(10)
    await expireStored(user)
    const error = await refusal(keep(user, onScript).accessToken())
    expect(error.kind).toBe('unavailable')
    expect(error.retryAfterSeconds).toBeLessThanOrEqual(60)
    expect(scripted.tokenCalls()).toBe(1)
  })

  test('of a token an administrator gave proves it, or says why not', async () => {
    const good = await connected({ state: 'needs-authorization' })
    expect(await keep(good, onScript).exchange()).toMatchObject({
      state: 'connected',
      scopes: ['SDPOnDemand.requests.ALL', 'SDPOnDemand.setup.READ'],
      reasonCode: null,
    })
    scripted.reply = () => ({ body: { error: 'invalid_code' } })
    const bad = await connected({ state: 'needs-authorization' })
    const keeper = keep(bad, onScript)
    expect(await keeper.exchange()).toMatchObject({ reasonCode: 'refresh-token-rejected' })
    await keeper.exchange()
    await refusal(keeper.accessToken())
    expect(scripted.tokenCalls()).toBe(2)
  })
})

test('tokens sealed with another key give a clear error and stay as they are', async () => {
  const user = await connected()
  const before = await row(user)
  const keeper = keep(user, { ...onScript, key: generateSealingKey() })
  const error = await refusal(keeper.accessToken())
  expect(error.kind).toBe('unavailable')
  expect(error.message).toMatch(/sealed with key [0-9a-f]{12}, which is not configured/)
  expect(await row(user)).toEqual(before)
  expect(scripted.tokenCalls()).toBe(0)
})

test('nobody’s connection is no error of the store: the person is told what to do', async () => {
  const user = await database.addUser()
  await database.admin.query('delete from oauth_tokens where user_id = $1', [user.userId])
  const keeper = keep(user, onScript)
  expect(await refusal(keeper.accessToken())).toMatchObject({
    kind: 'needs-authorization',
    nextStep: 'Make a grant code.',
  })
  expect(await keeper.exchange()).toMatchObject({ state: 'needs-authorization', reasonCode: 'client-missing' })
})

test('revoking ends the grant at Zoho and erases it here; an outage erases nothing', async () => {
  const user = await withCode()
  const keeper = keep(user)
  await keeper.accessToken()
  simulator.faults.add({ kind: 'drop', match: { path: '/oauth/v2/token/revoke' }, count: 1 })
  expect(await keeper.revoke()).toMatchObject({ state: 'connected', reasonCode: 'accounts-unavailable' })
  expect(simulator.state.refreshTokens).toHaveLength(1)
  expect(await keeper.revoke()).toEqual({ state: 'needs-authorization', scopes: [], reasonCode: null, reason: null })
  expect(simulator.state.refreshTokens).toHaveLength(0)
  expect(await row(user)).toMatchObject({ refresh_token_sealed: null, state: 'needs-authorization', scopes: [] })
  expect((await refusal(keeper.accessToken())).kind).toBe('needs-authorization')
  expect(await keeper.revoke()).toMatchObject({ reasonCode: null })
})
