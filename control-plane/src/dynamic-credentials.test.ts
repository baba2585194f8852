import { randomBytes } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { sealingKey } from '@sdp-mcp/instance/seal'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { createClientFingerprints } from './client-fingerprints.ts'
import { createDynamicCredentials, usernameOf } from './dynamic-credentials.ts'
import { eventually, silentLog } from './fleet/testing/support.ts'
import { createKeyring } from './keyring.ts'
import { testConfig } from './testing/config.ts'
import { startControlPlane, type TestControlPlane } from './testing/control-plane.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'

let database: TestDatabase
const logs: string[] = []
const secrets = new Set<string>()

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
})
const open: TestControlPlane[] = []
afterEach(async () => {
  const [first] = open
  const rows = await database.db.query<{ username: string }>('select username from users')
  for (const { username } of rows) await first!.users.erase(await first!.users.remove(username, 'admin'))
  for (const controlPlane of open.splice(0)) {
    logs.push(controlPlane.logged())
    await controlPlane[Symbol.asyncDispose]()
  }
})
afterAll(async () => {
  await database?.[Symbol.asyncDispose]()
  expect(logs.join('').length).toBeGreaterThan(1_000)
  expect(secrets.size).toBeGreaterThan(5)
  for (const secret of secrets) expect(logs.join('')).not.toContain(secret)
})

async function start(mode: string, environment: Record<string, string> = {}) {
  const controlPlane = await startControlPlane(database, {
    environment: { SDP_DYNAMIC_CREDENTIALS: mode, ...environment },
  })
  controlPlane.answerWith(events)
  open.push(controlPlane)
  return controlPlane
}
const events = ({ method, response }: { method: string; response: ServerResponse }) => {
  response.writeHead(200, { 'content-type': method === 'GET' ? 'text/event-stream' : 'application/json' })
  if (method === 'GET') response.write('data: hello\n\n')
  else response.end('{}')
}
const pair = (clientId: string, secret: string, more: Record<string, string> = {}) => {
  secrets.add(secret)
  return { 'x-sdp-client-id': clientId, 'x-sdp-client-secret': secret, ...more }
}
async function add(controlPlane: TestControlPlane, username: string, clientId: string, clientSecret: string, sdp = {}) {
  secrets.add(clientSecret)
  const { status, json } = await controlPlane.admin('POST', '/v1/users', {
    username,
    sdp: { clientId, clientSecret, ...sdp },
  })
  expect(status).toBe(201)
  return { key: json.apiKey.key as string, userId: await controlPlane.users.idOf(username) }
}
const post = (controlPlane: TestControlPlane, headers: Record<string, string>, path = '/mcp', from = '127.0.0.1') =>
  controlPlane.ask({ method: 'POST', path, headers, body: {}, from })
const count = async (table: string) => (await database.db.query(`select 1 from ${table}`)).length

describe('off, the default', () => {
  test('a pair opens nothing, and nothing about it is stored', async () => {
    const controlPlane = await start('off')
    await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-1')
    const answer = await post(controlPlane, pair('1000.ALICE', 'secret-of-alice-1'))
    expect([answer.status, answer.json.code]).toEqual([401, 'api-key-required'])
    expect(await count('client_fingerprints')).toBe(0)
  })
})

describe('known', () => {
  test('a pair leads to its user’s instance and nobody else’s, on the shared URLs only, and never reaches the instance', async () => {
    const controlPlane = await start('known')
    const alice = await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-2')
    const bob = await add(controlPlane, 'bob', '1000.BOB', 'secret-of-bob-2')
    const headers = pair('1000.ALICE', 'secret-of-alice-2', {
      'x-sdp-base-url': 'https://sdpondemand.manageengine.com/app/itdesk',
      'x-sdp-instance': 'itdesk',
    })
    for (const path of ['/mcp', '/messages?sessionId=1'])
      expect((await post(controlPlane, headers, path)).status).toBe(200)
    for (const path of ['/sse', '/mcp']) {
      const { request, response } = controlPlane.open({ path, headers })
      expect((await response).statusCode).toBe(200)
      request.destroy()
    }
    const seen = controlPlane.upstreamOf(alice.userId)!.seen
    expect(seen).toHaveLength(4)
    for (const { rawHeaders } of seen) expect(rawHeaders.join('\n')).not.toMatch(/x-sdp-|secret-of|1000\.ALICE/i)
    expect(controlPlane.upstreamOf(bob.userId)).toBeUndefined()
    for (const path of ['/u/alice/mcp', '/u/bob/mcp'])
      expect((await post(controlPlane, headers, path)).json.code).toBe('api-key-required')
    // the secret itself stands nowhere, and its fingerprint is no plain hash of it
    const [row] = await database.db.query<{ row: string }>(
      'select string_agg(t::text, chr(10)) as row from client_fingerprints t',
    )
    expect(row!.row).not.toContain('secret-of')
  })

  test.each([
    ['an unknown id', '1000.NOBODY', 'secret-of-alice-3'],
    ['a wrong secret', '1000.ALICE', 'secret-of-alice-4'],
    ['somebody else’s secret', '1000.ALICE', 'secret-of-bob-3'],
    ['a part of the secret', '1000.ALICE', 'secret-of-alice-'],
    ['the border moved', '1000.ALICEs', 'ecret-of-alice-3'],
  ])('%s is 401 with the steps, and starts nothing', async (_what, clientId, secret) => {
    const controlPlane = await start('known')
    const alice = await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-3')
    await add(controlPlane, 'bob', '1000.BOB', 'secret-of-bob-3')
    const answer = await post(controlPlane, pair(clientId, secret))
    expect([answer.status, answer.json.code]).toEqual([401, 'client-credentials-unknown'])
    expect(answer.headers['www-authenticate']).toContain('Bearer')
    expect(answer.json.detail).toContain('POST /v1/users')
    expect(answer.text).not.toContain(secret)
    expect(controlPlane.upstreamOf(alice.userId)).toBeUndefined()
    expect(await count('users')).toBe(2)
  })

  test('half a pair, or a variable nobody expanded, is told as such; an API key beside it decides', async () => {
    const controlPlane = await start('known')
    const alice = await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-5')
    for (const headers of [
      { 'x-sdp-client-id': '1000.ALICE' },
      { 'x-sdp-client-secret': 'secret-of-alice-5' },
      // biome-ignore lint/suspicious/noTemplateCurlyInString: what a client sends that does not know the variable
      { 'x-sdp-client-id': '1000.ALICE', 'x-sdp-client-secret': '${SDP_CLIENT_SECRET}' },
      pair('1000.ALICE', 'secret-of-alice-5', { 'x-sdp-base-url': 'file:///etc/passwd' }),
      pair('1000.ALICE', 'secret-of-alice-5', { 'x-sdp-instance': '../admin' }),
    ] as Record<string, string>[]) {
      const answer = await post(controlPlane, headers)
      expect([answer.status, answer.json.code]).toEqual([400, 'request-invalid'])
      expect(answer.text).not.toContain('secret-of')
    }
    const wrong = pair('1000.NOBODY', 'secret-of-nobody')
    expect((await post(controlPlane, { ...wrong, authorization: `Bearer ${alice.key}` })).status).toBe(200)
    expect(
      (await post(controlPlane, { ...pair('1000.ALICE', 'secret-of-alice-5'), authorization: 'Bearer wrong' })).status,
    ).toBe(401)
    // what is not set arrives empty
    expect((await post(controlPlane, { 'x-sdp-client-id': '', 'x-sdp-client-secret': '' })).json.code).toBe(
      'api-key-required',
    )
  })

  test('another site than the user’s is refused instead of quietly ignored', async () => {
    const controlPlane = await start('known')
    await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-6', { portal: 'hrdesk' })
    const site = (more: Record<string, string>) => post(controlPlane, pair('1000.ALICE', 'secret-of-alice-6', more))
    expect((await site({ 'x-sdp-instance': 'hrdesk' })).status).toBe(200)
    for (const more of [{ 'x-sdp-instance': 'itdesk' }, { 'x-sdp-base-url': 'https://evil.example' }] as Record<
      string,
      string
    >[])
      expect((await site(more)).json).toMatchObject({ status: 403, code: 'client-settings-refused' })
  })

  test('a new secret is in force at once and cuts what came in with the old one, on every control plane', async () => {
    const [one, two] = [await start('known'), await start('known')]
    await add(one, 'alice', '1000.ALICE', 'secret-of-alice-7')
    const old = pair('1000.ALICE', 'secret-of-alice-7')
    const streams = await Promise.all(
      [one, two].map(async controlPlane => {
        await eventually('known', async () => (await post(controlPlane, old)).status === 200)
        const { response } = controlPlane.open({ path: '/mcp', headers: old })
        const state = { endedAt: 0 }
        ;(await response)
          .on('data', () => {})
          .on('error', () => {})
          .on('close', () => {
            state.endedAt = performance.now()
          })
        return state
      }),
    )
    const at = performance.now()
    await one.admin('PATCH', '/v1/users/alice', { sdp: { clientSecret: 'secret-of-alice-8' } })
    await eventually('cut', () => streams.every(({ endedAt }) => endedAt > 0), 5_000)
    for (const { endedAt } of streams) expect(endedAt - at).toBeLessThan(1_000)
    for (const controlPlane of [one, two]) {
      expect((await post(controlPlane, old)).status).toBe(401)
      expect((await post(controlPlane, pair('1000.ALICE', 'secret-of-alice-8'))).status).toBe(200)
    }
    await one.admin('PATCH', '/v1/users/alice', { suspended: true })
    expect((await post(one, pair('1000.ALICE', 'secret-of-alice-8'))).json.code).toBe('user-suspended')
    await one.admin('DELETE', '/v1/users/alice')
    expect((await post(one, pair('1000.ALICE', 'secret-of-alice-8'))).json.code).toBe('client-credentials-unknown')
  })

  test('a pair that several people have, or that everybody here has, is nobody’s', async () => {
    const controlPlane = await start('known', { SDP_CLIENT_ID: '1000.COMPANY', SDP_CLIENT_SECRET: 'secret-of-company' })
    await controlPlane.admin('POST', '/v1/users', { username: 'alone' })
    expect((await post(controlPlane, pair('1000.COMPANY', 'secret-of-company'))).status).toBe(401)
    await add(controlPlane, 'alice', '1000.TEAM', 'secret-of-team-1')
    expect((await post(controlPlane, pair('1000.TEAM', 'secret-of-team-1'))).status).toBe(200)
    await add(controlPlane, 'bob', '1000.TEAM', 'secret-of-team-1')
    expect((await post(controlPlane, pair('1000.TEAM', 'secret-of-team-1'))).status).toBe(401)
    await controlPlane.admin('PATCH', '/v1/users/bob', { sdp: { clientSecret: 'secret-of-team-2' } })
    expect((await post(controlPlane, pair('1000.TEAM', 'secret-of-team-1'))).status).toBe(200)
    expect((await post(controlPlane, pair('1000.TEAM', 'secret-of-team-2'))).status).toBe(200)
  })

  test('users that were there before, and changes made while it was off, are caught up with at the start', async () => {
    const off = await start('off')
    await add(off, 'alice', '1000.ALICE', 'secret-of-alice-9')
    const known = await start('known')
    expect((await post(known, pair('1000.ALICE', 'secret-of-alice-9'))).status).toBe(200)
    await off.admin('PATCH', '/v1/users/alice', { sdp: { clientSecret: 'secret-of-alice-10' } })
    await eventually(
      'the old pair is gone',
      async () => (await post(known, pair('1000.ALICE', 'secret-of-alice-9'), '/mcp', '127.3.0.1')).status === 401,
    )
    const again = await start('known')
    expect((await post(again, pair('1000.ALICE', 'secret-of-alice-10'))).status).toBe(200)
  })

  test('a change of the master key locks nobody out: the old fingerprint counts while its key is there, then there is a new one', async () => {
    // made anew under the first of these
    await database.db.query('delete from signing_keys')
    const [first, second] = [randomBytes(32).toString('base64'), randomBytes(32).toString('base64')]
    const one = await start('known', { SDP_MASTER_KEY: first })
    await add(one, 'alice', '1000.ALICE', 'secret-of-alice-11')
    const headers = pair('1000.ALICE', 'secret-of-alice-11')
    const keyOf = async () =>
      (await database.db.query<{ key_id: string }>('select key_id from client_fingerprints'))[0]!.key_id
    const before = await keyOf()
    const both = await start('known', { SDP_MASTER_KEY: second, SDP_MASTER_KEYS_OLD: first })
    expect((await post(both, headers)).status).toBe(200)
    expect(await keyOf()).not.toBe(before)
    // and a process that still works with the fingerprint of before, as it stands
    const old = createClientFingerprints({
      db: database.db,
      vault: { dataKey: () => Promise.reject(new Error('not needed')) },
      keyring: createKeyring(() => ({ current: sealingKey(second), old: [sealingKey(first)] })),
      config: both.config,
    })
    expect(old.of('1000.ALICE', 'secret-of-alice-11', before)?.keyId).toBe(before)
    expect(old.of('1000.ALICE', 'secret-of-alice-11', 'unknown')).toBeUndefined()
    expect(old.of('1000.ALICE', 'secret-of-alice-11', before)!.fingerprint).not.toEqual(
      old.of('1000.ALICE', 'secret-of-alice-11')!.fingerprint,
    )
    await one.admin('DELETE', '/v1/users/alice')
    await one.users.erase((await database.db.query<{ id: string }>('select id from users'))[0]!.id)
    await database.db.query('delete from signing_keys')
  })

  test('a fingerprint under a master key that is not configured opens nothing', async () => {
    const controlPlane = await start('known')
    await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-14')
    await database.db.query("update client_fingerprints set key_id = 'elsewhere'")
    await controlPlane.directory.refresh(await controlPlane.users.idOf('alice'))
    expect((await post(controlPlane, pair('1000.ALICE', 'secret-of-alice-14'))).status).toBe(401)
  })

  test('guessing is slowed down for its address', async () => {
    const controlPlane = await start('known')
    await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-12')
    for (let failure = 0; failure < 5; failure++)
      expect(
        (await post(controlPlane, pair('1000.ALICE', `secret-guess-${failure}`), '/mcp', '127.3.1.1')).status,
      ).toBe(401)
    const slowed = await post(controlPlane, pair('1000.ALICE', 'secret-of-alice-12'), '/mcp', '127.3.1.1')
    expect([slowed.status, slowed.json.code]).toEqual([429, 'too-many-attempts'])
    expect(slowed.headers['retry-after']).toBeDefined()
    expect((await post(controlPlane, pair('1000.ALICE', 'secret-of-alice-12'), '/mcp', '127.3.1.2')).status).toBe(200)
  })
})

describe('enroll', () => {
  test('an unknown pair becomes a user of its own, one however often it knocks at once, and finds the same again', async () => {
    const controlPlane = await start('enroll')
    const headers = pair('1000.NEWCOMER', 'secret-of-newcomer', { 'x-sdp-instance': 'hrdesk' })
    const answers = await Promise.all([...Array(8)].map(() => post(controlPlane, headers)))
    expect(answers.map(({ status }) => status)).toEqual(Array(8).fill(200))
    const username = usernameOf('1000.NEWCOMER')
    const { json } = await controlPlane.admin('GET', `/v1/users/${username}`)
    expect(json).toMatchObject({
      username,
      sdp: {
        clientId: '1000.NEWCOMER',
        portal: 'hrdesk',
        connection: 'needs-authorization',
        baseUrl: 'https://sdpondemand.manageengine.com',
      },
    })
    expect((await controlPlane.admin('GET', `/v1/users/${username}/api-keys`)).json.apiKeys).toEqual([])
    expect(await count('users')).toBe(1)
    const [created] = await database.db.query<{ actor: string }>(
      "select actor from audit_events where action = 'user.created' and username = $1",
      [username],
    )
    expect(created!.actor).toBe('enrollment from 127.0.0.1')
    const second = await start('enroll')
    expect((await post(second, headers)).status).toBe(200)
    expect(await count('users')).toBe(1)
  })

  test('two control planes that meet newcomers at once make one user of each, and both let it in', async () => {
    const [one, two] = [await start('enroll'), await start('enroll')]
    for (let round = 1; round <= 5; round++) {
      const headers = pair(`1000.TWICE${round}`, `secret-of-twice-${round}`)
      const from = `127.5.0.${round}`
      const answers = await Promise.all(
        [one, two, one, two].map(controlPlane => post(controlPlane, headers, '/mcp', from)),
      )
      expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200])
      expect(await count('users')).toBe(round)
    }
  })

  test('a client id that somebody has is not enrolled with another secret', async () => {
    const controlPlane = await start('enroll', {
      SDP_CLIENT_ID: '1000.COMPANY',
      SDP_CLIENT_SECRET: 'secret-of-company',
    })
    await add(controlPlane, 'alice', '1000.ALICE', 'secret-of-alice-13')
    expect((await post(controlPlane, pair('1000.NEWER', 'secret-of-newer'))).status).toBe(200)
    const before = await count('users')
    for (const [clientId, secret] of [
      ['1000.ALICE', 'secret-mistyped-1'],
      ['1000.NEWER', 'secret-mistyped-2'],
      ['1000.COMPANY', 'secret-of-company'],
      ['1000.COMPANY', 'secret-mistyped-3'],
    ] as const)
      expect((await post(controlPlane, pair(clientId, secret))).json.code).toBe('client-credentials-unknown')
    expect(await count('users')).toBe(before)
  })

  test('a newcomer chooses no other server than the configured one, unless the operator allows it', async () => {
    const controlPlane = await start('enroll', { SDP_ALLOWED_UPSTREAM_HOSTS: 'desk.corp.example' })
    const at = (site: string, clientId: string) =>
      post(controlPlane, pair(clientId, 'secret-of-chooser', { 'x-sdp-base-url': site }))
    for (const site of [
      'https://evil.example',
      'http://desk.corp.example',
      'https://169.254.169.254',
      'https://127.0.0.1',
    ])
      expect((await at(site, '1000.CHOOSER')).json).toMatchObject({ status: 403, code: 'client-settings-refused' })
    expect(await count('users')).toBe(0)
    expect((await at('https://desk.corp.example', '1000.CHOOSER')).status).toBe(200)
    expect((await at('https://sdpondemand.manageengine.com', '1000.CHOOSER2')).status).toBe(200)
  })

  test('newcomers are counted by address and in total, and those who are known come in all the same', async () => {
    const controlPlane = await start('enroll', { SDP_DYNAMIC_ENROLL_PER_HOUR: '7' })
    const knock = (number: number, from: string) =>
      post(controlPlane, pair(`1000.N${number}`, `secret-of-number-${number}`), '/mcp', from)
    for (let number = 1; number <= 5; number++) expect((await knock(number, '127.4.0.1')).status).toBe(200)
    const sixth = await knock(6, '127.4.0.1')
    expect([sixth.status, sixth.json.code]).toEqual([429, 'too-many-attempts'])
    expect(Number(sixth.headers['retry-after'])).toBeGreaterThan(3_000)
    for (const number of [6, 7]) expect((await knock(number, '127.4.0.2')).status).toBe(200)
    expect((await knock(8, '127.4.0.3')).status).toBe(429)
    expect((await knock(1, '127.4.0.1')).status).toBe(200)
    expect(await count('users')).toBe(7)
  })

  test('an hour later there is room for newcomers again', async () => {
    let time = 0
    const told: string[] = []
    const nobody = { findClient: () => undefined, refresh: async () => {} }
    let created = 0
    const users = {
      create: async () => ({ userId: `${++created}`, apiKey: { id: '', prefix: '', key: '' } }),
      idOf: async () => '',
      revokeKey: async () => '',
      hasClient: async () => false,
    }
    const credentials = createDynamicCredentials({
      directory: nobody,
      fingerprints: { of: clientId => ({ keyId: '', fingerprint: Buffer.from(clientId) }) },
      users,
      checkCapacity: async () => {},
      attempts: { check: () => {}, failed: () => {}, succeeded: () => {}, size: () => 0, heard: () => {} },
      config: testConfig({ SDP_DYNAMIC_CREDENTIALS: 'enroll', SDP_DYNAMIC_ENROLL_PER_HOUR: '2' }),
      elapsed: () => time,
      log: silentLog,
      tellEnrolled: address => told.push(address),
    })
    const knock = async (clientId: string) => {
      const credential = credentials.read({ headers: pair(clientId, 'secret-of-hourly') } as unknown as IncomingMessage)
      await credentials.admit(credential!, '192.0.2.1').catch(() => {})
      return created
    }
    expect([await knock('1000.A'), await knock('1000.B'), await knock('1000.C')]).toEqual([1, 2, 2])
    time = 3_599_000
    expect(await knock('1000.C')).toBe(2)
    time = 3_600_001
    expect(await knock('1000.C')).toBe(3)
    // other workers are told, and what they tell counts
    expect(told).toEqual(['192.0.2.1', '192.0.2.1', '192.0.2.1'])
    credentials.heardEnrolled('192.0.2.2')
    expect(await knock('1000.D')).toBe(3)
  })
})
