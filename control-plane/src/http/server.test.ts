import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { catalogue } from '../errors.ts'
import { type Admin, dump, openAdmin } from '../testing/admin.ts'
import { testSecrets } from '../testing/config.ts'
import { sendRaw } from '../testing/upstream.ts'

let admin: Admin
let call: Admin['call']
beforeAll(async () => {
  admin = await openAdmin(inject('postgres'))
  call = admin.call
  await call('POST', '/v1/users', { username: 'alice' })
})
afterAll(() => admin?.[Symbol.asyncDispose]())

const guarded: [method: string, url: string][] = [
  ['POST', '/v1/users'],
  ['GET', '/v1/users'],
  ['GET', '/v1/users/alice'],
  ['HEAD', '/v1/users/alice'],
  ['PATCH', '/v1/users/alice'],
  ['DELETE', '/v1/users/alice'],
  ['POST', '/v1/users/alice/api-keys'],
  ['GET', '/v1/users/alice/api-keys'],
  ['DELETE', '/v1/users/alice/api-keys/00000000-0000-4000-8000-000000000000'],
  ['POST', '/v1/users/alice/api-keys/00000000-0000-4000-8000-000000000000/rotate'],
  ['POST', '/v1/users/alice/authorization'],
  ['DELETE', '/v1/users/alice/authorization'],
  ['POST', '/v1/users/alice/connect-link'],
  ['POST', '/v1/users/alice/instance/start'],
  ['POST', '/v1/users/alice/instance/stop'],
  ['POST', '/v1/users/alice/instance/restart'],
  ['GET', '/v1/users/alice/instance/logs'],
  ['GET', '/v1/routes'],
  ['GET', '/v1/system'],
  ['GET', '/v1/sessions'],
  ['GET', '/v1/usage'],
  ['POST', '/v1/rollouts'],
  ['GET', '/v1/rollouts'],
  ['GET', '/v1/rollouts/00000000-0000-4000-8000-000000000000'],
  ['POST', '/v1/rollouts/00000000-0000-4000-8000-000000000000/pause'],
  ['POST', '/v1/rollouts/00000000-0000-4000-8000-000000000000/resume'],
  ['POST', '/v1/rollouts/00000000-0000-4000-8000-000000000000/abort'],
  ['POST', '/v1/system/master-key/rewrap'],
  ['GET', '/v1/audit'],
]

describe('who is let in', () => {
  test('every call below /v1 is in this list', () => {
    const found = [...admin.app.printRoutes({ commonPrefix: false }).matchAll(/\(([A-Z, ]+)\)/g)].length
    expect(found).toBeGreaterThan(10)
    const { paths } = admin.app.swagger() as unknown as { paths: Record<string, Record<string, unknown>> }
    const calls = Object.entries(paths).flatMap(([path, operations]) =>
      Object.keys(operations).map(
        method =>
          `${method.toUpperCase()} ${path.replace('{username}', 'alice').replace('{id}', '00000000-0000-4000-8000-000000000000')}`,
      ),
    )
    expect(calls.sort()).toEqual(
      guarded
        .filter(([method]) => method !== 'HEAD')
        .map(one => one.join(' '))
        .sort(),
    )
  })

  test.each(guarded)('%s %s is closed to whoever has no admin token, whatever else is wrong', async (method, url) => {
    const before = await dump(admin)
    const { adminToken } = testSecrets
    for (const authorization of [
      undefined,
      '',
      'Bearer',
      'Bearer ',
      'Bearer wrong',
      `Bearer ${adminToken.slice(0, -1)}`,
      `Bearer ${adminToken}x`,
      `Bearer ${adminToken.toUpperCase()}`,
      `Bearer ${adminToken}, Bearer x`,
      `Basic ${Buffer.from(`admin:${adminToken}`).toString('base64')}`,
      adminToken,
      `Token ${adminToken}`,
    ]) {
      const answer = await call(method, `${url}?token=${adminToken}&limit=nonsense`, undefined, { authorization })
      expect(answer.status, String(authorization)).toBe(401)
      expect(answer.headers['www-authenticate']).toBe('Bearer realm="sdp-mcp-admin"')
      if (method !== 'HEAD') {
        expect(answer.headers['content-type']).toBe('application/problem+json')
        expect(answer.json).toMatchObject({ code: 'admin-token-required', status: 401 })
        expect(answer.text).not.toContain(adminToken)
      }
    }
    expect(await dump(admin)).toEqual(before)
  })

  test('an API key of a user opens nothing here', async () => {
    const { json } = await call('POST', '/v1/users/alice/api-keys')
    const answer = await call('GET', '/v1/users', undefined, { authorization: `Bearer ${json.apiKey.key}` })
    expect(answer).toMatchObject({ status: 401, json: { code: 'admin-token-required' } })
  })

  test('the scheme may be written in any case', async () => {
    for (const scheme of ['Bearer', 'bearer', 'BEARER'])
      expect(
        (await call('GET', '/v1/users', undefined, { authorization: `${scheme} ${testSecrets.adminToken}` })).status,
      ).toBe(200)
  })
})

describe('what is not there', () => {
  test.each([
    ['GET', '/'],
    ['GET', '/v1'],
    ['GET', '/v1/nothing'],
    ['PUT', '/v1/users'],
    ['PUT', '/v1/users/alice'],
    ['POST', '/v1/users/alice'],
    ['OPTIONS', '/v1/users'],
    ['GET', '/v1/users/alice/instance/start'],
    ['HEAD', '/v1/users/alice/instance/logs'],
    ['GET', '/v2/users'],
    ['GET', '/%'],
    ['GET', '/v1/users/%zz'],
    ['GET', '/errors/%'],
    ['GET', '/mcp'],
  ])('%s %s is answered as a problem, with and without the token', async (method, url) => {
    for (const headers of [{}, { authorization: undefined }]) {
      const answer = await call(method, url, undefined, headers)
      expect(answer.status).toBe(404)
      expect(answer.headers['content-type']).toBe('application/problem+json')
      if (method !== 'HEAD') expect(answer.json).toMatchObject({ type: '/errors/not-found', code: 'not-found' })
    }
  })

  test('a method that HTTP does not know, and no HTTP at all, end the connection and nothing else', async () => {
    await admin.app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = admin.app.server.address() as { port: number }
    for (const bytes of [
      'BREW /v1/users HTTP/1.1\r\nHost: x\r\n\r\n',
      'nonsense\r\n\r\n',
      '\x16\x03\x01\x02\x00',
      'GET / HTTP/9.9\r\n\r\n',
    ])
      expect(await sendRaw(port, bytes)).toMatch(/^(HTTP\/1\.[01] [45]\d\d |$)/)
    expect((await call('GET', '/healthz')).status).toBe(200)
  })
})

describe('pages', () => {
  test('each code of the catalogue has its page, for everybody, on both listeners', async () => {
    for (const code of Object.keys(catalogue)) {
      const answer = await call('GET', `/errors/${code}`, undefined, { authorization: undefined })
      expect(answer, code).toMatchObject({ status: 200, text: `# page about ${code}` })
      expect(answer.headers['content-type']).toBe('text/markdown; charset=utf-8')
      expect((await admin.publicApp.inject(`/errors/${code}`)).statusCode).toBe(200)
    }
  })

  test.each(['nothing', '__proto__', 'constructor', 'toString', '..%2f..%2fsrc%2fmain', 'internal.md', 'INTERNAL'])(
    'there is no page about %s',
    async code => {
      expect(await call('GET', `/errors/${code}`)).toMatchObject({ status: 404, json: { code: 'not-found' } })
    },
  )
})

test('each request leaves one line in the log, with its route and not its address', async () => {
  await call('GET', '/v1/users/alice?x=1')
  const line = admin
    .logged()
    .split('\n')
    .filter(Boolean)
    .map(text => JSON.parse(text))
    .filter(one => one.msg === 'http.request.done')
    .at(-1)
  expect(line).toMatchObject({
    level: 'info',
    method: 'GET',
    route: '/v1/users/:username',
    status: expect.any(Number),
    durationMs: expect.any(Number),
    requestId: expect.any(String),
  })
  expect(JSON.stringify(line)).not.toContain('x=1')
})

test('what nobody foresaw is told as that, and its cause stands in the log only', async () => {
  await admin.db.query('alter table api_keys rename to api_keys_away')
  try {
    const answer = await call('GET', '/v1/users/alice/api-keys')
    expect(answer).toMatchObject({ status: 500, json: { code: 'internal' } })
    expect(answer.text).not.toContain('api_keys')
    expect(answer.headers['retry-after']).toBeUndefined()
  } finally {
    await admin.db.query('alter table api_keys_away rename to api_keys')
  }
  expect(admin.logged()).toContain('relation \\"api_keys\\" does not exist')
})
