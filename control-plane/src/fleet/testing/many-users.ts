import { setTimeout as delay } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { cloneDatabase, type DatabaseConnection } from '@sdp-mcp/migrations/testing'
import { createActivity } from '../../activity.ts'
import { createDb } from '../../db.ts'
import { createRoutes } from '../../proxy/routes.ts'
import { createFleet } from '../fleet.ts'
import { createMemoryEngine, createMemoryRuntime } from './memory-runtime.ts'
import { fleetStandIns, silentLog, testBoot, unlimited } from './support.ts'

/**
 * What many users cost a control plane itself: instances are servers in this process, so that neither an engine nor
 * containers are measured along.
 *
 * @returns what, value, target
 */
export async function measureManyUsers(
  server: DatabaseConnection,
  count: number,
): Promise<[what: string, value: string, target: string][]> {
  setFlagsFromString('--expose-gc')
  const collectGarbage = runInNewContext('gc') as () => void
  const heapKiB = () => {
    collectGarbage()
    return process.memoryUsage().heapUsed / 1024
  }
  await using database = await cloneDatabase(server)
  const db = createDb(database)
  const engine = createMemoryEngine()
  const open = () => {
    const routes = createRoutes()
    const activity = createActivity({ db, now: Date.now, log: silentLog })
    const fleet = createFleet({
      ...fleetStandIns(db),
      db,
      runtime: createMemoryRuntime(engine),
      config: {
        image: 'img',
        portRange: [30_000, 30_000 + count],
        limits: { memoryMb: 64, cpus: 1, pids: 32 },
        ...unlimited,
      },
      activity,
      log: silentLog,
      now: Date.now,
      bootFor: async (userId, { generation, port }) => testBoot({ userId, username: userId, generation, port }),
      onRoute: (userId, to) => routes.set(userId, to),
      async beforeRemove() {},
      async afterRemove() {},
    })
    return {
      fleet,
      routes,
      activity,
      async close() {
        await fleet.close()
        await activity.close()
        await routes.close()
      },
    }
  }
  try {
    const users = await db.query<{ id: string }>(
      "insert into users (username, display_name) select 'user-' || n, 'User' from generate_series(1, $1) n returning id",
      [count],
    )
    const first = open()
    await first.fleet.start()
    await Promise.all(users.map(({ id }) => first.fleet.ensureReady(id, { timeoutMs: 300_000 })))
    await first.close()

    const before = heapKiB()
    const second = open()
    const began = performance.now()
    await second.fleet.start()
    const adoptedMs = performance.now() - began
    const adopted = second.routes.all().length
    for (const { id } of users) second.activity.meter(id)
    // connections of the health checks, and their other ends, are in this process, too: they close when idle
    await delay(8_000)
    const perUserKiB = (heapKiB() - before) / count
    const sweeps: number[] = []
    for (let round = 0; round < 5; round++) {
      const at = performance.now()
      await second.fleet.reconcileAll()
      sweeps.push(performance.now() - at)
    }
    await second.close()
    const sweepMs = sweeps.sort((a, b) => a - b)[2]!
    return [
      [
        `${count} users: adopted by a new control plane`,
        `${adopted} in ${(adoptedMs / 1000).toFixed(2)} s`,
        `${count}`,
      ],
      [`${count} users: a look at everybody`, `${sweepMs.toFixed(0)} ms`, 'well under the 15 s between two'],
      [`${count} users: heap of the control plane for each`, `${perUserKiB.toFixed(1)} KiB`, 'at most 15 KiB'],
    ]
  } finally {
    for (const instance of engine.instances.values()) instance.server.close()
    for (const instance of engine.instances.values()) instance.server.closeAllConnections()
    await db.close()
  }
}
