import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { cloneDatabase, freePort } from '@sdp-mcp/migrations/testing'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { createDb, type Db } from '../db.ts'
import { createFleet, type InstanceRoute } from './fleet.ts'
import {
  docker,
  leftovers,
  removeEverything,
  testImage,
  testInstallation,
  testRuntime,
  withoutDocker,
} from './testing/docker.ts'
import { eventually, fleetStandIns, getJson, silentLog, testBoot, unlimited } from './testing/support.ts'

// The journey of an instance on a real engine; what can go wrong in between is in fleet.test.ts.
describe.skipIf(withoutDocker)('the fleet on a Docker engine', () => {
  const installation = testInstallation()
  let database: Awaited<ReturnType<typeof cloneDatabase>>
  let db: Db
  let image: string
  let firstPort: number
  beforeAll(async () => {
    image = await testImage()
    database = await cloneDatabase(inject('postgres'))
    db = createDb(database)
    firstPort = await freePort()
  })
  afterAll(async () => {
    await removeEverything(installation)
    await db?.close()
    await database?.[Symbol.asyncDispose]()
  })

  async function controlPlane() {
    const runtime = testRuntime(installation)
    const routes = new Map<string, InstanceRoute | null>()
    const fleet = createFleet({
      db,
      runtime,
      config: {
        image,
        portRange: [firstPort, firstPort + 20],
        limits: { memoryMb: 128, cpus: 1, pids: 64 },
        ...unlimited,
      },
      log: silentLog,
      now: Date.now,
      async bootFor(userId, { generation, port }) {
        const [user] = await db.query<{ username: string }>('select username from users where id = $1', [userId])
        return testBoot({ userId, username: user!.username, generation, port })
      },
      onRoute: (userId, to) => routes.set(userId, to),
      ...fleetStandIns(db),
      async beforeRemove() {},
      async afterRemove(userId) {
        await db.query('delete from users where id = $1', [userId])
      },
    })
    await fleet.start()
    return {
      fleet,
      routes,
      async end() {
        await fleet.close()
        await runtime.close()
      },
    }
  }
  const addUser = async (username = `user-${randomUUID().slice(0, 8)}`) =>
    (
      await db.query<{ id: string }>('insert into users (username, display_name) values ($1, $1) returning id', [
        username,
      ])
    )[0]!.id
  const known = async (userId: string) =>
    (
      await db.query<{ state: string; reason_code: string; container_id: string; port: number }>(
        'select * from instances where user_id = $1',
        [userId],
      )
    )[0]!
  const ready = { timeoutMs: 20_000 }

  test('an instance is started, survives its control plane, comes back from every end, sleeps, wakes, is replaced and goes', async () => {
    let plane = await controlPlane()
    const userId = await addUser('alice')
    const route = await plane.fleet.ensureReady(userId, ready)
    const { container_id: first } = await known(userId)
    expect(await getJson(route.address, '/healthz')).toMatchObject({ audience: `instance:${userId}:1` })

    await plane.end()
    plane = await controlPlane()
    expect(plane.routes.get(userId)).toEqual(route)
    expect((await known(userId)).container_id).toBe(first)
    expect(await docker('inspect', '--format', '{{.RestartCount}} {{.State.Running}}', first)).toBe('0 true')

    await docker('kill', first)
    await eventually('the door is closed', () => plane.routes.get(userId) === null, 2_000)
    expect(await plane.fleet.ensureReady(userId, ready)).toEqual(route)
    expect(await known(userId)).toMatchObject({ state: 'ready', container_id: first })

    await docker('rm', '-f', first)
    await eventually(
      'made anew',
      async () => {
        const row = await known(userId)
        return row.state === 'ready' && row.container_id !== first
      },
      20_000,
    )

    await plane.fleet.sleep(userId)
    expect(await docker('ps', '-q', '--filter', `label=com.sdp-mcp.installation=${installation}`)).toBe('')
    expect(await plane.fleet.ensureReady(userId, ready)).toEqual(route)

    // restarted by a foreign hand it has no boot material: the fleet starts it properly
    await docker('restart', '-t', '1', (await known(userId)).container_id)
    await eventually(
      'proper again',
      async () => (await getJson(route.address, '/healthz')).audience === `instance:${userId}:1`,
      20_000,
    )

    await db.query('update users set generation = 2 where id = $1', [userId])
    await plane.fleet.reconcile(userId)
    expect(await plane.fleet.ensureReady(userId, ready)).toEqual({ ...route, generation: 2 })
    expect(await leftovers(installation)).toEqual([`sdp-mcp-${installation}-alice-2`, `sdp-mcp-${installation}-alice`])

    await db.query("update users set wanted = 'removed' where id = $1", [userId])
    await plane.fleet.reconcile(userId)
    expect(await leftovers(installation)).toEqual([])
    expect(plane.routes.get(userId)).toBeNull()
    await plane.end()
  }, 120_000)

  test('ten users at once are ready, each on its own port, though another program holds one of them', async () => {
    const foreign = createServer().listen(firstPort + 2, '127.0.0.1')
    await new Promise(done => foreign.once('listening', done))
    const plane = await controlPlane()
    const users = await Promise.all(Array.from({ length: 10 }, () => addUser()))
    const routes = await Promise.all(users.map(userId => plane.fleet.ensureReady(userId, { timeoutMs: 60_000 })))
    const ports = routes.map(({ address }) => Number(new URL(address).port))
    expect(new Set(ports).size).toBe(10)
    expect(ports).not.toContain(firstPort + 2)
    await db.query("update users set wanted = 'removed'")
    await Promise.all(users.map(userId => plane.fleet.reconcile(userId)))
    expect(await leftovers(installation)).toEqual([])
    foreign.close()
    await plane.end()
  }, 120_000)

  test('a crash while it starts is told with its exit code', async () => {
    const plane = await controlPlane()
    const userId = await addUser('crash-test')
    await expect(plane.fleet.ensureReady(userId, ready)).rejects.toMatchObject({
      code: 'instance-failed',
      message: expect.stringContaining('exit code 70'),
    })
    expect(await known(userId)).toMatchObject({ state: 'failed', reason_code: 'crashed' })
    await db.query("update users set wanted = 'removed'")
    await plane.fleet.reconcile(userId)
    await plane.end()
  }, 60_000)
})
