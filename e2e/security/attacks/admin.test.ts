import { afterAll, beforeAll, expect, test } from 'vitest'
import { bearer, speak, statusesIn } from '../../support/attacker.ts'
import { eventually, type Stack, startStack } from '../../support/stack.ts'

// The admin API, from people without the token, with it, and with half of it.

let stack: Stack

beforeAll(async () => {
  stack = await startStack()
  await stack.addUser('alice', { displayName: 'Alice' })
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const injections = [
  "' or '1'='1",
  "'; drop table users; --",
  "alice'--",
  "alice' union select wrapped_key from data_keys--",
  "\\'; select pg_sleep(5); --",
  '1); delete from api_keys; --',
  '$1',
  "%' or username like '%",
  "alice\u0000'",
  'ʼ; drop table users; --',
  '{alice,bob}',
  'alice::text',
]

/** Everything that an injection would change. */
async function rows() {
  const [counts] = await stack.sql(
    'select (select count(*)::integer from users) as users, (select count(*)::integer from api_keys where revoked_at is null) as keys, (select count(*)::integer from data_keys) as data_keys, (select string_agg(username, $1 order by username) from users) as names',
    [','],
  )
  return counts
}

/** Every call that the API describes, with values in its path. */
async function calls(value: string): Promise<[method: string, path: string][]> {
  const { paths } = (await (await fetch(`${stack.adminUrl}/openapi.json`)).json()) as {
    paths: Record<string, Record<string, unknown>>
  }
  return Object.entries(paths).flatMap(([path, operations]) =>
    Object.keys(operations).map(
      method => [method.toUpperCase(), path.replace(/\{[^}]+\}/g, encodeURIComponent(value))] as [string, string],
    ),
  )
}

test('attack: no call of the admin API is open without the token, with an empty one or with another scheme', async () => {
  const described = (await calls('alice')).filter(([, path]) => path.startsWith('/v1/'))
  expect(described.length).toBeGreaterThan(12)
  for (const [method, path] of described) {
    for (const authorization of [
      '',
      'Bearer',
      'Bearer ',
      'Bearer undefined',
      `Basic ${stack.adminToken}`,
      stack.adminToken,
    ]) {
      const answer = await fetch(`${stack.adminUrl}${path}`, { method, headers: { authorization } })
      expect([method, path, authorization, answer.status]).toEqual([method, path, authorization, 401])
      await answer.body?.cancel()
    }
    // a right token in between: a few failures are free, more are slowed down
    expect((await stack.admin('GET', '/v1/users/alice')).status).toBe(200)
  }
})

test('attack: the admin token in the query, a cookie or X-API-Key is not taken', async () => {
  const token = encodeURIComponent(stack.adminToken)
  for (const [path, headers] of [
    [`/v1/users?token=${token}`, {}],
    [`/v1/users?access_token=${token}`, {}],
    ['/v1/users', { cookie: `token=${token}` }],
    ['/v1/users', { 'x-api-key': stack.adminToken }],
    ['/v1/users', { 'x-admin-token': stack.adminToken }],
    ['/v1/users', { 'proxy-authorization': `Bearer ${stack.adminToken}` }],
  ] as [string, Record<string, string>][])
    expect((await fetch(`${stack.adminUrl}${path}`, { headers })).status).toBe(401)
  expect(stack.controlPlane().output()).not.toContain(stack.adminToken)
})

test('attack: the time of a refusal does not tell how much of a guessed admin token is right', async () => {
  const { adminToken } = stack
  const wrongEnd = adminToken.slice(0, -1) + (adminToken.endsWith('A') ? 'B' : 'A')
  const wrongAll = 'z'.repeat(adminToken.length)
  const times: Record<string, number[]> = { [wrongEnd]: [], [wrongAll]: [], short: [] }
  for (let round = 0; round < 80; round++) {
    // a success in between, so that no guess is answered before it is compared
    expect((await stack.admin('GET', '/v1/users/alice')).status).toBe(200)
    for (const guess of Object.keys(times)) {
      const startedAt = performance.now()
      const answer = await fetch(`${stack.adminUrl}/v1/users`, { headers: bearer(guess) })
      await answer.text()
      times[guess]!.push(performance.now() - startedAt)
      expect(answer.status).toBe(401)
    }
  }
  const medians = Object.values(times).map(list => list.sort((a, b) => a - b)[40]!)
  // a wide margin: digests of equal length are compared, so there is nothing to see but noise
  expect(Math.max(...medians) / Math.min(...medians)).toBeLessThan(3)
})

test('attack: SQL in every path parameter and every query parameter is an unknown name, not a statement', async () => {
  const before = await rows()
  for (const injection of injections) {
    for (const [method, path] of await calls(injection)) {
      if (!path.includes(encodeURIComponent(injection))) continue
      const startedAt = performance.now()
      const answer = await stack.admin(method, path, method === 'POST' || method === 'PATCH' ? {} : undefined)
      expect([method, path, [400, 404, 405, 415, 422].includes(answer.status)]).toEqual([method, path, true])
      expect(performance.now() - startedAt).toBeLessThan(4_500)
      expect(JSON.stringify(answer.body)).not.toMatch(/syntax error|pg_|SQLSTATE|relation "/i)
    }
    for (const parameter of ['cursor', 'limit', 'order', 'username', 'from', 'to', 'tool', 'actor', 'action', 'tail'])
      for (const path of ['/v1/users', '/v1/audit', '/v1/usage', '/v1/sessions', '/v1/users/alice/instance/logs']) {
        const answer = await stack.admin('GET', `${path}?${parameter}=${encodeURIComponent(injection)}`)
        expect([path, parameter, [200, 400, 404].includes(answer.status)]).toEqual([path, parameter, true])
        expect(JSON.stringify(answer.body)).not.toMatch(/syntax error|SQLSTATE|v1\.[0-9a-f]{12}\./i)
      }
  }
  expect(await rows()).toEqual(before)
})

test('attack: SQL in every text of a body is kept as the text it is', async () => {
  const before = await rows()
  for (const injection of injections.filter(text => !text.includes('\0'))) {
    expect((await stack.admin('PATCH', '/v1/users/alice', { displayName: injection })).status).toBe(200)
    expect((await stack.admin('GET', '/v1/users/alice')).body.displayName).toBe(injection)
    const key = await stack.admin('POST', '/v1/users/alice/api-keys', { name: injection })
    const { body } = await stack.admin('GET', '/v1/users/alice/api-keys')
    expect(body.apiKeys.find((entry: { id: string }) => entry.id === key.body.apiKey.id).name).toBe(injection)
    await stack.admin('DELETE', `/v1/users/alice/api-keys/${key.body.apiKey.id}`)
    for (const body of [
      { username: injection },
      { username: 'mallory', sdp: { portal: injection } },
      { username: 'mallory', email: injection },
      { username: 'mallory', toolsets: [injection] },
    ])
      expect((await stack.admin('POST', '/v1/users', body)).status).toBe(400)
  }
  await stack.admin('PATCH', '/v1/users/alice', { displayName: 'Alice' })
  expect(await rows()).toEqual(before)
})

test('attack: __proto__ and constructor in a body are refused and make nobody else read-only or suspended', async () => {
  for (const body of [
    '{"username":"mallory","__proto__":{"readOnly":true,"suspended":true}}',
    '{"username":"mallory","constructor":{"prototype":{"suspended":true}}}',
    '{"username":"mallory","sdp":{"__proto__":{"portal":"x"}}}',
    '{"\\u005f_proto__":{"suspended":true},"username":"mallory"}',
  ])
    expect((await stack.admin('POST', '/v1/users', body)).status).toBe(400)
  for (const body of ['{"__proto__":{"suspended":true}}', '{"prototype":{"suspended":true}}'])
    expect((await stack.admin('PATCH', '/v1/users/alice', body)).status).toBe(400)
  for (const path of [
    '/v1/users/__proto__',
    '/v1/users/constructor',
    '/v1/users/toString/api-keys',
    '/errors/__proto__',
  ])
    expect([400, 404]).toContain((await stack.admin('GET', path)).status)
  const { body } = await stack.admin('GET', '/v1/users/alice')
  expect([body.suspended, body.readOnly]).toEqual([false, false])
})

test('attack: objects, lists and numbers where texts belong, as for a NoSQL database, are refused by place', async () => {
  const before = await rows()
  for (const value of [{ $gt: '' }, { $ne: null }, { $where: 'sleep(1000)' }, ['alice'], 0, true, { toString: 'x' }]) {
    const created = await stack.admin('POST', '/v1/users', { username: value })
    expect([created.status, created.body.errors?.[0]?.pointer]).toEqual([400, '#/username'])
    for (const field of ['displayName', 'email'])
      expect((await stack.admin('PATCH', '/v1/users/alice', { [field]: value })).status).toBe(400)
    for (const field of ['portal', 'baseUrl', 'clientId', 'clientSecret'])
      expect((await stack.admin('PATCH', '/v1/users/alice', { sdp: { [field]: value } })).status).toBe(400)
    expect((await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: value })).status).toBe(400)
    expect((await stack.admin('POST', '/v1/users/alice/api-keys', { name: value })).status).toBe(400)
  }
  for (const query of [
    'limit[$gt]=1',
    'limit=1&limit=2',
    'cursor[]=a',
    'limit=NaN',
    'limit=-1',
    'limit=1e9',
    'limit=0x10000',
  ])
    expect([query, (await stack.admin('GET', `/v1/users?${query}`)).status]).toEqual([query, 400])
  expect(await rows()).toEqual(before)
})

test('attack: fields that only the control plane may set are refused', async () => {
  for (const extra of [
    { id: '00000000-0000-0000-0000-000000000000' },
    { generation: 99 },
    { wanted: 'stopped' },
    { createdAt: '2000-01-01T00:00:00Z' },
    { instance: { port: 22, containerId: 'x' } },
    { apiKey: { key: `sdpmcp_${'a'.repeat(43)}` } },
    { role: 'admin' },
    { image: 'evil/image' },
    { sdp: { connection: 'connected' } },
    { sdp: { scopes: ['all'] } },
  ]) {
    expect([extra, (await stack.admin('POST', '/v1/users', { username: 'mallory', ...extra })).status]).toEqual([
      extra,
      400,
    ])
    expect((await stack.admin('PATCH', '/v1/users/alice', extra)).status).toBe(400)
  }
})

test('attack: oversized, deep and broken bodies are refused without an echo of what was in them', async () => {
  const secret = 'never-to-be-echoed-to-anyone'
  for (const [body, statuses] of [
    [JSON.stringify({ username: 'mallory', displayName: 'a'.repeat(300_000) }), [413]],
    [`{"username":${'['.repeat(100_000)}${']'.repeat(100_000)}}`, [400]],
    [`{"sdp":${'{"sdp":'.repeat(30_000)}1${'}'.repeat(30_000)}}`, [400, 413]],
    [`{"username":"mallory","sdp":{"clientSecret":"${secret}"`, [400]],
    [`{"username":"mallory","sdp":{"clientSecret":"${secret}",}}`, [400]],
    [
      JSON.stringify({ username: 'mallory', sdp: { clientSecret: ` ${secret} \n${secret}`, portal: `${secret}/../` } }),
      [400],
    ],
  ] as [string, number[]][]) {
    const answer = await stack.admin('POST', '/v1/users', body)
    expect(statuses).toContain(answer.status)
    expect(JSON.stringify(answer.body)).not.toContain(secret)
  }
  expect(stack.controlPlane().output()).not.toContain(secret)
})

test('attack: a grant code works once, for one client; replayed it is refused and the first grant lives on', async () => {
  const grant = await stack.simulator.createGrantCode({ user: 'alice' })
  expect((await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: grant.code })).status).toBe(200)
  const again = await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: grant.code })
  expect([again.status, again.body.code]).toEqual([422, 'grant-code-rejected'])
  const elsewhere = await stack.simulator.createGrantCode({ user: 'bob' })
  const stolen = await stack.admin(
    'POST',
    '/v1/users',
    {
      username: 'mallory',
      sdp: { clientId: elsewhere.clientId, clientSecret: elsewhere.clientSecret, grantCode: grant.code },
    },
    { prefer: 'wait=60' },
  )
  expect(stolen.status).toBe(422)
  expect((await stack.admin('GET', '/v1/users/mallory')).status).toBe(404)
  expect((await stack.admin('GET', '/v1/users/alice')).body.sdp.connection).toBe('connected')
})

test("attack: a grant code of bob's client put on alice is refused and does not connect her as bob", async () => {
  const bobs = await stack.simulator.createGrantCode({ user: 'bob' })
  const answer = await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: bobs.code })
  expect(answer.status).toBe(422)
  expect((await stack.admin('GET', '/v1/users/alice')).body.sdp.connection).toBe('connected')
})

test('attack: paths out of the documentation folders read no file of the host', async () => {
  for (const folder of ['/docs/', '/docs/static/', '/errors/'])
    for (const climb of [
      '../../../../../../etc/passwd',
      '..%2f..%2f..%2f..%2f..%2fetc%2fpasswd',
      '%2e%2e/%2e%2e/%2e%2e/package.json',
      '....//....//etc/passwd',
      '%252e%252e%252fetc%252fpasswd',
      '..%5c..%5cetc%5cpasswd',
      '/etc/passwd',
      '%00',
      'package.json',
      '.env',
    ]) {
      const heard = await speak(
        stack.adminUrl,
        `GET ${folder}${climb} HTTP/1.1\r\nHost: ${new URL(stack.adminUrl).host}\r\nConnection: close\r\n\r\n`,
      )
      expect([climb, statusesIn(heard).every(status => status >= 300 && status < 500)]).toEqual([climb, true])
      expect(heard).not.toMatch(/root:|"dependencies"|SDP_/)
    }
})

test('attack: headers that change the method, the path or the user are ignored', async () => {
  for (const headers of [
    { 'x-http-method-override': 'DELETE' },
    { 'x-method-override': 'DELETE' },
    { 'x-original-url': '/v1/users/bob' },
    { 'x-forwarded-user': 'root' },
  ] as Record<string, string>[])
    for (const method of ['GET', 'POST']) {
      const answer = await stack.admin(method, '/v1/users/alice', undefined, headers)
      expect(answer.status).toBe(method === 'GET' ? 200 : 404)
    }
  expect((await stack.admin('GET', '/v1/users/alice?_method=DELETE')).body.username).toBe('alice')
})

test('attack: the public listener serves no part of the admin API, even with the admin token', async () => {
  for (const path of [
    '/v1/users',
    '/v1/system',
    '/v1/routes',
    '/v1/users/alice',
    '/metrics',
    '/openapi.json',
    '/docs',
    '/docs/json',
    '/console',
    '/admin',
  ])
    for (const method of ['GET', 'POST', 'DELETE']) {
      const answer = await fetch(`${stack.publicUrl}${path}`, { method, headers: bearer(stack.adminToken) })
      expect([method, path, answer.status]).toEqual([method, path, 404])
    }
})

test('attack: a page of another origin is given no leave to read or send', async () => {
  for (const [base, path] of [
    [stack.adminUrl, '/v1/users'],
    [stack.publicUrl, '/u/alice/mcp'],
    [stack.publicUrl, '/healthz'],
  ])
    for (const method of ['OPTIONS', 'GET', 'POST']) {
      const answer = await fetch(`${base}${path}`, {
        method,
        headers: {
          origin: 'https://evil.example',
          'access-control-request-method': 'POST',
          'access-control-request-headers': 'authorization',
        },
      })
      expect(answer.headers.get('access-control-allow-origin')).toBe(null)
      expect(answer.headers.get('access-control-allow-credentials')).toBe(null)
      await answer.body?.cancel()
    }
  // what a form of such a page can send without asking
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x'])
    expect((await stack.admin('POST', '/v1/users', '{"username":"mallory"}', { 'content-type': type })).status).toBe(
      415,
    )
})

test('attack: usernames that look alike, are reserved words, paths or flags are refused', async () => {
  for (const username of [
    'аlice',
    'ａlice',
    'alice\u200b',
    'ALICE',
    '-rf',
    '--help',
    '../alice',
    'alice/..',
    'a',
    '',
    ' alice',
    'alice\n',
    'alice%00',
    'alice@evil',
    'a'.repeat(33),
    '1alice',
    'alice-',
    'alice_',
    'x;reboot',
    '$(id)',
    '`id`',
    'CON.',
  ])
    expect([username, (await stack.admin('POST', '/v1/users', { username })).status]).toEqual([username, 400])
})

test('attack: texts made to stall a pattern or a parser are answered at once', async () => {
  for (const [method, path, body] of [
    ['POST', '/v1/users', { username: `${'a-'.repeat(50_000)}!` }],
    ['POST', '/v1/users', { username: 'mallory', email: `${'a'.repeat(50_000)}@${'a.'.repeat(20_000)}` }],
    ['POST', '/v1/users', { username: 'mallory', sdp: { baseUrl: `https://${'a.'.repeat(50_000)}` } }],
    ['POST', '/v1/users/alice/api-keys', { expiresAt: `2027-01-01T00:00:00${'.0'.repeat(40_000)}Z` }],
    ['GET', `/v1/users?cursor=${'a-'.repeat(5_000)}!`, undefined],
  ] as const) {
    const startedAt = performance.now()
    const answer = await stack.admin(method, path, body)
    expect(answer.status).toBe(400)
    expect(performance.now() - startedAt).toBeLessThan(5_000)
  }
  const prefer = await stack.admin('POST', '/v1/users', { username: 'A' }, { prefer: `${' ,;'.repeat(4_000)}wait` })
  expect(prefer.status).toBe(400)
})

// the last one: until its wait is over, no call from here is let in
test('attack: brute force on the admin token is slowed down and gains nothing', async () => {
  const { adminToken } = stack
  const guesses = Array.from({ length: 240 }, (_, at) =>
    at % 2
      ? adminToken.slice(0, at % adminToken.length)
      : adminToken.slice(0, -1) + String.fromCharCode(33 + (at % 90)),
  ).filter(guess => guess.trim() !== adminToken)
  const statuses = new Set<number>()
  for (let at = 0; at < guesses.length; at += 20)
    await Promise.all(
      guesses.slice(at, at + 20).map(async guess => {
        const answer = await fetch(`${stack.adminUrl}/v1/users`, { headers: { authorization: `Bearer ${guess}` } })
        statuses.add(answer.status)
        await answer.text()
      }),
    )
  expect([...statuses].sort()).toEqual([401, 429])
  // waiting is asked of this address for a while, then the right token is taken
  await eventually(async () => (await stack.admin('GET', '/v1/users/alice')).status === 200, {
    withinMs: 90_000,
    what: 'the end of the wait',
  })
})
