import { request as httpRequest, type IncomingMessage } from 'node:http'
import { roleNames, roles, sealContext } from '@sdp-mcp/instance/contract'
import { open } from '@sdp-mcp/instance/seal'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { eventually } from '../fleet/testing/support.ts'
import { hashApiKey } from '../identity.ts'
import { type Admin, type Answer, dump, openAdmin, reply } from '../testing/admin.ts'
import { testSecrets } from '../testing/config.ts'
import { emptyAudit } from '../testing/database.ts'

let admin: Admin
let call: Admin['call']
beforeAll(async () => {
  admin = await openAdmin(inject('postgres'))
  call = admin.call
})
afterEach(async () => {
  admin.engine.down = false
  admin.engine.trouble = []
  admin.control.answer = waiting
  admin.control.calls = []
  const { json } = await call('GET', '/v1/users?limit=200')
  for (const { username } of json.users) await call('DELETE', `/v1/users/${username}`)
  await eventually('all gone', async () => (await admin.db.query('select 1 from users')).length === 0)
  expect(admin.engine.instances.size).toBe(0)
  await emptyAudit(admin.db)
})
const secrets = ['secret-of-alice-Wd39', '1000.grant-code-Kx77', '1000.refresh-token-Pz12']
const keys: string[] = []
afterAll(async () => {
  const text = admin?.logged() ?? ''
  await admin?.[Symbol.asyncDispose]()
  // what all of these tests logged
  expect(text.length).toBeGreaterThan(1_000)
  for (const secret of [...secrets, testSecrets.adminToken, ...keys.map(key => key.slice(11))])
    expect(text).not.toContain(secret)
})

const [clientSecret, grantCode, refreshToken] = secrets as [string, string, string]
const client = { clientId: '1000.ABC', clientSecret }
const waiting: Admin['control']['answer'] = one =>
  reply(one, { state: 'needs-authorization', scopes: [], reasonCode: null, reason: null })
/** Answers as an instance whose exchange worked, and writes what it would. */
const connected: Admin['control']['answer'] = async one => {
  await admin.db.query(
    "update oauth_tokens set state = 'connected', scopes = '{a.ALL}', grant_code_sealed = null, refresh_token_sealed = coalesce(refresh_token_sealed, 'sealed') where user_id = $1",
    [one.userId],
  )
  reply(one, { state: 'connected', scopes: ['a.ALL'], reasonCode: null, reason: null })
}
const rejected =
  (reasonCode: string, reason: string): Admin['control']['answer'] =>
  one =>
    reply(one, { state: 'needs-authorization', scopes: [], reasonCode, reason })

async function create(username: string, more: object = {}) {
  const answer = await call('POST', '/v1/users', { username, ...more })
  expect(answer.status, answer.text).toBe(201)
  keys.push(answer.json.apiKey.key)
  return answer
}
const ready = (username: string) =>
  eventually('ready', async () => (await call('GET', `/v1/users/${username}`)).json.instance.state === 'ready')

function expectProblem(answer: Answer, status: number, code: string): void {
  expect(answer.headers['content-type'], answer.text).toBe('application/problem+json')
  expect(answer.headers['cache-control']).toBe('no-store')
  expect(answer.json).toMatchObject({
    type: `/errors/${code}`,
    title: expect.stringMatching(/^[A-Z]/),
    status,
    detail: expect.stringMatching(/\.$/),
    code,
  })
  expect(answer.status).toBe(status)
  expect(Object.keys(answer.json).sort()).toEqual(
    [...(answer.json.errors ? ['errors'] : []), 'type', 'title', 'status', 'detail', 'code'].sort(),
  )
  for (const secret of [...secrets, testSecrets.adminToken]) expect(answer.text).not.toContain(secret)
}
const pointers = (answer: Answer) => answer.json.errors.map((error: { pointer: string }) => error.pointer)

describe('POST /v1/users', () => {
  test('answers with the user, a key, the endpoints and what to paste into Claude Code', async () => {
    const answer = await create('alice', { displayName: 'Alice', email: 'alice@example.com', readOnly: true })
    expect(answer.headers.location).toBe('/v1/users/alice')
    expect(answer.headers['preference-applied']).toBeUndefined()
    const { key, id, prefix } = answer.json.apiKey
    expect(key).toMatch(/^sdpmcp_[\w-]{43}$/)
    expect(answer.json).toEqual({
      user: {
        username: 'alice',
        displayName: 'Alice',
        email: 'alice@example.com',
        suspended: false,
        createdAt: expect.any(String),
        toolsets: ['core'],
        readOnly: true,
        limits: { requestsPerSecond: 100, burst: 200, concurrentRequests: 200, sessions: 100 },
        sdp: {
          dataCenter: 'US',
          portal: 'itdesk',
          baseUrl: 'https://sdpondemand.manageengine.com',
          accountsUrl: 'https://accounts.zoho.com',
          clientId: null,
          connection: 'needs-authorization',
          connectionReason: null,
          lastRefreshedAt: null,
        },
        instance: expect.objectContaining({ state: expect.stringMatching(/^(starting|ready)$/) }),
      },
      apiKey: { id, prefix, key },
      endpoints: { sse: 'https://mcp.example.com/u/alice/sse', mcp: 'https://mcp.example.com/u/alice/mcp' },
      claudeCode: {
        command: `claude mcp add --transport sse sdp https://mcp.example.com/u/alice/sse --header "Authorization: Bearer ${key}"`,
        mcpJson: {
          mcpServers: {
            sdp: {
              type: 'sse',
              url: 'https://mcp.example.com/u/alice/sse',
              // biome-ignore lint/suspicious/noTemplateCurlyInString: the client fills it in
              headers: { Authorization: 'Bearer ${SDP_MCP_API_KEY}' },
            },
          },
        },
      },
    })
    expect(admin.directory.find(hashApiKey(key))?.username).toBe('alice')
    await ready('alice')
    const { json } = await call('GET', '/v1/users/alice')
    expect(json.instance).toMatchObject({ state: 'ready', port: expect.any(Number), reason: null, reasonCode: null })
  })

  test('gives the instance what was given, and shows no secret of it to anybody', async () => {
    const answer = await create('alice', { sdp: { ...client, grantCode, portal: 'hr', dataCenter: 'EU' } })
    await ready('alice')
    for (const text of [
      answer.text,
      (await call('GET', '/v1/users/alice')).text,
      (await call('GET', '/v1/users')).text,
    ])
      for (const secret of [clientSecret, grantCode]) expect(text).not.toContain(secret)
    const [row] = await admin.db.query<Record<string, string>>('select * from oauth_tokens')
    const key = await admin.vault.dataKey(row!.user_id!)
    expect(open(key, row!.grant_code_sealed!, sealContext('oauth_tokens', 'grant_code_sealed', row!.user_id!))).toBe(
      grantCode,
    )
  })

  test('with "Prefer: wait" answers when the instance is ready and the grant is exchanged', async () => {
    admin.control.answer = connected
    const answer = await call(
      'POST',
      '/v1/users',
      { username: 'alice', sdp: { ...client, grantCode } },
      { prefer: 'wait=30' },
    )
    expect(answer.status).toBe(201)
    expect(answer.headers['preference-applied']).toBe('wait=30')
    expect(answer.json.user).toMatchObject({ sdp: { connection: 'connected' }, instance: { state: 'ready' } })
    expect(admin.control.calls.map(one => one.verb)).toEqual(['exchange'])
    keys.push(answer.json.apiKey.key)
  })

  test('with "Prefer: wait" a user without client or grant is added and waits for them', async () => {
    for (const [username, reasonCode] of [
      ['alice', 'client-missing'],
      ['bob', 'authorization-missing'],
      ['carol', null],
    ] as const) {
      admin.control.answer = one =>
        reply(one, { state: 'needs-authorization', scopes: [], reasonCode, reason: reasonCode && 'Not yet.' })
      const answer = await call('POST', '/v1/users', { username }, { prefer: 'respond-async, wait=20' })
      expect(answer.status, answer.text).toBe(201)
      expect(answer.json.user.sdp.connection).toBe('needs-authorization')
    }
  })

  test.each([
    ['grant-code-rejected', 422],
    ['client-rejected', 422],
    ['refresh-token-rejected', 422],
    ['portal-unknown', 422],
    ['accounts-unavailable', 503],
    ['something nobody foresaw', 503],
  ])(
    'with "Prefer: wait" what Zoho says (%s) is the answer, and nothing is left of the user',
    async (reasonCode, status) => {
      admin.control.answer = rejected(reasonCode, 'Zoho said no. Make a new code.')
      const answer = await call(
        'POST',
        '/v1/users',
        { username: 'alice', sdp: { ...client, grantCode } },
        { prefer: 'wait=30' },
      )
      expectProblem(answer, status, status === 422 ? reasonCode : 'accounts-unavailable')
      expect(answer.json.detail).toBe('Zoho said no. Make a new code.')
      expect((await call('GET', '/v1/users/alice')).status).toBe(404)
      await eventually('erased', async () => (await admin.db.query('select 1 from users')).length === 0)
      expect(admin.engine.instances.size).toBe(0)
      // the name is free for the next attempt
      admin.control.answer = connected
      expect(
        (await call('POST', '/v1/users', { username: 'alice', sdp: { ...client, grantCode } }, { prefer: 'wait=30' }))
          .status,
      ).toBe(201)
    },
  )

  test('with "Prefer: wait" an instance that cannot start is the answer, and nothing is left of the user', async () => {
    admin.engine.trouble = ['image-missing', 'image-missing', 'image-missing']
    const answer = await call('POST', '/v1/users', { username: 'alice' }, { prefer: 'wait=30' })
    expectProblem(answer, 503, 'image-missing')
    expect(Number(answer.headers['retry-after'])).toBeGreaterThan(0)
    await eventually('erased', async () => (await admin.db.query('select 1 from users')).length === 0)
  })

  test('with "Prefer: wait" a start that takes longer is no failure: the user is added and goes on starting', async () => {
    admin.engine.bootMs = 1_500
    try {
      const answer = await call('POST', '/v1/users', { username: 'alice' }, { prefer: 'wait=1' })
      expect(answer.status).toBe(201)
      expect(answer.headers['preference-applied']).toBeUndefined()
      expect(answer.json.user.instance.state).toBe('starting')
      await ready('alice')
    } finally {
      admin.engine.bootMs = 0
    }
  })

  test('with "Prefer: wait" a user that is removed meanwhile is not undone a second time, nor is its successor', async () => {
    let exchange = (_call: Parameters<Admin['control']['answer']>[0]) => {}
    const asked = new Promise<Parameters<Admin['control']['answer']>[0]>(done => {
      exchange = done
    })
    admin.control.answer = one => {
      if (one.verb === 'exchange' && admin.control.calls.length === 1) exchange(one)
      else return waiting(one)
    }
    const first = call('POST', '/v1/users', { username: 'alice', sdp: { ...client, grantCode } }, { prefer: 'wait=30' })
    const pending = await asked
    expect((await call('DELETE', '/v1/users/alice')).status).toBe(204)
    const successor = await create('alice')
    reply(pending, { state: 'needs-authorization', scopes: [], reasonCode: 'grant-code-rejected', reason: 'Too late.' })
    expect((await first).status).toBeGreaterThanOrEqual(400)
    expect((await call('GET', '/v1/users/alice')).json.createdAt).toBe(successor.json.user.createdAt)
  })

  test('a name that is taken is refused and changes nothing', async () => {
    await create('alice')
    const before = await dump(admin)
    expectProblem(await call('POST', '/v1/users', { username: 'alice', displayName: 'Other' }), 409, 'user-exists')
    expect(await dump(admin)).toEqual(before)
  })

  test('of twenty at once with one name one is added', async () => {
    const answers = await Promise.all([...Array(20)].map(() => call('POST', '/v1/users', { username: 'alice' })))
    expect(answers.filter(answer => answer.status === 201)).toHaveLength(1)
    for (const answer of answers) if (answer.status !== 201) expectProblem(answer, 409, 'user-exists')
    await ready('alice')
    expect(admin.engine.instances.size).toBe(1)
  })

  test('settings that cannot work are refused with the place, and change nothing', async () => {
    const before = await dump(admin)
    for (const [sdp, code, pointer] of [
      [{ baseUrl: 'http://sdp.example.com' }, 'sdp-settings-refused', '#/sdp/baseUrl'],
      [{ accountsUrl: 'https://user:word@zoho.example' }, 'sdp-settings-refused', '#/sdp/accountsUrl'],
      [{ grantCode }, 'client-missing', '#/sdp/clientId'],
      [{ clientId: '1000.ABC', refreshToken }, 'client-missing', '#/sdp/clientSecret'],
    ] as const) {
      const answer = await call('POST', '/v1/users', { username: 'alice', sdp })
      expectProblem(answer, 422, code)
      expect(pointers(answer)).toEqual([pointer])
    }
    expect(await dump(admin)).toEqual(before)
  })

  test('when there is no port for another user the answer says so, and nothing is added', async () => {
    await using small = await openAdmin(inject('postgres'), { SDP_INSTANCE_PORT_RANGE: '19990-19990' })
    expect((await small.call('POST', '/v1/users', { username: 'alice' })).status).toBe(201)
    expectProblem(await small.call('POST', '/v1/users', { username: 'bob' }), 503, 'port-range-exhausted')
    expect((await small.call('GET', '/v1/users')).json.users).toHaveLength(1)
  })
})

describe('bad input', () => {
  const long = 'x'.repeat(3_000)
  // what is sent, and the places that must be named
  const users: [what: string, body: unknown, places: string[]][] = [
    ['no username', {}, ['#/username']],
    ['a null username', { username: null }, ['#/username']],
    ['a number for a name', { username: 5 }, ['#/username']],
    ['a name of one letter', { username: 'a' }, ['#/username']],
    ['a name of 33 letters', { username: 'a'.repeat(33) }, ['#/username']],
    ['capitals', { username: 'Alice' }, ['#/username']],
    ['a trailing hyphen', { username: 'alice-' }, ['#/username']],
    ['a newline after the name', { username: 'alice\n' }, ['#/username']],
    ['a path for a name', { username: '../bob' }, ['#/username']],
    ['a name of another script', { username: 'алиса' }, ['#/username']],
    ['a field that does not exist', { username: 'alice', rights: 'admin' }, ['#/rights']],
    ['a role nobody knows', { username: 'alice', role: 'admin' }, ['#/role']],
    ['a role beside toolsets', { username: 'alice', role: 'technician', toolsets: ['core'] }, ['#/role']],
    ['a viewer who writes', { username: 'alice', role: 'viewer', readOnly: false }, ['#/readOnly']],
    ['a field of sdp that does not exist', { username: 'alice', sdp: { portall: 'x' } }, ['#/sdp/portall']],
    ['a field with a slash and a tilde', { username: 'alice', 'a/b~c': 1 }, ['#/a~1b~0c']],
    ['a field of absurd length', { username: 'alice', [long]: 1 }, [`#/${long.slice(0, 64)}`]],
    ['an empty display name', { username: 'alice', displayName: ' ' }, ['#/displayName']],
    ['a long display name', { username: 'alice', displayName: long }, ['#/displayName']],
    ['a NUL in the display name', { username: 'alice', displayName: 'a\u0000b' }, ['#/displayName']],
    ['an escape sequence in the display name', { username: 'alice', displayName: '\u001b[31mred' }, ['#/displayName']],
    ['an object for the display name', { username: 'alice', displayName: { a: 1 } }, ['#/displayName']],
    ['no e-mail address', { username: 'alice', email: 'alice' }, ['#/email']],
    ['a toolset nobody knows', { username: 'alice', toolsets: ['core', 'everything'] }, ['#/toolsets/1']],
    ['no toolset', { username: 'alice', toolsets: [] }, ['#/toolsets']],
    ['a word for a list', { username: 'alice', toolsets: 'core' }, ['#/toolsets']],
    ['a word for a boolean', { username: 'alice', readOnly: 'yes' }, ['#/readOnly']],
    ['a list for sdp', { username: 'alice', sdp: [] }, ['#/sdp']],
    ['null for sdp', { username: 'alice', sdp: null }, ['#/sdp']],
    ['a data center nobody knows', { username: 'alice', sdp: { dataCenter: 'MARS' } }, ['#/sdp/dataCenter']],
    ['a path for a portal', { username: 'alice', sdp: { portal: '../itdesk' } }, ['#/sdp/portal']],
    ['no address', { username: 'alice', sdp: { baseUrl: 'helpdesk' } }, ['#/sdp/baseUrl']],
    [
      'a script for an address',
      { username: 'alice', sdp: { accountsUrl: 'javascript:alert(1)' } },
      ['#/sdp/accountsUrl'],
    ],
    ['an empty client id', { username: 'alice', sdp: { clientId: '' } }, ['#/sdp/clientId']],
    [
      'a secret with a space in it',
      { username: 'alice', sdp: { clientId: 'x', clientSecret: `${clientSecret} x` } },
      ['#/sdp/clientSecret'],
    ],
    [
      'a secret with a NUL in it',
      { username: 'alice', sdp: { clientId: 'x', clientSecret: `${clientSecret}\u0000` } },
      ['#/sdp/clientSecret'],
    ],
    [
      'a secret that is an object',
      { username: 'alice', sdp: { clientId: 'x', clientSecret: { value: clientSecret } } },
      ['#/sdp/clientSecret'],
    ],
    [
      'a grant code of absurd length',
      { username: 'alice', sdp: { grantCode: grantCode.repeat(100) } },
      ['#/sdp/grantCode'],
    ],
    ['a grant code and a refresh token', { username: 'alice', sdp: { ...client, grantCode, refreshToken } }, ['#/sdp']],
    [
      'several at once',
      { username: 'A', email: 'x', readOnly: 1, sdp: { portal: '', clientSecret: [clientSecret] }, x: 1 },
      ['#/username', '#/email', '#/readOnly', '#/sdp/portal', '#/sdp/clientSecret', '#/x'],
    ],
    ['a list for the body', [{ username: 'alice' }], ['#']],
    ['a word for the body', '"alice"', ['#']],
    ['a number for the body', '5', ['#']],
  ]
  test.each(users)(
    'POST /v1/users with %s is refused with the places, and changes nothing',
    async (_what, body, places) => {
      const before = await dump(admin)
      const answer = await call('POST', '/v1/users', body, { 'content-type': 'application/json' })
      expectProblem(answer, 400, 'request-invalid')
      expect(pointers(answer).sort()).toEqual([...new Set(places)].sort())
      expect(answer.text.length).toBeLessThan(4_000)
      expect(await dump(admin)).toEqual(before)
    },
  )

  const changes: [what: string, body: unknown, places: string[]][] = [
    ['nothing to change', {}, ['#']],
    ['another username', { username: 'bob' }, ['#/username']],
    ['a grant code', { sdp: { grantCode } }, ['#/sdp/grantCode']],
    ['a word for suspended', { suspended: 'yes' }, ['#/suspended']],
    ['null for a name', { displayName: null }, ['#/displayName']],
    ['a wrong and a right field', { readOnly: true, toolsets: [5] }, ['#/toolsets/0']],
    ['a role nobody knows', { role: 'admin' }, ['#/role']],
    ['a role beside toolsets', { role: 'power', toolsets: ['core'] }, ['#/role']],
    ['a secret that is a number', { sdp: { clientSecret: 5 } }, ['#/sdp/clientSecret']],
  ]
  test.each(changes)('PATCH with %s is refused with the places, and changes nothing', async (_what, body, places) => {
    await create('alice')
    const before = await dump(admin)
    const answer = await call('PATCH', '/v1/users/alice', body)
    expectProblem(answer, 400, 'request-invalid')
    expect(pointers(answer)).toEqual(places)
    expect(await dump(admin)).toEqual(before)
  })

  test.each([
    ['a name that is a number', { name: 5 }, ['#/name']],
    ['an empty name', { name: '' }, ['#/name']],
    ['an expiry that is no time', { expiresAt: 'tomorrow' }, ['#/expiresAt']],
    ['an expiry without zone', { expiresAt: '2030-01-01T00:00:00' }, ['#/expiresAt']],
    ['an expiry in the past', { expiresAt: '2020-01-01T00:00:00Z' }, ['#/expiresAt']],
    ['a key of one’s own', { key: 'sdpmcp_mine' }, ['#/key']],
  ])('POST api-keys with %s is refused with the places, and makes no key', async (_what, body, places) => {
    await create('alice')
    const before = await dump(admin)
    const answer = await call('POST', '/v1/users/alice/api-keys', body)
    expectProblem(answer, 400, 'request-invalid')
    expect(pointers(answer)).toEqual(places)
    expect(await dump(admin)).toEqual(before)
  })

  test.each([
    ['nothing', {}, ['#']],
    ['both', { grantCode, refreshToken }, ['#']],
    ['an empty code', { grantCode: '' }, ['#/grantCode']],
    ['a code in a list', { grantCode: [grantCode] }, ['#/grantCode']],
    ['a field that does not exist', { code: grantCode }, ['#/code']],
  ])('POST authorization with %s is refused with the places, and changes nothing', async (_what, body, places) => {
    await create('alice', { sdp: client })
    await ready('alice')
    const before = await dump(admin)
    const answer = await call('POST', '/v1/users/alice/authorization', body)
    expectProblem(answer, 400, 'request-invalid')
    expect(pointers(answer)).toEqual(expect.arrayContaining(places))
    expect(admin.control.calls).toEqual([])
    expect(await dump(admin)).toEqual(before)
  })

  const withBody: [method: string, url: string][] = [
    ['POST', '/v1/users'],
    ['PATCH', '/v1/users/alice'],
    ['POST', '/v1/users/alice/authorization'],
  ]
  test.each(withBody)('%s %s without a usable body is refused by kind, and changes nothing', async (method, url) => {
    await create('alice', { sdp: client })
    await ready('alice')
    const before = await dump(admin)
    const json = { 'content-type': 'application/json' }
    const send = (body: string | undefined, headers: Record<string, string> = json) => call(method, url, body, headers)
    expectProblem(await send(undefined, {}), 400, 'body-missing')
    expectProblem(await send(undefined), 400, 'body-missing')
    expectProblem(await send(''), 400, 'body-missing')
    expectProblem(await send('null'), 400, 'body-missing')
    for (const body of [
      `{"clientSecret": "${clientSecret}`,
      `{"clientSecret": ${clientSecret}}`,
      `{'clientSecret': '${clientSecret}'}`,
      `${clientSecret}`,
      `{"a": "${clientSecret}",}`,
      '{"__proto__": {"suspended": true}}',
      '{"sdp": {"constructor": {"prototype": {"admin": true}}}}',
      '{"__proto__": null, "username": "eve"}',
      '[1,2',
    ])
      expectProblem(await send(body), 400, 'body-malformed')
    expectProblem(await send('{}', { 'content-type': 'text/plain' }), 415, 'content-type-unsupported')
    expectProblem(
      await send('username=alice', { 'content-type': 'application/x-www-form-urlencoded' }),
      415,
      'content-type-unsupported',
    )
    expectProblem(await send('<user/>', { 'content-type': 'application/xml' }), 415, 'content-type-unsupported')
    expectProblem(await send('{}', { 'content-type': 'nonsense' }), 415, 'content-type-unsupported')
    expectProblem(await send(JSON.stringify({ displayName: 'x'.repeat(300_000) })), 413, 'body-too-large')
    expect(await dump(admin)).toEqual(before)
    expect(({} as { suspended?: boolean }).suspended).toBeUndefined()
  })

  test('a malformed body is told where it breaks, not what stands there', async () => {
    const answer = await call('POST', '/v1/users', `{"username": "alice" "secret": "${clientSecret}"}`, {
      'content-type': 'application/json',
    })
    expectProblem(answer, 400, 'body-malformed')
    expect(answer.json.detail).toContain('at position 21')
  })

  test('a hundred thousand wrong fields make no answer of that size', async () => {
    const body = Object.fromEntries([...Array(20_000)].map((_, index) => [`f${index}`, 1]))
    const answer = await call('POST', '/v1/users', body)
    expectProblem(answer, 400, 'request-invalid')
    expect(answer.json.errors.length).toBeLessThanOrEqual(20)
    expect(answer.text.length).toBeLessThan(5_000)
  })

  test.each([
    'limit=0',
    'limit=-1',
    'limit=201',
    'limit=1.5',
    'limit=ten',
    'limit=',
    'limit=1&limit=2',
    'limit=NaN',
    'limit=1e9',
    'cursor=',
    'cursor=Alice',
    'cursor=..%2F',
    'cursor=a%00b',
    'cursor=alice&cursor=bob',
    'offset=5',
    '__proto__=1',
  ])('GET /v1/users?%s is refused', async query => {
    const answer = await call('GET', `/v1/users?${query}`)
    expectProblem(answer, 400, 'request-invalid')
    expect(pointers(answer)[0]).toBe(`#/query/${query.split('=')[0]}`)
  })

  const perUser: [method: string, path: string, body?: object][] = [
    ['GET', ''],
    ['PATCH', '', { readOnly: true }],
    ['DELETE', ''],
    ['GET', '/api-keys'],
    ['POST', '/api-keys', {}],
    ['DELETE', '/api-keys/00000000-0000-4000-8000-000000000000'],
    ['POST', '/authorization', { grantCode }],
    ['POST', '/instance/start'],
    ['POST', '/instance/stop'],
    ['POST', '/instance/restart'],
    ['GET', '/instance/logs'],
  ]
  test.each(perUser)('%s /v1/users/<nobody>%s is not found, and changes nothing', async (method, path, body) => {
    const before = await dump(admin)
    expectProblem(await call(method, `/v1/users/nobody${path}`, body), 404, 'user-not-found')
    for (const name of ['Alice', 'a', '-x', 'x'.repeat(33), 'al%00ice', "a'b"]) {
      const answer = await call(method, `/v1/users/${name}${path}`, body)
      expectProblem(answer, 400, 'request-invalid')
      expect(pointers(answer)).toEqual(['#/params/username'])
    }
    expect(await dump(admin)).toEqual(before)
  })
})

describe('GET /v1/users', () => {
  test('pages by username, and the cursor of the last page is null', async () => {
    for (const name of ['carol', 'alice', 'bob']) await create(name)
    await Promise.all(['carol', 'alice', 'bob'].map(ready))
    const first = await call('GET', '/v1/users?limit=2')
    expect(first.json.users.map((user: { username: string }) => user.username)).toEqual(['alice', 'bob'])
    const second = await call('GET', `/v1/users?limit=2&cursor=${first.json.nextCursor}`)
    expect(second.json.users.map((user: { username: string }) => user.username)).toEqual(['carol'])
    expect(second.json.nextCursor).toBeNull()
    expect((await call('GET', '/v1/users/?limit=2')).json).toEqual(first.json)
  })

  test('HEAD answers as GET does, without a body', async () => {
    await create('alice')
    const answer = await call('HEAD', '/v1/users/alice')
    expect(answer.status).toBe(200)
    expect(answer.text).toBe('')
    expect(answer.headers['content-type']).toContain('application/json')
  })
})

describe('roles', () => {
  test.each(roleNames)('%s is stored as the toolsets and readOnly it stands for', async role => {
    const answer = await create('alice', { role })
    const { toolsets, readOnly } = roles[role]
    expect(answer.json.user).toMatchObject({ toolsets, readOnly })
    expect(answer.json.user).not.toHaveProperty('role')
    expect(await admin.db.query('select toolsets, read_only from users')).toEqual([{ toolsets, read_only: readOnly }])
  })

  test('are changed by PATCH, in both directions, and readOnly beside one narrows it', async () => {
    await create('alice', { role: 'viewer' })
    const change = async (body: unknown) => (await call('PATCH', '/v1/users/alice', body)).json
    expect(await change({ role: 'project' })).toMatchObject({ toolsets: ['core', 'projects'], readOnly: false })
    expect(await change({ role: 'project', readOnly: true })).toMatchObject({
      toolsets: ['core', 'projects'],
      readOnly: true,
    })
    expect(await change({ displayName: 'Alice A.' })).toMatchObject({ toolsets: ['core', 'projects'], readOnly: true })
    expect(await change({ role: 'technician' })).toMatchObject({
      toolsets: ['core', 'approvals', 'assets'],
      readOnly: false,
    })
    expect(await change({ toolsets: ['core'] })).toMatchObject({ toolsets: ['core'], readOnly: false })
  })

  test('are in the description of the API', async () => {
    const { json } = await call('GET', '/openapi.json')
    for (const operation of [json.paths['/v1/users'].post, json.paths['/v1/users/{username}'].patch])
      expect(operation.requestBody.content['application/json'].schema.properties.role.enum).toEqual(roleNames)
  })
})

describe('PATCH /v1/users/:username', () => {
  test('answers with the user as it is now, and replaces the instance where it must know', async () => {
    await create('alice')
    await ready('alice')
    const starts = admin.engine.starts
    const answer = await call('PATCH', '/v1/users/alice', { displayName: 'Alice A.', toolsets: ['core', 'assets'] })
    expect(answer.status).toBe(200)
    expect(answer.json).toMatchObject({ displayName: 'Alice A.', toolsets: ['core', 'assets'] })
    await eventually('replaced', () => {
      const [instance] = admin.engine.running(
        [...admin.engine.instances.values()].find(one => one.observed.running)?.observed.userId ?? '',
      )
      return instance?.observed.generation === 2
    })
    await ready('alice')
    expect(admin.engine.starts).toBe(starts + 1)
  })

  test('suspending locks the keys out at once and stops the instance; lifting lets them in', async () => {
    const { json } = await create('alice')
    await ready('alice')
    const identity = () => admin.directory.find(hashApiKey(json.apiKey.key))
    await call('PATCH', '/v1/users/alice', { suspended: true })
    expect(identity()?.suspended).toBe(true)
    await eventually('stopped', async () => (await call('GET', '/v1/users/alice')).json.instance.state === 'stopped')
    expectProblem(await call('POST', '/v1/users/alice/instance/start'), 403, 'user-suspended')
    await call('PATCH', '/v1/users/alice', { suspended: false })
    expect(identity()?.suspended).toBe(false)
  })

  test('ten at once are made one after the other, and none is lost', async () => {
    await create('alice')
    const answers = await Promise.all([
      ...[...Array(5)].map((_, index) => call('PATCH', '/v1/users/alice', { displayName: `Alice ${index}` })),
      ...[...Array(5)].map((_, index) => call('PATCH', '/v1/users/alice', { sdp: { portal: `p${index}` } })),
    ])
    expect(answers.map(answer => answer.status)).toEqual(answers.map(() => 200))
    const { json } = await call('GET', '/v1/users/alice')
    expect(json.displayName).toMatch(/^Alice \d$/)
    expect(json.sdp.portal).toMatch(/^p\d$/)
  })
})

describe('DELETE /v1/users/:username', () => {
  test('answers 204 without a body when everything but the audit is gone', async () => {
    const { json } = await create('alice', { sdp: { ...client, refreshToken } })
    await ready('alice')
    const answer = await call('DELETE', '/v1/users/alice')
    expect(answer).toMatchObject({ status: 204, text: '' })
    expect(admin.directory.find(hashApiKey(json.apiKey.key))).toBeUndefined()
    expect(admin.engine.instances.size).toBe(0)
    expect(admin.control.calls.map(one => one.verb)).toContain('revoke')
    for (const table of ['users', 'api_keys', 'data_keys', 'oauth_tokens', 'instances'])
      expect(await admin.db.query(`select 1 from ${table}`), table).toEqual([])
    const audit = await admin.db.query<{ action: string }>("select action from audit_events where username = 'alice'")
    expect(audit.map(row => row.action)).toEqual(
      expect.arrayContaining(['user.created', 'user.removed', 'connection.revoked', 'user.erased']),
    )
    expectProblem(await call('DELETE', '/v1/users/alice'), 404, 'user-not-found')
  })

  test('while the engine is away the user is locked out, the answer says that the rest is pending, and repeating it finishes', async () => {
    const { json } = await create('alice')
    await ready('alice')
    admin.engine.down = true
    const answer = await call('DELETE', '/v1/users/alice')
    expectProblem(answer, 503, 'user-removal-pending')
    expect(Number(answer.headers['retry-after'])).toBeGreaterThan(0)
    expect(admin.directory.find(hashApiKey(json.apiKey.key))).toBeUndefined()
    expect((await call('GET', '/v1/users/alice')).status).toBe(404)
    expectProblem(await call('DELETE', '/v1/users/alice'), 503, 'user-removal-pending')
    admin.engine.down = false
    expect((await call('DELETE', '/v1/users/alice')).status).toBe(204)
    expect(admin.engine.instances.size).toBe(0)
    const removals = await admin.db.query("select 1 from audit_events where action = 'user.removed'")
    expect(removals).toHaveLength(1)
  })

  test('ten at once all end well', async () => {
    await create('alice')
    await ready('alice')
    const answers = await Promise.all([...Array(10)].map(() => call('DELETE', '/v1/users/alice')))
    expect(answers.some(answer => answer.status === 204)).toBe(true)
    for (const answer of answers) expect([204, 404]).toContain(answer.status)
    expect(admin.engine.instances.size).toBe(0)
  })

  test('adding and removing one name at once leaves either a whole user or none', async () => {
    for (let round = 0; round < 3; round++) {
      const answers = await Promise.all(
        [...Array(6)].map((_, index) =>
          index % 2 ? call('DELETE', '/v1/users/alice') : call('POST', '/v1/users', { username: 'alice' }),
        ),
      )
      for (const answer of answers) expect([201, 204, 404, 409]).toContain(answer.status)
      await eventually('settled', async () => {
        const { json } = await call('GET', '/v1/users')
        return json.users.length === admin.engine.instances.size
      })
      await call('DELETE', '/v1/users/alice')
    }
  })
})

describe('API keys', () => {
  test('a new key is shown once, works at once, and is listed by its prefix', async () => {
    await create('alice')
    const answer = await call('POST', '/v1/users/alice/api-keys', { name: 'laptop', expiresAt: '2099-01-01T00:00:00Z' })
    expect(answer.status).toBe(201)
    const { apiKey, claudeCode } = answer.json
    keys.push(apiKey.key)
    expect(answer.headers.location).toBe(`/v1/users/alice/api-keys/${apiKey.id}`)
    expect(claudeCode.command).toContain(apiKey.key)
    expect(admin.directory.find(hashApiKey(apiKey.key))?.keyId).toBe(apiKey.id)
    const list = await call('GET', '/v1/users/alice/api-keys')
    expect(list.json.apiKeys).toHaveLength(2)
    expect(list.json.apiKeys[1]).toEqual({
      id: apiKey.id,
      name: 'laptop',
      prefix: apiKey.prefix,
      createdAt: expect.any(String),
      expiresAt: '2099-01-01T00:00:00.000Z',
      lastUsedAt: null,
      lastClient: null,
      lastAddress: null,
      replacedBy: null,
    })
    expect(list.text).not.toContain(apiKey.key.slice(11))
  })

  test('no body is needed', async () => {
    await create('alice')
    for (const [body, headers] of [
      [undefined, {}],
      ['', { 'content-type': 'application/json' }],
      ['{}', { 'content-type': 'application/json' }],
    ] as const)
      expect((await call('POST', '/v1/users/alice/api-keys', body, headers)).status).toBe(201)
  })

  test('a revoked key does not work any more when the answer comes, and revoking again is not found', async () => {
    const { json } = await create('alice')
    const { id, key } = json.apiKey
    const answer = await call('DELETE', `/v1/users/alice/api-keys/${id}`)
    expect(answer).toMatchObject({ status: 204, text: '' })
    expect(admin.directory.find(hashApiKey(key))).toBeUndefined()
    expectProblem(await call('DELETE', `/v1/users/alice/api-keys/${id}`), 404, 'api-key-not-found')
  })

  test('a key of another user, or an id that is none, is not found', async () => {
    await create('alice')
    const { json } = await create('bob')
    expectProblem(await call('DELETE', `/v1/users/alice/api-keys/${json.apiKey.id}`), 404, 'api-key-not-found')
    const answer = await call('DELETE', '/v1/users/alice/api-keys/sdpmcp_ab12')
    expectProblem(answer, 400, 'request-invalid')
    expect(pointers(answer)).toEqual(['#/params/id'])
    expect(admin.directory.find(hashApiKey(json.apiKey.key))?.username).toBe('bob')
  })
})

describe('POST /v1/users/:username/authorization', () => {
  test('a grant that Zoho accepted is kept although the portal is wrong, and the answer says both', async () => {
    await create('alice', { sdp: client })
    admin.control.answer = one =>
      reply(one, {
        state: 'connected',
        scopes: ['SDPOnDemand.requests.ALL'],
        reasonCode: 'portal-unknown',
        reason: 'Take another portal.',
      })
    const answer = await call('POST', '/v1/users/alice/authorization', { grantCode })
    expect([answer.status, answer.json]).toEqual([
      200,
      {
        connection: 'connected',
        scopes: ['SDPOnDemand.requests.ALL'],
        warning: { code: 'portal-unknown', detail: 'Take another portal.' },
      },
    ])
    const events = await admin.db.query<{ action: string }>(
      "select action from audit_events where username = 'alice' and action like 'connection.%'",
    )
    expect(events.map(({ action }) => action)).toEqual(['connection.authorized'])
  })

  test('hands the code to the instance and tells the state', async () => {
    await create('alice', { sdp: client })
    admin.control.answer = connected
    const answer = await call('POST', '/v1/users/alice/authorization', { grantCode })
    expect(answer).toMatchObject({ status: 200, json: { connection: 'connected', scopes: ['a.ALL'] } })
    expect((await call('GET', '/v1/users/alice')).json.sdp.connection).toBe('connected')
    expect(await admin.db.query("select 1 from audit_events where action = 'connection.authorized'")).toHaveLength(1)
  })

  test('wakes an instance that was stopped', async () => {
    await create('alice', { sdp: client })
    await ready('alice')
    await call('POST', '/v1/users/alice/instance/stop')
    await eventually('stopped', async () => (await call('GET', '/v1/users/alice')).json.instance.state === 'stopped')
    admin.control.answer = connected
    expect((await call('POST', '/v1/users/alice/authorization', { refreshToken })).status).toBe(200)
  })

  test.each([
    ['grantCode', grantCode, 'grant-code-rejected'],
    ['refreshToken', refreshToken, 'refresh-token-rejected'],
  ])('what Zoho rejects as %s leaves what was in force before', async (field, value, code) => {
    await create('alice', { sdp: client })
    const [user] = await admin.db.query<{ id: string }>('select id from users')
    await admin.db.query(
      "update oauth_tokens set state = 'connected', scopes = '{a}', refresh_token_sealed = 'the earlier one' where user_id = $1",
      [user!.id],
    )
    admin.control.answer = async one => {
      // an instance notes a refused refresh token
      if (field === 'refreshToken')
        await admin.db.query(
          "update oauth_tokens set state = 'needs-reauthorization', reason_code = 'refresh-token-rejected' where user_id = $1",
          [one.userId],
        )
      reply(one, {
        state: field === 'refreshToken' ? 'needs-reauthorization' : 'connected',
        scopes: ['a'],
        reasonCode: code,
        reason: 'Zoho said no. Make a new code.',
      })
    }
    const answer = await call('POST', '/v1/users/alice/authorization', { [field]: value })
    expectProblem(answer, 422, code)
    expect(answer.json.detail).toBe('Zoho said no. Make a new code.')
    const [row] = await admin.db.query(
      'select state, refresh_token_sealed, grant_code_sealed, scopes, reason_code from oauth_tokens',
    )
    expect(row).toEqual({
      state: 'connected',
      refresh_token_sealed: 'the earlier one',
      grant_code_sealed: null,
      scopes: ['a'],
      reason_code: null,
    })
    expect(await admin.db.query("select 1 from audit_events where action = 'connection.rejected'")).not.toEqual([])
  })

  test('without an OAuth client says how to give one, and changes nothing', async () => {
    await create('alice')
    await ready('alice')
    const before = await dump(admin)
    const answer = await call('POST', '/v1/users/alice/authorization', { grantCode })
    expectProblem(answer, 422, 'client-missing')
    expect(answer.json.detail).toContain('PATCH /v1/users/alice')
    expect(await dump(admin)).toEqual(before)
  })

  test('an instance that answers nonsense is told as unreachable, and nothing changes', async () => {
    await create('alice', { sdp: client })
    await ready('alice')
    const state = () =>
      admin.db.query('select client_id, state, refresh_token_sealed, grant_code_sealed from oauth_tokens')
    const before = await state()
    for (const body of ['not json', '{"state": "fine"}', '']) {
      admin.control.answer = ({ response }) => void response.writeHead(200).end(body)
      expectProblem(await call('POST', '/v1/users/alice/authorization', { refreshToken }), 503, 'instance-unreachable')
    }
    admin.control.answer = ({ response }) => void response.writeHead(500).end('broken')
    expectProblem(await call('POST', '/v1/users/alice/authorization', { grantCode }), 503, 'instance-unreachable')
    expect(await state()).toEqual(before)
  })

  test('of a suspended user is refused', async () => {
    await create('alice', { sdp: client })
    await call('PATCH', '/v1/users/alice', { suspended: true })
    expectProblem(await call('POST', '/v1/users/alice/authorization', { grantCode }), 403, 'user-suspended')
    expect(await admin.db.query('select 1 from oauth_tokens where grant_code_sealed is not null')).toEqual([])
  })
})

describe('instances', () => {
  test('stop, start and restart answer at once and are carried out', async () => {
    await create('alice')
    await ready('alice')
    const state = async () => (await call('GET', '/v1/users/alice')).json.instance.state
    const stop = await call('POST', '/v1/users/alice/instance/stop')
    expect(stop.status).toBe(202)
    expect(stop.json).toHaveProperty('state')
    await eventually('stopped', async () => (await state()) === 'stopped')
    expect(
      (await call('POST', '/v1/users/alice/instance/start', undefined, { 'content-type': 'application/json' })).status,
    ).toBe(202)
    await ready('alice')
    const [before] = [...admin.engine.instances.values()].filter(one => one.observed.running)
    expect((await call('POST', '/v1/users/alice/instance/restart', '', {})).status).toBe(202)
    await eventually('another one', async () => {
      const [now] = [...admin.engine.instances.values()].filter(one => one.observed.running)
      return now && now.observed.id !== before!.observed.id && (await state()) === 'ready'
    })
  })

  test('the log comes as plain text, as many lines as asked for', async () => {
    await create('alice')
    await ready('alice')
    const [instance] = admin.engine.instances.values()
    instance!.log.push(...[...Array(30)].map((_, index) => `line ${index}`))
    const answer = await call('GET', '/v1/users/alice/instance/logs?tail=3')
    expect(answer).toMatchObject({ status: 200, text: 'line 27\nline 28\nline 29\n' })
    expect(answer.headers['content-type']).toBe('text/plain; charset=utf-8')
    for (const query of ['tail=0', 'tail=10001', 'tail=x', 'tail=1.5', 'follow=yes', 'lines=5'])
      expectProblem(await call('GET', `/v1/users/alice/instance/logs?${query}`), 400, 'request-invalid')
  })

  test('a followed log brings new lines until the reader leaves, without piling up listeners', async () => {
    await create('alice')
    await ready('alice')
    const warnings: string[] = []
    const onWarning = (warning: Error) => warnings.push(warning.message)
    process.on('warning', onWarning)
    const address = await admin.app.listen({ port: 0, host: '127.0.0.1' })
    const request = httpRequest(`${address}/v1/users/alice/instance/logs?follow=true`, {
      headers: { authorization: `Bearer ${testSecrets.adminToken}` },
      agent: false,
    })
    const response = await new Promise<IncomingMessage>(done => request.once('response', done).end())
    const [instance] = [...admin.engine.instances.values()]
    let text = ''
    response.on('data', chunk => {
      text += chunk
    })
    response.on('error', () => {})
    await eventually('the past', () => text.includes('listening for alice'))
    response.pause()
    for (let index = 0; index < 3_000; index++)
      for (const tell of instance!.followers) tell(`${index} ${'x'.repeat(1_000)}`)
    response.resume()
    await eventually('the present', () => text.includes('\n2999 '))
    request.destroy()
    process.off('warning', onWarning)
    expect(warnings).toEqual([])
  })

  test('a user without a container has no log', async () => {
    admin.engine.trouble = ['image-missing', 'image-missing', 'image-missing', 'image-missing']
    await create('alice')
    await eventually('failed', async () => (await call('GET', '/v1/users/alice')).json.instance.state === 'failed')
    expectProblem(await call('GET', '/v1/users/alice/instance/logs'), 404, 'instance-not-found')
    const { json } = await call('GET', '/v1/users/alice')
    expect(json.instance).toMatchObject({ reasonCode: 'image-missing', reason: expect.any(String) })
  })
})
