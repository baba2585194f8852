import { generateSealingKey } from '@sdp-mcp/instance/seal'
import pg from 'pg'
import { pino } from 'pino'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest'
import { type AuditEntry, appendAudit, exportAudit, keepRetention, listAudit } from './audit.ts'
import { fixedKeyring } from './keyring.ts'
import { dismissEverybody, emptyAudit, openTestDatabase, type TestDatabase } from './testing/database.ts'
import { createVault } from './vault.ts'

let database: TestDatabase
let vault: ReturnType<typeof createVault>
const clients: pg.Client[] = []
const log = pino({ level: 'silent' })

beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  vault = createVault({ db: database.db, keyring: fixedKeyring(generateSealingKey()) })
})
beforeEach(() => emptyAudit(database.db))
afterEach(async () => {
  await Promise.all(clients.splice(0).map(client => client.end()))
})
afterAll(async () => {
  if (!database) return
  await dismissEverybody(database.db, vault)
  await database[Symbol.asyncDispose]()
})

async function enroll(username: string): Promise<string> {
  return database.db.withTx(async tx => {
    const [row] = await tx.query<{ id: string }>(
      'insert into users (username, display_name) values ($1, $1) returning id',
      [username],
    )
    await vault.enroll(tx, row!.id)
    await tx.query("insert into oauth_tokens (user_id, client_id) values ($1, 'client')", [row!.id])
    return row!.id
  })
}

async function login(userId: string): Promise<pg.Client> {
  const client = new pg.Client({ ...database.login, ...(await vault.databaseLogin(userId)) })
  await client.connect()
  clients.push(client)
  return client
}

const actions = async () => (await listAudit(database.db, {}, { limit: 1000, order: 'oldest' })).events
const event = (more: Partial<Parameters<typeof appendAudit>[1]> = {}) =>
  appendAudit(database.db, { actor: 'admin', action: 'user.created', username: 'alice', ...more })
const aged = (days: number, count = 1) =>
  database.db.query(
    `insert into audit_events (at, actor, action) select now() - make_interval(days => $1), 'admin', 'user.created' from generate_series(1, $2)`,
    [days, count],
  )

describe('the audit', () => {
  test('can be added to and never changed, deleted or emptied, not even by the owner of the table', async () => {
    await event()
    for (const sql of [
      `update audit_events set actor = 'nobody'`,
      'update audit_events set at = now()',
      'delete from audit_events',
      'truncate audit_events',
    ])
      await expect(database.db.query(sql), sql).rejects.toMatchObject({ code: '42501' })
    expect((await actions()).map(({ actor }) => actor)).toEqual(['admin'])
  })

  test('forgets what is older than the retention, in batches, and says so; what is younger stays', async () => {
    await aged(100, 12_000)
    await aged(80, 3)
    const retention = keepRetention({ db: database.db, days: 90, log })
    expect(await retention.run()).toBe(12_000)
    await retention.close()
    const events = await actions()
    expect(events.filter(({ action }) => action === 'user.created')).toHaveLength(3)
    const traces = events.filter(({ action }) => action === 'audit.forgotten')
    expect(traces.map(({ detail }) => detail.events)).toEqual([5000, 5000, 2000])
    expect(traces[0]).toMatchObject({ actor: 'system', detail: { daysToKeep: 90 } })
  })

  test('forgets nothing without a retention, and nothing younger than 30 days whoever asks', async () => {
    await aged(400)
    const forever = keepRetention({ db: database.db, days: null, log })
    expect(await forever.run()).toBe(0)
    await forever.close()
    for (const days of [29, 0, -1, null])
      await expect(database.db.query('select audit_forget($1)', [days])).rejects.toMatchObject({ code: '23514' })
    expect(await actions()).toHaveLength(1)
  })

  test('pages are complete, without repetition, in both orders, also among events of one moment', async () => {
    await database.db.withTx(async tx => {
      for (let i = 0; i < 25; i++) await appendAudit(tx, { actor: 'admin', action: 'user.changed', detail: { i } })
    })
    for (const order of ['newest', 'oldest'] as const) {
      const seen: AuditEntry[] = []
      let cursor: string | null | undefined
      do {
        const page = await listAudit(database.db, {}, { limit: 10, cursor: cursor ?? undefined, order })
        seen.push(...page.events)
        cursor = page.nextCursor
      } while (cursor !== null)
      const numbers = seen.map(({ detail }) => detail.i)
      const expected = Array.from({ length: 25 }, (_, i) => i)
      expect(numbers).toEqual(order === 'oldest' ? expected : expected.reverse())
    }
    const exported: AuditEntry[] = []
    for await (const page of exportAudit(database.db, {}, { limit: 12 })) exported.push(...page)
    expect(exported.map(({ detail }) => detail.i)).toEqual(Array.from({ length: 12 }, (_, i) => i))
  })

  test('is filtered by user, by action or its beginning, and by time', async () => {
    await aged(10)
    await event({ action: 'connection.authorized', username: 'bob' })
    await event({ action: 'connection.revoked' })
    await event({ action: 'connector.made_up%' })
    const found = async (filter: Parameters<typeof listAudit>[1]) =>
      (await listAudit(database.db, filter, { limit: 10, order: 'oldest' })).events.map(
        ({ action, username }) => `${action} ${username}`,
      )
    expect(await found({ username: 'bob' })).toEqual(['connection.authorized bob'])
    expect(await found({ action: 'connection.revoked' })).toEqual(['connection.revoked alice'])
    expect(await found({ action: 'connection.*' })).toEqual(['connection.authorized bob', 'connection.revoked alice'])
    expect(await found({ action: 'connector.made_%' })).toEqual([])
    const yesterday = new Date(Date.now() - 86_400_000).toISOString()
    expect(await found({ to: yesterday })).toEqual(['user.created null'])
    expect(await found({ from: yesterday, username: 'alice' })).toHaveLength(2)
  })
})

describe('an instance', () => {
  const call = { at: Date.now(), tool: 'get_request', outcome: 'ok', durationMs: 12, sdpCalls: 1, requestId: 'a1' }
  const record = (client: pg.Client, calls: unknown, about?: string) =>
    client.query('select record_tool_calls($1, $2)', [JSON.stringify(calls), about])

  test('records tool calls of its own user, whomever it names', async () => {
    const [alice, bob] = [await enroll('recorder'), await enroll('recorded')]
    const client = await login(alice)
    await record(client, [{ ...call, target: '42', actor: 'admin', username: 'recorded', action: 'user.created' }], bob)
    const [entry, ...more] = await actions()
    expect(more).toEqual([])
    expect(entry).toMatchObject({
      actor: 'user:recorder',
      action: 'tool.called',
      username: 'recorder',
      detail: { tool: 'get_request', target: '42', outcome: 'ok', durationMs: 12, sdpCalls: 1, requestId: 'a1' },
    })
    expect(Object.keys(entry!.detail).sort()).toEqual(
      ['durationMs', 'outcome', 'requestId', 'sdpCalls', 'target', 'tool'].sort(),
    )
  })

  test('has no other way to the audit: no reading, no writing, no forgetting', async () => {
    const client = await login(await enroll('outsider'))
    for (const sql of [
      'select 1 from audit_events',
      `insert into audit_events (actor, action) values ('admin', 'user.created')`,
      'delete from audit_events',
      'select audit_forget(365)',
    ])
      await expect(client.query(sql), sql).rejects.toMatchObject({ code: '42501' })
  })

  test('cannot write into the past or the future, endless texts, or endless lists', async () => {
    const client = await login(await enroll('liar'))
    await record(client, [
      { ...call, at: 0 },
      { ...call, at: Date.now() + 1e9, tool: 'x'.repeat(5_000), target: 'y'.repeat(5_000) },
    ])
    for (const { at, detail } of await actions()) {
      expect(Math.abs(Date.parse(at) - Date.now())).toBeLessThan(86_400_000 + 60_000)
      expect(JSON.stringify(detail).length).toBeLessThan(500)
    }
    const before = (await actions()).length
    for (const wrong of [{ tool: 'x' }, Array(1001).fill(call), 'text'])
      await expect(record(client, wrong)).rejects.toMatchObject({ code: '23514' })
    expect(await actions()).toHaveLength(before)
  })

  test('whose user was removed records nothing more', async () => {
    const id = await enroll('gone')
    const client = await login(id)
    await database.db.query('delete from users where id = $1', [id])
    await expect(record(client, [call])).rejects.toMatchObject({ code: '42501' })
    await database.db.withTx(tx => vault.dismiss(tx, id))
  })

  test('that changes the state of its connection is noted in the same transaction, and only then', async () => {
    const id = await enroll('changing')
    const client = await login(id)
    await client.query('begin')
    await client.query(`update oauth_tokens set state = 'connected'`)
    await client.query('rollback')
    expect(await actions()).toEqual([])
    await client.query(
      `update oauth_tokens set state = 'needs-reauthorization', reason_code = 'refresh-token-rejected'`,
    )
    await client.query(`update oauth_tokens set state = 'needs-reauthorization', reason = 'again'`)
    expect(await actions()).toMatchObject([
      {
        actor: 'instance:changing',
        action: 'connection.state-changed',
        username: 'changing',
        detail: {
          from: 'needs-authorization',
          to: 'needs-reauthorization',
          reasonCode: 'refresh-token-rejected',
          clientId: 'client',
        },
      },
    ])
  })
})
