import type { ServerResponse } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, expect, inject, test } from 'vitest'
import { eventually } from './fleet/testing/support.ts'
import { startControlPlane, type TestControlPlane } from './testing/control-plane.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'

// Rotation of API keys, over the wire, with two control planes on one database.

let database: TestDatabase
let one: TestControlPlane
let two: TestControlPlane
const secrets: string[] = []

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  ;[one, two] = [await startControlPlane(database), await startControlPlane(database)]
  for (const controlPlane of [one, two]) controlPlane.answerWith(events)
})
afterEach(async () => {
  const rows = await database.db.query<{ username: string }>('select username from users')
  for (const { username } of rows) await one.users.erase(await one.users.remove(username, 'admin'))
})
afterAll(async () => {
  const logged = one.logged() + two.logged()
  await one?.[Symbol.asyncDispose]()
  await two?.[Symbol.asyncDispose]()
  await database?.[Symbol.asyncDispose]()
  // everything both wrote in all of these tests, at the most talkative level
  expect(logged.length).toBeGreaterThan(1_000)
  expect(secrets.length).toBeGreaterThan(10)
  for (const secret of secrets) expect(logged).not.toContain(secret.slice(11))
})

const events = ({ method, response }: { method: string; response: ServerResponse }) => {
  if (method === 'POST') return void setTimeout(() => response.end('late'), 60_000).unref()
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  response.write('data: hello\n\n')
}

async function add(username: string) {
  const { status, json } = await one.admin('POST', '/v1/users', { username })
  expect(status).toBe(201)
  secrets.push(json.apiKey.key)
  return json.apiKey as { id: string; key: string; prefix: string }
}
async function rotate(username: string, id: string, body?: unknown) {
  const answer = await one.admin('POST', `/v1/users/${username}/api-keys/${id}/rotate`, body)
  if (answer.json?.apiKey) secrets.push(answer.json.apiKey.key)
  return answer
}
const keysOf = async (username: string) => (await one.admin('GET', `/v1/users/${username}/api-keys`)).json.apiKeys
const bearer = (key: string, more: Record<string, string> = {}) => ({ authorization: `Bearer ${key}`, ...more })
const audit = (username: string, action: string) =>
  database.db.query<{ actor: string; detail: Record<string, unknown> }>(
    'select actor, detail from audit_events where username = $1 and action = $2 order by id',
    [username, action],
  )

/** A stream or call that is open on a control plane, and when it ended. */
async function openOn(controlPlane: TestControlPlane, key: string, method: 'GET' | 'POST' = 'GET') {
  const { request, response } = controlPlane.open({
    method,
    path: '/mcp',
    headers: bearer(key),
    ...(method === 'POST' ? { body: {} } : {}),
  })
  const state = { endedAt: undefined as number | undefined }
  const end = () => {
    state.endedAt ??= performance.now()
  }
  request.on('close', end)
  request.on('error', end)
  if (method === 'GET') {
    const incoming = await response
    expect(incoming.statusCode).toBe(200)
    incoming.on('data', () => {})
    incoming.on('error', end)
    incoming.on('close', end)
  } else await delay(150)
  return state
}
const works = async (controlPlane: TestControlPlane, key: string) => {
  const { request, response } = controlPlane.open({ path: '/mcp', headers: bearer(key) })
  const { statusCode } = await response
  request.destroy()
  return statusCode === 200
}

test('a rotation gives a new key, shown once, and both open the door until the deadline, on every control plane', async () => {
  const old = await add('alice')
  const before = Date.now()
  const answer = await rotate('alice', old.id, { overlapSeconds: 3_600, name: 'laptop' })
  expect(answer.status).toBe(201)
  expect(answer.headers.location).toBe(`/v1/users/alice/api-keys/${answer.json.apiKey.id}`)
  expect(answer.json.apiKey.key).toMatch(/^sdpmcp_[\w-]{43}$/)
  expect(answer.json.replaced).toMatchObject({ id: old.id, replacedBy: answer.json.apiKey.id })
  const deadline = Date.parse(answer.json.replaced.expiresAt) - before - 3_600_000
  expect(deadline).toBeGreaterThan(-5_000)
  expect(deadline).toBeLessThan(30_000)
  expect(answer.json.claudeCode.command).toContain(answer.json.apiKey.key)
  for (const controlPlane of [one, two])
    for (const { key } of [old, answer.json.apiKey])
      await eventually('both keys work', () => works(controlPlane, key), 5_000)
  const listed = await keysOf('alice')
  expect(listed.map((key: { id: string }) => key.id)).toEqual([old.id, answer.json.apiKey.id])
  expect(listed[1]).toMatchObject({ name: 'laptop', expiresAt: null, replacedBy: null })
  expect(JSON.stringify(listed)).not.toContain(answer.json.apiKey.key.slice(11))
})

test('an admin sees who still uses the old key: when, with which client, from where; and finds it in the audit', async () => {
  const old = await add('bob')
  await works(one, old.key)
  const { json } = await rotate('bob', old.id, { overlapSeconds: 3_600 })
  const { request, response } = two.open({
    path: '/mcp',
    headers: bearer(old.key, { 'user-agent': 'claude-code/2.1.9 (cli)\u00e9' }),
    from: '127.0.0.77',
  })
  await response
  request.destroy()
  const used = await eventually('the use is noted', async () => {
    const [first] = await keysOf('bob')
    return first.lastClient?.startsWith('claude-code') && first
  })
  expect(used).toMatchObject({ id: old.id, lastClient: 'claude-code/2.1.9 (cli)?', lastAddress: '127.0.0.77' })
  expect(Date.now() - Date.parse(used.lastUsedAt)).toBeLessThan(60_000)
  await one.admin('DELETE', `/v1/users/bob/api-keys/${old.id}`)
  expect(await audit('bob', 'api-key.rotated')).toMatchObject([
    { actor: 'admin', detail: { keyId: old.id, newKeyId: json.apiKey.id, replacedBy: json.apiKey.id } },
  ])
  expect(await audit('bob', 'api-key.revoked')).toMatchObject([
    { detail: { keyId: old.id, lastClient: 'claude-code/2.1.9 (cli)?', lastAddress: '127.0.0.77' } },
  ])
})

test('at its deadline the old key is cut with its streams and calls within a second, on both control planes; the new one is not', async () => {
  const old = await add('carol')
  await eventually('known to the other', () => works(two, old.key), 5_000)
  const validUntil = Date.now() + 2_500
  const { json } = await rotate('carol', old.id, { validUntil: new Date(validUntil).toISOString() })
  const dying = [await openOn(one, old.key), await openOn(two, old.key), await openOn(one, old.key, 'POST')]
  await eventually('the new key is known to the other', () => works(two, json.apiKey.key), 5_000)
  const staying = [await openOn(one, json.apiKey.key), await openOn(two, json.apiKey.key)]
  for (const { endedAt } of dying) expect(endedAt).toBeUndefined()
  await eventually('all cut', () => dying.every(({ endedAt }) => endedAt !== undefined), 10_000)
  const lateMs = Math.max(...dying.map(({ endedAt }) => endedAt!)) - (performance.now() - (Date.now() - validUntil))
  expect(lateMs).toBeLessThan(1_000)
  for (const controlPlane of [one, two]) {
    const refused = await controlPlane.ask({ path: '/mcp', headers: bearer(old.key) })
    expect([refused.status, refused.json.code]).toEqual([401, 'api-key-required'])
  }
  expect(staying.every(({ endedAt }) => endedAt === undefined)).toBe(true)
  expect((await keysOf('carol')).map((key: { id: string }) => key.id)).toEqual([json.apiKey.id])
  // each end is told once, whoever saw it first
  await eventually('audited', async () => (await audit('carol', 'api-key.expired')).length > 0)
  await delay(200)
  expect(await audit('carol', 'api-key.expired')).toMatchObject([
    { actor: 'system', detail: { keyId: old.id, replacedBy: json.apiKey.id } },
  ])
})

test('a rotation without overlap cuts at once, and a revoked key everywhere within a second', async () => {
  const first = await add('dave')
  await eventually('known to the other', () => works(two, first.key), 5_000)
  const streams = [await openOn(one, first.key), await openOn(two, first.key)]
  let at = performance.now()
  const { json } = await rotate('dave', first.id, { overlapSeconds: 0 })
  await eventually('cut', () => streams.every(({ endedAt }) => endedAt), 5_000)
  for (const { endedAt } of streams) expect(endedAt! - at).toBeLessThan(1_000)

  await eventually('the new key is known to the other', () => works(two, json.apiKey.key), 5_000)
  const again = [
    await openOn(one, json.apiKey.key),
    await openOn(two, json.apiKey.key),
    await openOn(two, json.apiKey.key, 'POST'),
  ]
  at = performance.now()
  expect((await one.admin('DELETE', `/v1/users/dave/api-keys/${json.apiKey.id}`)).status).toBe(204)
  await eventually('cut', () => again.every(({ endedAt }) => endedAt), 5_000)
  for (const { endedAt } of again) expect(endedAt! - at).toBeLessThan(1_000)
})

test('a key that is rotated already, revoked, expired or somebody else’s is not rotated, and bad input changes nothing', async () => {
  const key = await add('erin')
  const foreign = await add('frank')
  expect((await rotate('erin', key.id)).status).toBe(201)
  const count = async () => (await database.db.query('select 1 from api_keys')).length
  const before = await count()
  expect((await rotate('erin', key.id)).json).toMatchObject({ status: 409, code: 'api-key-rotated' })
  for (const id of [foreign.id, '00000000-0000-4000-8000-000000000000'])
    expect((await rotate('erin', id)).json).toMatchObject({ status: 404, code: 'api-key-not-found' })
  expect((await rotate('nobody', key.id)).json).toMatchObject({ status: 404, code: 'user-not-found' })
  const other = (await keysOf('erin'))[1].id
  for (const body of [
    { overlapSeconds: -1 },
    { overlapSeconds: 1.5 },
    { overlapSeconds: 90 * 86_400 + 1 },
    { overlapSeconds: 5, validUntil: '2099-01-01T00:00:00Z' },
    { validUntil: '2020-01-01T00:00:00Z' },
    { validUntil: 'tomorrow' },
    { name: '' },
    { grace: 5 },
  ])
    expect((await rotate('erin', other, body)).status, JSON.stringify(body)).toBe(400)
  expect(await count()).toBe(before)
  await one.admin('DELETE', `/v1/users/erin/api-keys/${other}`)
  expect((await rotate('erin', other)).status).toBe(404)
})

test('an earlier expiry of the old key is never put off, and two rotations at once make one key', async () => {
  await add('grace')
  const soon = new Date(Date.now() + 600_000).toISOString()
  const { json } = await one.admin('POST', '/v1/users/grace/api-keys', { expiresAt: soon })
  secrets.push(json.apiKey.key)
  const answers = await Promise.all([rotate('grace', json.apiKey.id), rotate('grace', json.apiKey.id)])
  expect(answers.map(({ status }) => status).sort()).toEqual([201, 409])
  expect(answers.find(({ status }) => status === 201)!.json.replaced.expiresAt).toBe(soon)
  expect(await keysOf('grace')).toHaveLength(3)
})
