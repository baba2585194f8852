import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { cloneDatabase } from '@sdp-mcp/migrations/testing'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { createActivity } from '../activity.ts'
import { createDb, type Db } from '../db.ts'
import { createFleet, type Fleet, type FleetOptions, type InstanceRoute } from './fleet.ts'
import { createMemoryEngine, createMemoryRuntime, type MemoryEngine } from './testing/memory-runtime.ts'
import { eventually, fleetStandIns, silentLog, testBoot, unlimited } from './testing/support.ts'

let database: Awaited<ReturnType<typeof cloneDatabase>>
let db: Db
let firstPort: number

beforeAll(async () => {
  database = await cloneDatabase(inject('postgres'))
  db = createDb(database)
  // a block of ports that is probably ours alone
  firstPort = 20_000 + Math.floor(Math.random() * 10_000)
})
afterAll(async () => {
  await db.close()
  await database[Symbol.asyncDispose]()
})

const opened: { fleet: Fleet; engine: MemoryEngine }[] = []
afterEach(async () => {
  await Promise.all(opened.map(({ fleet }) => fleet.close()))
  for (const { engine } of opened) {
    engine.down = false
    const runtime = createMemoryRuntime(engine)
    for (const { id } of await runtime.list()) await runtime.remove(id)
  }
  opened.length = 0
  await db.query('delete from users')
})

type Options = Partial<Omit<FleetOptions, 'config'>> & {
  engine?: MemoryEngine
  image?: string
  ports?: number
  config?: Partial<FleetOptions['config']>
}

/** A control plane's fleet on its own or a shared engine, and a record of what it said. */
async function open({ engine = createMemoryEngine(), image = 'img:1', ports = 50, config, ...options }: Options = {}) {
  const routes = new Map<string, InstanceRoute | null>()
  const told: string[] = []
  let skewMs = 0
  const fleet = createFleet({
    db,
    runtime: createMemoryRuntime(engine),
    config: {
      image,
      portRange: [firstPort, firstPort + ports - 1],
      limits: { memoryMb: 64, cpus: 1, pids: 32 },
      ...unlimited,
      ...config,
    },
    log: silentLog,
    now: () => Date.now() + skewMs,
    random: () => 0.5,
    async bootFor(userId, { generation, port }) {
      const [user] = await db.query<{ username: string }>('select username from users where id = $1', [userId])
      return testBoot({ userId, username: user!.username, generation, port })
    },
    onRoute: (userId, to) => {
      routes.set(userId, to)
      const what = to ? `${to.generation}` : 'none'
      if (told.at(-1) !== what) told.push(what)
    },
    ...fleetStandIns(db),
    async beforeRemove(_, instance) {
      told.push(instance ? 'goodbye' : 'no goodbye')
    },
    async afterRemove(userId) {
      told.push('erased')
      await db.query('delete from users where id = $1', [userId])
    },
    ...options,
  })
  opened.push({ fleet, engine })
  await fleet.start()
  return {
    fleet,
    engine,
    routes,
    told,
    /** moves this control plane's clock */
    skip(seconds: number) {
      skewMs += seconds * 1000
    },
  }
}

async function addUser(username = `user-${randomUUID().slice(0, 8)}`): Promise<string> {
  const [row] = await db.query<{ id: string }>(
    'insert into users (username, display_name) values ($1, $1) returning id',
    [username],
  )
  return row!.id
}
const change = (userId: string, set: string) => db.query(`update users set ${set} where id = $1`, [userId])
async function known(userId: string) {
  const [row] = await db.query<{
    state: string
    reason_code: string | null
    reason: string | null
    port: number
    address: string | null
    container_id: string | null
    generation: number
    failures: number
    retry_at: Date | null
  }>('select *, generation::integer from instances where user_id = $1', [userId])
  return row!
}
const ready = { timeoutMs: 8_000 }

describe('an instance', () => {
  test('is started for a new user, and requests are let in when it answers', async () => {
    const { fleet, routes, engine } = await open()
    const userId = await addUser()
    const route = await fleet.ensureReady(userId, ready)
    expect(route).toEqual({ address: `http://127.0.0.1:${firstPort}`, generation: 1, draining: null })
    expect(routes.get(userId)).toEqual(route)
    expect(await known(userId)).toMatchObject({
      state: 'ready',
      reason_code: null,
      port: firstPort,
      address: route.address,
      generation: 1,
      failures: 0,
    })
    expect(engine.starts).toBe(1)
  })

  test('is started once for a hundred connects at the same moment', async () => {
    const { fleet, engine } = await open({})
    engine.bootMs = 100
    const userId = await addUser()
    const routes = await Promise.all(Array.from({ length: 100 }, () => fleet.ensureReady(userId, ready)))
    expect(new Set(routes.map(route => route.address)).size).toBe(1)
    expect(engine.starts).toBe(1)
  })

  test('counts as started once, however often it is looked at while it comes up', async () => {
    const engine = createMemoryEngine()
    engine.bootMs = 300
    const runtime = createMemoryRuntime(engine)
    let release = () => {}
    let held: Promise<void> | undefined
    const seen: string[] = []
    const { fleet } = await open({
      engine,
      runtime: {
        ...runtime,
        list: async userId => {
          const found = await runtime.list(userId)
          await held
          return found
        },
      },
      observe: { ready: kind => seen.push(kind), failed() {}, led() {}, swept() {} },
    })
    const userId = await addUser()
    const route = fleet.ensureReady(userId, ready)
    await eventually('coming up', async () => (await known(userId))?.state === 'starting')
    held = new Promise(done => (release = done))
    const look = fleet.reconcile(userId)
    await route
    expect(seen).toEqual(['start'])
    // what this look knows is from before the instance answered
    release()
    await look
    await delay(200)
    expect(seen).toEqual(['start'])
    expect((await known(userId)).state).toBe('ready')
  })

  test('is started once by two control planes', async () => {
    const one = await open()
    const two = await open({ engine: one.engine })
    one.engine.bootMs = 100
    const userId = await addUser()
    const [first, second] = await Promise.all([
      one.fleet.ensureReady(userId, ready),
      two.fleet.ensureReady(userId, ready),
    ])
    expect(first).toEqual(second)
    expect(one.engine.starts).toBe(1)
    // what one decides, the other hears
    await change(userId, 'suspended = true')
    await one.fleet.reconcile(userId)
    await eventually('the other closed its door', () => two.routes.get(userId) === null)
  })

  test('answers each of fifty users who come at once, each with a port of its own', async () => {
    const { fleet, engine } = await open()
    const users = await Promise.all(Array.from({ length: 50 }, () => addUser()))
    const routes = await Promise.all(users.map(userId => fleet.ensureReady(userId, ready)))
    expect(new Set(routes.map(({ address }) => address)).size).toBe(50)
    expect(engine.starts).toBe(50)
    await expect(fleet.checkCapacity()).rejects.toMatchObject({ code: 'port-range-exhausted' })
    const oneTooMany = await addUser()
    await expect(fleet.ensureReady(oneTooMany, ready)).rejects.toMatchObject({
      code: 'port-range-exhausted',
      message: expect.stringContaining('SDP_INSTANCE_PORT_RANGE'),
    })
    expect(await known(oneTooMany)).toMatchObject({ state: 'failed', reason_code: 'port-range-exhausted', port: null })
  }, 30_000)

  test('moves to the next port when another program holds its own, and stays there', async () => {
    const foreign = createServer().listen(firstPort, '127.0.0.1')
    await new Promise(done => foreign.once('listening', done))
    const { fleet, engine } = await open()
    const userId = await addUser()
    expect((await fleet.ensureReady(userId, ready)).address).toBe(`http://127.0.0.1:${firstPort + 1}`)
    foreign.close()
    await engine.crash(userId, { code: 1 })
    await eventually('started again', async () => (await known(userId)).state === 'ready')
    expect((await known(userId)).port).toBe(firstPort + 1)
  })

  test('is replaced when its generation changes, with the door closed in between', async () => {
    const { fleet, engine, told } = await open()
    const userId = await addUser()
    const before = await fleet.ensureReady(userId, ready)
    await change(userId, 'generation = 2')
    await fleet.reconcile(userId)
    const after = await fleet.ensureReady(userId, ready)
    expect(after).toEqual({ address: before.address, generation: 2, draining: null })
    expect(told).toEqual(['1', 'none', '2'])
    expect(engine.instances.size).toBe(1)
    expect((await known(userId)).generation).toBe(2)
  })

  test('is told again to a proxy that dropped the route in doubt', async () => {
    const { fleet, routes } = await open()
    const userId = await addUser()
    const route = await fleet.ensureReady(userId, ready)
    routes.set(userId, null)
    await fleet.ensureReady(userId, ready)
    expect(routes.get(userId)).toEqual(route)
  })

  test('a change that comes during a look is not missed', async () => {
    const { fleet } = await open()
    const userId = await addUser()
    const looks: Promise<void>[] = []
    for (let generation = 2; generation <= 6; generation++) {
      looks.push(fleet.reconcile(userId))
      await change(userId, `generation = ${generation}`)
    }
    looks.push(fleet.reconcile(userId))
    await Promise.all(looks)
    expect((await fleet.ensureReady(userId, ready)).generation).toBe(6)
  })

  test('is moved to another image only when nobody has used it for a while, nor comes back meanwhile', async () => {
    const { fleet: before, engine } = await open({ image: 'img:1' })
    const userId = await addUser()
    await before.ensureReady(userId, ready)
    await before.close()
    const [instance] = engine.running(userId)
    const image = () => engine.running(userId)[0]?.observed.image
    instance!.sessions = 1
    const { fleet, routes, skip } = await open({ engine, image: 'img:2' })
    await fleet.reconcileAll()
    skip(120)
    await fleet.reconcileAll()
    expect(image()).toBe('img:1')
    // a client that was cut off together with the last control plane needs a moment
    instance!.sessions = 0
    await fleet.reconcileAll()
    await fleet.reconcileAll()
    expect(image()).toBe('img:1')
    skip(61)
    const comesBack = eventually('the door is closed', () => routes.get(userId) === null).then(() => {
      instance!.sessions = 1
    })
    await fleet.reconcileAll()
    await comesBack
    await eventually('the door is open again', () => routes.get(userId)?.generation === 1)
    expect([image(), engine.stops]).toEqual(['img:1', 0])
    expect(await known(userId)).toMatchObject({ state: 'ready' })
    instance!.sessions = 0
    await fleet.reconcileAll()
    skip(61)
    await fleet.reconcileAll()
    await eventually('moved', () => image() === 'img:2')
  })
})

describe('an instance that ends', () => {
  test('is started again at once, and requests wait for it', async () => {
    const { fleet, engine, told } = await open()
    const userId = await addUser()
    const before = await fleet.ensureReady(userId, ready)
    await engine.crash(userId, { code: 70 })
    await eventually('the door is closed', () => told.includes('none'))
    expect(await fleet.ensureReady(userId, ready)).toEqual(before)
    expect(await known(userId)).toMatchObject({ state: 'ready', failures: 1 })
  })

  test('out of memory is told as such', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    for (let time = 0; time < 2; time++) {
      await fleet.ensureReady(userId, ready)
      await engine.crash(userId, { code: 137, outOfMemory: true })
    }
    await eventually('noted', async () => (await known(userId)).failures === 2)
    expect(await known(userId)).toMatchObject({
      state: 'failed',
      reason_code: 'out-of-memory',
      reason: expect.stringContaining('SDP_INSTANCE_MEMORY_MB'),
    })
  })

  test('again and again is tried ever more seldom, and connects are told why and when to come back', async () => {
    const { fleet, engine, skip } = await open()
    const userId = await addUser()
    engine.trouble.push(...Array.from({ length: 9 }, () => ({ exit: 70 })))
    const rejected = await fleet.ensureReady(userId, ready).catch(error => error)
    expect(rejected).toMatchObject({ code: 'instance-failed', status: 503 })
    expect(rejected.retryAfterSeconds).toBeGreaterThanOrEqual(1)
    expect(rejected.message).toMatch(/exit code 70.*logs/)
    for (let failures = (await known(userId)).failures; failures < 5; failures++) {
      skip(400)
      await fleet.reconcile(userId)
      await eventually('failed again', async () => (await known(userId)).failures === failures + 1)
    }
    const row = await known(userId)
    expect(row).toMatchObject({ state: 'failed', reason_code: 'crash-loop', reason: expect.stringMatching(/5 times/) })
    const starts = engine.starts
    await fleet.reconcile(userId)
    await expect(fleet.ensureReady(userId, ready)).rejects.toMatchObject({ code: 'instance-failed' })
    expect(engine.starts).toBe(starts)
    // an admin does not have to wait
    engine.trouble.length = 0
    await fleet.reconcile(userId, { asked: 'admin' })
    await fleet.ensureReady(userId, ready)
  }, 30_000)

  test('is not confused with what happened to others', async () => {
    const { fleet, engine } = await open()
    const [bad, good] = [await addUser(), await addUser()]
    await fleet.ensureReady(good, ready)
    engine.trouble.push({ exit: 70 }, { exit: 70 }, { exit: 70 })
    await fleet.ensureReady(bad, ready).catch(() => {})
    expect(await known(good)).toMatchObject({ state: 'ready', failures: 0 })
    expect(await fleet.ensureReady(good, ready)).toBeTruthy()
  })
})

describe('an instance that does not answer', () => {
  test('in time after its start is ended, and the reason is told', async () => {
    const { fleet, engine, skip } = await open()
    const userId = await addUser()
    engine.trouble.push('mute', 'mute')
    const waiting = fleet.ensureReady(userId, { timeoutMs: 15_000 }).catch(error => error)
    await eventually('starting', async () => (await known(userId))?.state === 'starting' && engine.starts === 1)
    await eventually('noted', async () => (await known(userId)).container_id)
    skip(31)
    await eventually('failed', async () => (await known(userId)).reason_code === 'start-timeout', 6_000)
    expect(engine.running(userId)).toEqual([])
    skip(2)
    await eventually('tried again', () => engine.starts === 2, 6_000)
    skip(31)
    expect(await waiting).toMatchObject({ code: 'instance-failed', message: expect.stringContaining('30 s') })
  }, 30_000)

  test('within the caller’s own time is told as starting, while the start goes on', async () => {
    const { fleet, engine } = await open()
    engine.bootMs = 500
    const userId = await addUser()
    await expect(fleet.ensureReady(userId, { timeoutMs: 100 })).rejects.toMatchObject({
      code: 'instance-starting',
      retryAfterSeconds: 2,
    })
    const gone = new AbortController()
    const waiting = fleet.ensureReady(userId, { ...ready, signal: gone.signal })
    gone.abort()
    await expect(waiting).rejects.toThrow()
    await fleet.ensureReady(userId, ready)
    expect(engine.starts).toBe(1)
  })

  test('any more is ended after three looks and started again', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    engine.running(userId)[0]!.frozen = true
    for (let look = 0; look < 3; look++) await fleet.reconcileAll()
    await eventually('started again', async () => engine.starts === 2 && (await known(userId)).state === 'ready')
  }, 20_000)

  test('because another program answers in its place is not taken for it', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    engine.bootMs = 60_000
    const impostor = createServer((_, response) =>
      response.end(
        JSON.stringify({
          status: 'ok',
          audience: `instance:${randomUUID()}:1`,
          version: '1',
          uptimeSeconds: 1,
          sessions: 0,
        }),
      ),
    ).listen(firstPort, '127.0.0.1')
    await new Promise(done => impostor.once('listening', done))
    await expect(fleet.ensureReady(userId, { timeoutMs: 500 })).rejects.toMatchObject({ code: 'instance-starting' })
    expect((await known(userId)).state).toBe('starting')
    impostor.closeAllConnections()
    impostor.close()
  })
})

describe('what cannot be started', () => {
  test.each([
    ['image-missing', 'image-missing'],
    ['no-space', 'disk-full'],
    ['network-exhausted', 'network-range-exhausted'],
    ['refused', 'instance-failed'],
  ] as const)('because of %s is told to whoever waits', async (kind, code) => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    engine.trouble.push(kind, kind)
    const rejected = await fleet.ensureReady(userId, ready).catch(error => error)
    expect(rejected).toMatchObject({ code, message: expect.stringContaining(kind) })
    expect(await known(userId)).toMatchObject({ state: 'failed', failures: 2, address: null })
  })

  test('is tried again by itself', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    engine.trouble.push('image-missing')
    await fleet.reconcile(userId)
    expect(await known(userId)).toMatchObject({ state: 'failed', reason_code: 'image-missing', failures: 1 })
    await eventually('ready', async () => (await known(userId)).state === 'ready')
  })

  test('because of its settings tells what the settings lack', async () => {
    const { AppError } = await import('../errors.ts')
    const { fleet } = await open({
      async bootFor() {
        throw new AppError('sdp-settings-missing', 'The user has no portal. Set sdp.portal.')
      },
    })
    const userId = await addUser()
    await expect(fleet.ensureReady(userId, ready)).rejects.toMatchObject({
      code: 'instance-failed',
      message: expect.stringContaining('Set sdp.portal'),
    })
    expect((await known(userId)).reason_code).toBe('sdp-settings-missing')
  })
})

describe('an engine that does not answer', () => {
  test('changes nothing for what is ready', async () => {
    const { fleet, engine, routes } = await open()
    const userId = await addUser()
    const route = await fleet.ensureReady(userId, ready)
    engine.down = true
    await fleet.reconcileAll()
    await expect(fleet.reconcile(userId)).rejects.toMatchObject({ code: 'engine-unreachable' })
    expect(await known(userId)).toMatchObject({ state: 'ready' })
    expect(routes.get(userId)).toEqual(route)
    expect(await fleet.ensureReady(userId, ready)).toEqual(route)
    engine.down = false
    await fleet.reconcileAll()
    expect(engine.starts).toBe(1)
  })

  test('is told to whoever waits for a start, and the start follows when it is back', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    engine.down = true
    await expect(fleet.ensureReady(userId, ready)).rejects.toMatchObject({ code: 'engine-unreachable' })
    expect(await known(userId)).toMatchObject({ state: 'failed', reason_code: 'engine-unreachable', failures: 0 })
    engine.down = false
    await eventually('started by itself', async () => (await known(userId)).state === 'ready')
  })

  test('at the start of a control plane leaves what runs in reach', async () => {
    const { fleet: before, engine } = await open()
    const userId = await addUser()
    const route = await before.ensureReady(userId, ready)
    await before.close()
    engine.down = true
    const { fleet, routes } = await open({ engine })
    expect(routes.get(userId)).toEqual(route)
    expect(await fleet.ensureReady(userId, ready)).toEqual(route)
    expect((await known(userId)).state).toBe('ready')
  })

  test('closes the door of a suspended user all the same', async () => {
    const { fleet, engine, routes } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    engine.down = true
    await change(userId, 'suspended = true')
    await expect(fleet.reconcile(userId)).rejects.toMatchObject({ code: 'engine-unreachable' })
    expect(routes.get(userId)).toBeNull()
    await expect(fleet.ensureReady(userId, ready)).rejects.toMatchObject({ code: 'user-suspended' })
    engine.down = false
    await fleet.reconcileAll()
    await eventually('stopped', () => engine.running(userId).length === 0)
  })
})

describe('a stopped instance', () => {
  test('stays stopped until somebody connects, then it is wanted again', async () => {
    const { fleet, engine, routes } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    await change(userId, "wanted = 'stopped'")
    await fleet.reconcile(userId)
    expect(engine.running(userId)).toEqual([])
    expect(routes.get(userId)).toBeNull()
    await fleet.reconcileAll()
    expect(await known(userId)).toMatchObject({ state: 'stopped', reason_code: 'stopped-by-admin' })
    await fleet.ensureReady(userId, ready)
    const [{ wanted }] = (await db.query<{ wanted: string }>('select wanted from users where id = $1', [userId])) as [
      { wanted: string },
    ]
    expect(wanted).toBe('running')
  })

  test('that idled sleeps until somebody connects', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    await fleet.sleep(userId)
    await fleet.reconcileAll()
    await fleet.reconcile(userId)
    expect(engine.running(userId)).toEqual([])
    expect(await known(userId)).toMatchObject({ state: 'stopped', reason_code: 'idle' })
    await fleet.ensureReady(userId, ready)
    expect(engine.starts).toBe(2)
  })

  test('a connect that races with falling asleep is served', async () => {
    const { fleet } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    for (let round = 0; round < 5; round++) {
      const [, route] = await Promise.all([fleet.sleep(userId), fleet.ensureReady(userId, ready)])
      expect(route.generation).toBe(1)
      await fleet.ensureReady(userId, ready)
    }
  })

  test('of a suspended user does not wake', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    await change(userId, 'suspended = true')
    await fleet.reconcile(userId)
    expect(await known(userId)).toMatchObject({ state: 'stopped', reason_code: 'suspended' })
    await expect(fleet.ensureReady(userId, ready)).rejects.toMatchObject({ code: 'user-suspended' })
    await change(userId, 'suspended = false')
    await fleet.reconcile(userId)
    await fleet.ensureReady(userId, ready)
    expect(engine.starts).toBe(2)
  })
})

describe('a removed user', () => {
  test('loses route, instance and row, after the instance said good-bye', async () => {
    const { fleet, engine, told } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    await change(userId, "wanted = 'removed'")
    await fleet.reconcile(userId)
    expect(told).toEqual(['1', 'none', 'goodbye', 'erased'])
    expect(engine.instances.size).toBe(0)
    await expect(fleet.ensureReady(userId, ready)).rejects.toMatchObject({ code: 'user-not-found' })
  })

  test('whose instance sleeps has it started once more if there is a grant to end', async () => {
    const { fleet, engine, told } = await open()
    const [connected, other] = [await addUser(), await addUser()]
    await db.query(
      "insert into oauth_tokens (user_id, client_id, refresh_token_sealed, state) values ($1, 'client', 'sealed', 'connected')",
      [connected],
    )
    for (const userId of [connected, other]) {
      await fleet.ensureReady(userId, ready)
      await fleet.sleep(userId)
    }
    told.length = 0
    await change(connected, "wanted = 'removed'")
    await fleet.reconcile(connected)
    expect(told).toEqual(['goodbye', 'erased'])
    await change(other, "wanted = 'removed'")
    await fleet.reconcile(other)
    expect(told.slice(2)).toEqual(['no goodbye', 'erased'])
    expect(engine.instances.size).toBe(0)
  })

  test('is not forgotten when the engine is away: the removal goes on by itself', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    engine.down = true
    await change(userId, "wanted = 'removed'")
    await expect(fleet.reconcile(userId)).rejects.toMatchObject({ code: 'engine-unreachable' })
    expect(await db.query('select 1 from users where id = $1', [userId])).toHaveLength(1)
    engine.down = false
    await fleet.reconcileAll()
    await eventually('erased', async () => (await db.query('select 1 from users where id = $1', [userId])).length === 0)
    expect(engine.instances.size).toBe(0)
  })
})

describe('a control plane that starts', () => {
  test('adopts what runs without restarting it, and what ended is started again', async () => {
    const { fleet: before, engine } = await open()
    const [running, ended] = [await addUser(), await addUser()]
    const route = await before.ensureReady(running, ready)
    await before.ensureReady(ended, ready)
    await before.close()
    await engine.crash(ended, { code: 137 })
    const { routes } = await open({ engine })
    // known by the time the start returns
    expect(routes.get(running)).toEqual(route)
    await eventually('started again', async () => engine.starts === 3 && routes.get(ended))
  })

  test('finishes what another left undone, at any point', async () => {
    const { fleet: before, engine } = await open()
    const noted = await addUser()
    const unnoted = await addUser()
    const drained = await addUser()
    const removed = await addUser()
    const suspended = await addUser()
    for (const userId of [unnoted, drained, removed, suspended]) await before.ensureReady(userId, ready)
    await before.close()
    await db.query("insert into instances (user_id, state, port, generation) values ($1, 'starting', $2, 1)", [
      noted,
      firstPort + 30,
    ])
    await db.query("update instances set state = 'starting', container_id = null where user_id = $1", [unnoted])
    await db.query("update instances set state = 'draining' where user_id = $1", [drained])
    await change(drained, 'generation = 2')
    await change(removed, "wanted = 'removed'")
    await change(suspended, 'suspended = true')
    const { routes } = await open({ engine })
    await eventually(
      'all as wanted',
      () => routes.get(noted) && routes.get(unnoted) && routes.get(drained)?.generation === 2,
    )
    await eventually('gone', async () => (await db.query('select 1 from users where id = $1', [removed])).length === 0)
    await eventually('stopped', () => engine.running(suspended).length === 0)
    expect(engine.running(unnoted)).toHaveLength(1)
    // three new ones: never made, and the next generation
    expect(engine.starts).toBe(6)
  })

  test('removes instances whose user is gone, but none when the database has no users at all', async () => {
    const { fleet: before, engine } = await open()
    const [stays, orphan] = [await addUser(), await addUser()]
    await before.ensureReady(stays, ready)
    await before.ensureReady(orphan, ready)
    await before.close()
    await db.query('delete from users')
    const { fleet: wrong } = await open({ engine })
    await wrong.reconcileAll()
    await wrong.reconcile(orphan)
    expect(engine.running(orphan)).toHaveLength(1)
    await wrong.close()
    await db.query("insert into users (id, username, display_name) values ($1, 'back-again', '')", [stays])
    const { routes } = await open({ engine })
    await eventually('removed', () => engine.running(orphan).length === 0)
    await eventually('adopted', () => routes.get(stays))
  })

  test('finds two hundred instances within three seconds', async () => {
    const engine = createMemoryEngine()
    const { fleet: before } = await open({ engine, ports: 200 })
    const users = await Promise.all(Array.from({ length: 200 }, () => addUser()))
    await Promise.all(users.map(userId => before.ensureReady(userId, { timeoutMs: 30_000 })))
    await before.close()
    const from = Date.now()
    const { routes } = await open({ engine, ports: 200 })
    expect(Date.now() - from).toBeLessThan(3_000)
    expect(routes.size).toBe(200)
    expect(engine.starts).toBe(200)
  }, 60_000)
})

test('whatever the order of events, the end is what is wanted', async () => {
  // many users, each with a series of changes that nobody waits for; then the world must be as the rows say
  const { fleet, engine, routes } = await open()
  const users = await Promise.all(Array.from({ length: 8 }, () => addUser()))
  const steps = [
    'generation = generation + 1',
    'suspended = true',
    'suspended = false',
    "wanted = 'stopped'",
    "wanted = 'running'",
  ]
  let seed = 7
  const dice = (sides: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31
    return seed % sides
  }
  for (let round = 0; round < 60; round++) {
    const userId = users[dice(users.length)]!
    const roll = dice(8)
    if (roll < steps.length) await change(userId, steps[roll]!)
    else if (roll === 5) await engine.crash(userId, { code: 70 })
    else if (roll === 6) void fleet.ensureReady(userId, { timeoutMs: 50 }).catch(() => {})
    else void fleet.sleep(userId).catch(() => {})
    void fleet.reconcile(userId).catch(() => {})
  }
  for (const userId of users) await change(userId, "suspended = false, wanted = 'running'")
  for (const userId of users) await fleet.reconcile(userId, { asked: 'admin' })
  for (const userId of users) {
    const [user] = await db.query<{ generation: number }>('select generation::integer from users where id = $1', [
      userId,
    ])
    const route = await fleet.ensureReady(userId, { timeoutMs: 10_000 })
    expect(route.generation).toBe(user!.generation)
    expect(routes.get(userId)).toEqual(route)
    const running = engine.running(userId)
    expect(running.map(({ observed }) => [observed.generation, observed.address])).toEqual([
      [route.generation, route.address],
    ])
  }
}, 60_000)

describe('an instance that nobody uses', () => {
  const idle = { stopAfterMs: 2_000, streamStopAfterMs: 60_000 }

  test('is stopped, and wakes once for many who come at once', async () => {
    const { fleet, engine, routes } = await open({ config: { idle } })
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    await eventually('asleep', async () => (await known(userId)).reason_code === 'idle')
    await eventually('stopped', () => engine.running(userId).length === 0)
    expect(routes.get(userId)).toBeNull()
    const before = engine.starts
    const woken = await Promise.all(Array.from({ length: 50 }, () => fleet.ensureReady(userId, ready)))
    expect(new Set(woken.map(({ address }) => address)).size).toBe(1)
    expect(engine.starts - before).toBe(1)
  })

  test('stays while a call is under way, while an instance says so, and while a stream is open', async () => {
    const activity = createActivity({ db, now: Date.now, log: silentLog })
    const { fleet, engine } = await open({ config: { idle }, activity })
    const [calling, busy, streaming, unused] = await Promise.all(Array.from({ length: 4 }, () => addUser()))
    for (const userId of [calling!, busy!, streaming!, unused!]) await fleet.ensureReady(userId, ready)
    activity.meter(calling!).calls = 1
    engine.running(busy!)[0]!.inFlight = 1
    activity.meter(streaming!).streams = 1
    await eventually('the unused one sleeps', async () => (await known(unused!)).reason_code === 'idle')
    await new Promise(done => setTimeout(done, 1_500))
    for (const userId of [calling!, busy!, streaming!]) expect((await known(userId)).state).toBe('ready')
    // and goes when the last call has ended
    activity.meter(calling!).calls = 0
    engine.running(busy!)[0]!.inFlight = 0
    for (const userId of [calling!, busy!])
      await eventually('asleep', async () => (await known(userId)).reason_code === 'idle')
    expect((await known(streaming!)).state).toBe('ready')
    await activity.close()
  })

  test('stays because of traffic through another control plane', async () => {
    const here = createActivity({ db, now: Date.now, log: silentLog })
    const there = createActivity({ db, now: Date.now, log: silentLog })
    const { fleet } = await open({ config: { idle }, activity: here })
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    const keepBusy = setInterval(() => {
      there.meter(userId).activeAt = Date.now()
      there.meter(userId).requests++
      void there.flush()
    }, 200)
    await new Promise(done => setTimeout(done, 4_000))
    expect((await known(userId)).state).toBe('ready')
    clearInterval(keepBusy)
    await eventually('asleep', async () => (await known(userId)).reason_code === 'idle')
    await Promise.all([here.close(), there.close()])
  })

  test('whoever slips in while the door is being closed keeps it running', async () => {
    const { fleet, engine, routes } = await open()
    const userId = await addUser()
    const route = await fleet.ensureReady(userId, ready)
    const stops = engine.stops
    const sleeping = fleet.sleep(userId)
    await eventually('the door is closed', async () => routes.get(userId) === null)
    engine.running(userId)[0]!.inFlight = 1
    expect(await sleeping).toBe(false)
    expect(engine.stops).toBe(stops)
    expect(routes.get(userId)).toEqual(route)
    expect(await known(userId)).toMatchObject({ state: 'ready', address: route.address })
  })

  test('never turns a request away, however often sleep and wake race', async () => {
    const { fleet } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    let over = false
    const sleeping = (async () => {
      while (!over) await fleet.sleep(userId)
    })()
    for (let round = 0; round < 30; round++) {
      const { address, generation } = await fleet.ensureReady(userId, ready)
      expect(generation).toBe(1)
      expect(address).toContain('127.0.0.1')
    }
    over = true
    await sleeping
  }, 60_000)
})

describe('of two control planes', () => {
  test('one leads, and the other takes over when it ends', async () => {
    const one = await open()
    const two = await open({ engine: one.engine })
    expect([one.fleet.leading(), two.fleet.leading()]).toEqual([true, false])
    const userId = await addUser()
    await one.fleet.ensureReady(userId, ready)
    await eventually('the other routes there', () => two.routes.get(userId)?.generation === 1)
    await one.fleet.close()
    await eventually('the other leads', () => two.fleet.leading(), 20_000)
    // what a leader does: an instance that ends by itself is started again
    await one.engine.crash(userId, { code: 1 })
    await eventually('started again', async () => (await known(userId)).state === 'ready')
  }, 40_000)

  test('neither takes a wake by the other for a foreign hand', async () => {
    const one = await open()
    const two = await open({ engine: one.engine })
    const userId = await addUser()
    const route = await one.fleet.ensureReady(userId, ready)
    // both have seen when it was started
    await two.fleet.reconcile(userId)
    expect(await one.fleet.sleep(userId)).toBe(true)
    await delay(20)
    await one.fleet.ensureReady(userId, ready)
    expect(one.engine.instances.size).toBe(1)
    await two.fleet.reconcile(userId)
    await two.fleet.reconcileAll()
    expect(await known(userId)).toMatchObject({ state: 'ready', failures: 0, address: route.address })
    expect([one.engine.starts, one.engine.stops]).toEqual([2, 1])
  })

  test('a start by a foreign hand is noticed at the next look, also by the one that did not start it', async () => {
    const one = await open()
    const two = await open({ engine: one.engine })
    const userId = await addUser()
    await one.fleet.ensureReady(userId, ready)
    const [instance] = one.engine.running(userId)
    instance!.observed.startedAt = new Date(instance!.observed.startedAt!.getTime() + 1_000)
    await two.fleet.reconcile(userId)
    expect(one.engine.stops).toBe(1)
    await eventually('started anew', async () => (await known(userId)).state === 'ready')
  })

  test('a user may be served by the one that does not lead', async () => {
    const one = await open()
    const two = await open({ engine: one.engine })
    const userId = await addUser()
    const route = await two.fleet.ensureReady(userId, ready)
    await eventually('the leader routes there, too', () => one.routes.get(userId)?.address === route.address)
    expect(one.engine.starts).toBe(1)
  })
})

describe('a move to another image', () => {
  test('starts the new one beside the old one, and ends the old one when its sessions have', async () => {
    const proved: string[] = []
    const { fleet, engine, routes } = await open({
      async prove(_, { address }) {
        proved.push(address)
      },
    })
    const userId = await addUser()
    const old = await fleet.ensureReady(userId, ready)
    engine.running(userId)[0]!.sessions = 1
    await db.query("insert into image_pins (user_id, image, basis) values ($1, 'img:2', 'img:1')", [userId])
    expect(await fleet.moveTo(userId, 'img:2', { drainSeconds: 60 })).toBe('moved')
    const moved = routes.get(userId)!
    expect(proved).toEqual([moved.address])
    expect(moved).toEqual({
      address: expect.not.stringMatching(old.address),
      generation: 2,
      draining: { address: old.address, generation: 1 },
    })
    expect(engine.running(userId).map(({ observed }) => [observed.generation, observed.image])).toEqual([
      [1, 'img:1'],
      [2, 'img:2'],
    ])
    // looks in between leave both alone
    await fleet.reconcileAll()
    await fleet.reconcile(userId)
    expect(engine.running(userId)).toHaveLength(2)
    engine.running(userId)[0]!.sessions = 0
    await eventually('the old one is gone', () => engine.instances.size === 1)
    await eventually('nobody is sent there any more', () => routes.get(userId)?.draining === null)
    expect(await known(userId)).toMatchObject({ state: 'ready', generation: 2, address: moved.address })
    await eventually('it is over', async () => (await db.query('select from instance_moves')).length === 0)
  })

  test('is not forgotten when the new one has to be started again while the old one drains', async () => {
    const { fleet, engine, routes } = await open()
    const userId = await addUser()
    const old = await fleet.ensureReady(userId, ready)
    engine.running(userId)[0]!.sessions = 1
    await db.query("insert into image_pins (user_id, image, basis) values ($1, 'img:2', 'img:1')", [userId])
    await fleet.moveTo(userId, 'img:2', { drainSeconds: 60 })
    const draining = { address: old.address, generation: 1 }
    const fresh = engine.running(userId).find(({ observed }) => observed.generation === 2)!
    await createMemoryRuntime(engine).remove(fresh.observed.id)
    await fleet.reconcile(userId)
    await eventually('the new one is back', () => routes.get(userId)?.generation === 2)
    expect(routes.get(userId)).toMatchObject({ draining })
    expect(engine.running(userId)).toHaveLength(2)
    engine.running(userId).find(({ observed }) => observed.generation === 1)!.sessions = 0
    await eventually('the old one is gone', () => engine.running(userId).length === 1)
    await eventually('nobody is sent there any more', () => routes.get(userId)?.draining === null)
  })

  test('of which the new one proves no good changes nothing', async () => {
    const { fleet, engine, routes } = await open({
      async prove() {
        throw new Error('tools/list was answered with HTTP 500')
      },
    })
    const userId = await addUser()
    const old = await fleet.ensureReady(userId, ready)
    await expect(fleet.moveTo(userId, 'img:2', { drainSeconds: 60 })).rejects.toMatchObject({
      code: 'instance-failed',
      message: expect.stringContaining('tools/list was answered with HTTP 500'),
    })
    expect(engine.instances.size).toBe(1)
    expect(routes.get(userId)).toEqual(old)
    expect(await known(userId)).toMatchObject({ state: 'ready', generation: 1, address: old.address })
    expect(await db.query('select generation::integer from users')).toEqual([{ generation: 1 }])
    await fleet.reconcileAll()
    expect(engine.starts).toBe(2)
  })

  test('that was cut short leaves no second instance behind', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    // as a control plane that was killed would leave it
    await change(userId, 'generation = 2')
    await db.query(
      "insert into instance_moves (user_id, phase, image, generation, port) values ($1, 'preparing', 'img:2', 2, $2)",
      [userId, firstPort + 40],
    )
    const boot = testBoot({ userId, username: 'cut', generation: 2, port: firstPort + 40 })
    await createMemoryRuntime(engine).start({ boot, image: 'img:2', limits: { memoryMb: 64, cpus: 1, pids: 32 } })
    await fleet.reconcileAll()
    await eventually('only the old one runs', () => engine.instances.size === 1)
    expect(engine.running(userId)[0]?.observed.generation).toBe(1)
    await eventually('and is what is wanted', async () => {
      const [user] = await db.query<{ generation: number }>('select generation::integer from users')
      return user?.generation === 1
    })
    expect(await known(userId)).toMatchObject({ state: 'ready', generation: 1 })
  })

  test('of a user who is changed meanwhile ends the old one, which knows nothing of the change', async () => {
    const { fleet, engine, routes } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    engine.running(userId)[0]!.sessions = 1
    await fleet.moveTo(userId, 'img:2', { drainSeconds: 60 })
    expect(engine.running(userId)).toHaveLength(2)
    // as PATCH /v1/users/:username does it
    await change(userId, 'generation = generation + 1')
    await fleet.reconcile(userId)
    await eventually('the new definition runs alone', () => {
      const running = engine.running(userId)
      return running.length === 1 && running[0]!.observed.generation === 3
    })
    await eventually('nobody is sent to the old one', () => routes.get(userId)?.draining === null)
  })

  test('of a user who is suspended meanwhile ends both', async () => {
    const { fleet, engine } = await open()
    const userId = await addUser()
    await fleet.ensureReady(userId, ready)
    engine.running(userId)[0]!.sessions = 1
    await fleet.moveTo(userId, 'img:2', { drainSeconds: 60 })
    await change(userId, 'suspended = true')
    await fleet.reconcile(userId)
    expect(engine.running(userId)).toEqual([])
    expect(await known(userId)).toMatchObject({ state: 'stopped', reason_code: 'suspended' })
  })
})

test('one who wakes on a full host is told so, sleeps on, and is served as soon as there is room', async () => {
  const { fleet, engine } = await open({
    config: { capacity: { maxInstances: 1, requestMb: 1, reserveMb: 0 } },
  })
  const [early, late] = [await addUser(), await addUser()]
  await fleet.ensureReady(early, ready)
  expect(await fleet.sleep(early)).toBe(true)
  await fleet.ensureReady(late, ready)
  for (let knock = 0; knock < 3; knock++)
    await expect(fleet.ensureReady(early, ready)).rejects.toMatchObject({ code: 'capacity-exhausted', status: 503 })
  expect(await known(early)).toMatchObject({ state: 'stopped', reason_code: 'idle', failures: 0, retry_at: null })
  await fleet.reconcileAll()
  expect(engine.starts).toBe(2)
  expect(await fleet.sleep(late)).toBe(true)
  await fleet.ensureReady(early, ready)
})

test('what cannot be tidied up keeps nobody from being looked after', async () => {
  const engine = createMemoryEngine()
  const runtime = createMemoryRuntime(engine)
  const { fleet } = await open({
    engine,
    runtime: {
      ...runtime,
      async tidy() {
        throw new Error('a network stays in use')
      },
    },
  })
  const userId = await addUser()
  await fleet.ensureReady(userId, ready)
  await runtime.remove(engine.running(userId)[0]!.observed.id)
  await fleet.reconcileAll()
  await eventually('made anew', () => engine.running(userId).length === 1)
})

test('a host that is full starts nobody more, and says why', async () => {
  const { fleet, engine } = await open({
    config: { capacity: { maxInstances: 2, requestMb: 1, reserveMb: 0 } },
  })
  const users = await Promise.all(Array.from({ length: 5 }, () => addUser()))
  const settled = await Promise.allSettled(users.map(userId => fleet.ensureReady(userId, ready)))
  expect(settled.filter(({ status }) => status === 'fulfilled')).toHaveLength(2)
  for (const one of settled)
    if (one.status === 'rejected') expect(one.reason).toMatchObject({ code: 'capacity-exhausted', status: 503 })
  expect(engine.starts).toBe(2)
  await expect(fleet.checkCapacity()).rejects.toMatchObject({ code: 'capacity-exhausted' })
  // one that leaves makes room
  const leaving = users[settled.findIndex(({ status }) => status === 'fulfilled')]!
  const waiting = users[settled.findIndex(({ status }) => status === 'rejected')]!
  expect(await fleet.sleep(leaving)).toBe(true)
  await fleet.reconcile(waiting, { asked: 'admin' })
  await fleet.ensureReady(waiting, ready)
})
