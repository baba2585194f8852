import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { createDb, type Db } from './db.ts'
import { eventually } from './fleet/testing/support.ts'
import { openTestDatabase, type TestDatabase } from './testing/database.ts'
import { openRelay } from './testing/relay.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
  await database.db.query('create table marks (name text primary key)')
})
afterAll(() => database?.[Symbol.asyncDispose]())

const marks = async () =>
  (await database.db.query<{ name: string }>('select name from marks order by name')).map(row => row.name)

/** A door of its own, through a relay that tests may cut; what goes wrong in the background is kept. */
async function openThroughRelay(max?: number) {
  const relay = await openRelay(database.login)
  const background: Error[] = []
  const db = createDb({ ...database.login, port: relay.port, max, onError: error => background.push(error) })
  return {
    db,
    relay,
    background,
    async [Symbol.asyncDispose]() {
      await relay.reopen()
      await db.close()
      await relay[Symbol.asyncDispose]()
    },
  }
}

test('what a transaction did is kept when its work returns', async () => {
  const { db } = database
  const told = await db.withTx(async tx => {
    await tx.query("insert into marks values ('kept')")
    return 'told'
  })
  expect(told).toBe('told')
  expect(await marks()).toContain('kept')
})

test('a transaction whose work throws leaves nothing behind and throws the same error', async () => {
  const reason = new Error('changed my mind')
  const failing = database.db.withTx(async tx => {
    await tx.query("insert into marks values ('undone')")
    throw reason
  })
  await expect(failing).rejects.toBe(reason)
  expect(await marks()).not.toContain('undone')
})

test('a failed statement rolls back what came before it', async () => {
  const failing = database.db.withTx(async tx => {
    await tx.query("insert into marks values ('before')")
    await tx.query('select * from no_such_table')
  })
  await expect(failing).rejects.toMatchObject({ code: '42P01' })
  expect(await marks()).not.toContain('before')
})

test('a connection is fit for the next user after a failed transaction', async () => {
  const db = createDb({ ...database.login, max: 1 })
  for (let round = 0; round < 3; round++)
    await expect(db.withTx(tx => tx.query('select 1/0'))).rejects.toMatchObject({ code: '22012' })
  expect(await db.query('select 1 as one')).toEqual([{ one: 1 }])
  await db.close()
})

test('of many who want one lock only one works at a time, across processes', async () => {
  await using other = await openThroughRelay()
  let inside = 0
  let most = 0
  const work = async () => {
    inside++
    most = Math.max(most, inside)
    await delay(5)
    inside--
  }
  await Promise.all([...Array(15)].flatMap(() => [database.db.withLock('one', work), other.db.withLock('one', work)]))
  expect(most).toBe(1)
})

test('different locks do not wait for each other, and a hundred waiting for one lock leave room for others', async () => {
  const { db } = database
  let letGo = () => {}
  const held = new Promise<void>(done => {
    letGo = done
  })
  const hundred = [...Array(100)].map(() => db.withLock('crowded', () => held))
  expect(await db.withLock('quiet', async () => 'in')).toBe('in')
  letGo()
  await Promise.all(hundred)
})

test('more locks at once than there are connections wait their turn instead of failing', async () => {
  const { db } = database
  const work = () => delay(300)
  const started = Date.now()
  await Promise.all([...Array(400)].map((_, index) => db.withLock(`crowd ${index}`, work)))
  // 20 at a time; a wait longer than the connect timeout proves that waiting is not taken for an outage
  expect(Date.now() - started).toBeGreaterThan(5_500)
})

test('work that throws frees its lock', async () => {
  const { db } = database
  await expect(db.withLock('thrown', () => Promise.reject(new Error('no')))).rejects.toThrow('no')
  expect(await db.withLock('thrown', async () => 'free')).toBe('free')
})

test('a holder whose connection is lost frees the lock for others and brings nobody down', async () => {
  await using other = await openThroughRelay()
  const failing = other.db.withLock('lost', async () => {
    other.relay.cut()
    // nothing runs on the connection at this moment: the loss comes as a bare event
    await eventually('noticed', () => other.background.length > 0)
    return 'finished'
  })
  expect(await failing).toBe('finished')
  expect(await database.db.withLock('lost', async () => 'free')).toBe('free')
  expect(await other.db.query('select 1 as one')).toEqual([{ one: 1 }])
})

test('a holder that is cut off without a word loses its lock within seconds, and is told', async () => {
  await using other = await openThroughRelay()
  let told: unknown
  const frozen = other.db.withLock('cut off', async lost => {
    other.relay.freeze()
    await new Promise<void>(done => lost.addEventListener('abort', () => done(), { once: true }))
    told = lost.reason
  })
  const since = performance.now()
  expect(await database.db.withLock('cut off', async () => 'free')).toBe('free')
  expect(performance.now() - since).toBeLessThan(30_000)
  await frozen
  expect(told).toMatchObject({ code: 'database-unavailable' })
}, 60_000)

test('a transaction whose connection is lost between statements fails and brings nobody down', async () => {
  await using other = await openThroughRelay()
  const failing = other.db.withTx(async tx => {
    await tx.query("insert into marks values ('lost')")
    other.relay.cut()
    await eventually('noticed', () => other.background.length > 0)
    await tx.query("insert into marks values ('lost too')")
  })
  await expect(failing).rejects.toMatchObject({ name: 'AppError', code: 'database-unavailable' })
  expect(await marks()).not.toContain('lost')
  expect(await other.db.query('select 1 as one')).toEqual([{ one: 1 }])
})

test('a database that refuses connections is told as such, and used again when it is back', async () => {
  await using other = await openThroughRelay()
  await other.db.query('select 1')
  await other.relay.shut()
  const outage = { name: 'AppError', code: 'database-unavailable', status: 503, retryAfterSeconds: 2 }
  await expect(other.db.query('select 1')).rejects.toMatchObject(outage)
  await expect(other.db.withTx(async () => {})).rejects.toMatchObject(outage)
  await expect(other.db.withLock('any', async () => {})).rejects.toMatchObject(outage)
  await expect(other.db.listen('any', () => {})).rejects.toMatchObject(outage)
  await other.relay.reopen()
  expect(await other.db.query('select 1 as one')).toEqual([{ one: 1 }])
})

test('a failed first attempt to listen leaves nothing running', async () => {
  await using other = await openThroughRelay()
  await other.relay.shut()
  let calls = 0
  await expect(other.db.listen('late', () => calls++)).rejects.toMatchObject({ code: 'database-unavailable' })
  await other.relay.reopen()
  await delay(1_200)
  expect(calls).toBe(0)
})

test('the server ending our connections is an outage, not a bug', async () => {
  const { db } = database
  const ending = expect(db.query('select pg_sleep(5)')).rejects.toMatchObject({ code: 'database-unavailable' })
  await eventually('asleep', async () => {
    const rows = await db.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where query = 'select pg_sleep(5)' and pid <> pg_backend_pid() and datname = current_database()",
    )
    return rows.length > 0
  })
  await ending
})

test('a notification reaches every listener, and one sent in a transaction only with its commit', async () => {
  const heard: (string | null)[] = []
  const listener = await database.db.listen('news', payload => heard.push(payload))
  expect(heard).toEqual([null])
  await database.db.withTx(async tx => {
    await tx.query("select pg_notify('news', 'committed')")
    await delay(50)
    expect(heard).toEqual([null])
  })
  await database.db
    .withTx(async tx => {
      await tx.query("select pg_notify('news', 'undone')")
      throw new Error('undo')
    })
    .catch(() => {})
  await database.db.notify('news', 'last')
  await eventually('heard', () => heard.length === 3)
  expect(heard).toEqual([null, 'committed', 'last'])
  await listener.close()
})

test('a listener whose connection the server ends listens again within a second and says that it may have missed something', async () => {
  const heard: (string | null)[] = []
  const { db } = database
  const listener = await db.listen('ended', payload => heard.push(payload))
  await db.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%ended%' and datname = current_database()",
  )
  await eventually('lost', () => !listener.connected(), 1_000)
  await eventually('listens again', () => heard.length === 2, 1_500)
  expect(heard).toEqual([null, null])
  await db.notify('ended', 'after')
  await eventually('hears', () => heard.at(-1) === 'after')
  await listener.close()
})

test('a listener comes back after a longer outage, and a closed one never does', async () => {
  await using other = await openThroughRelay()
  const heard: (string | null)[] = []
  const listener = await other.db.listen('outage', payload => heard.push(payload))
  await other.relay.shut()
  await eventually('lost', () => !listener.connected())
  await delay(1_200)
  await other.relay.reopen()
  await eventually('back', () => listener.connected(), 3_000)
  expect(heard).toEqual([null, null])
  await listener.close()
  await database.db.notify('outage', 'nobody listens')
  await delay(700)
  expect(heard).toEqual([null, null])
})

test('a statement that takes longer than allowed is ended and told as an outage', async () => {
  await expect(
    database.db.withTx(async tx => {
      await tx.query("set local statement_timeout = '50ms'")
      await tx.query('select pg_sleep(5)')
    }),
  ).rejects.toMatchObject({ code: 'database-unavailable' })
})

describe('of all who take part in an election', () => {
  async function candidate(db: Db) {
    const told: boolean[] = []
    return { ...(await db.lead('the fleet of a test', leading => told.push(leading))), told }
  }

  test('one leads, and another takes over when it leaves', async () => {
    const candidates = await Promise.all(Array.from({ length: 5 }, () => candidate(database.db)))
    const [first] = candidates.filter(one => one.leading())
    expect(candidates.filter(one => one.leading())).toEqual([first])
    expect(first?.told).toEqual([true])
    await first?.close()
    const others = candidates.filter(one => one !== first)
    await eventually('another leads', () => others.some(one => one.leading()), 15_000)
    expect(others.filter(one => one.leading())).toHaveLength(1)
    await Promise.all(others.map(one => one.close()))
  })

  test('one that the database has not heard of is replaced, and knows by then that it no longer leads', async () => {
    await using other = await openThroughRelay()
    const hung = await candidate(other.db)
    expect(hung.leading()).toBe(true)
    const waiting = await candidate(database.db)
    expect(waiting.leading()).toBe(false)
    other.relay.freeze()
    const frozenAt = performance.now()
    while (!waiting.leading()) {
      expect(performance.now() - frozenAt).toBeLessThan(20_000)
      await delay(20)
    }
    expect(hung.leading()).toBe(false)
    await waiting.close()
    await hung.close()
  }, 40_000)
})
