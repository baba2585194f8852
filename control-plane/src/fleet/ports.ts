import { sqlState } from '../db.ts'
import { AppError } from '../errors.ts'
import type { InstanceTable } from './instance-table.ts'
import { isPortFree } from './port-probe.ts'

const foreignPortMs = 10 * 60_000
const mostAttempts = 100

/** The ports of instances: which are free in the database, and which other programs of the host hold. */
export function createPorts({
  table,
  range: [lowest, highest],
  now,
}: {
  table: InstanceTable
  /** first and last */
  range: readonly [number, number]
  now: () => number
}) {
  /** ports that other programs hold, and until when we believe it */
  const foreign = new Map<number, number>()
  const usable = (port: number) => port >= lowest && port <= highest && (foreign.get(port) ?? 0) <= now()

  const exhausted = () =>
    new AppError(
      'port-range-exhausted',
      `Every port from ${lowest} to ${highest} is in use. Remove users who left, or widen SDP_INSTANCE_PORT_RANGE.`,
      { retryAfterSeconds: 60 },
    )

  return {
    usable,
    exhausted,
    count: highest - lowest + 1,
    /** Another program holds this port: it is passed over for a while. */
    passOver(port: number): void {
      foreign.set(port, now() + foreignPortMs)
    },
    /**
     * Gives `take` a free port; one that another control plane took meanwhile (unique violation) is passed over.
     * @throws AppError `port-range-exhausted`
     */
    async withFree<T>(take: (port: number) => Promise<T>): Promise<T> {
      for (let attempt = 0; attempt < mostAttempts; attempt++) {
        const held = [...foreign.keys()].filter(port => !usable(port))
        const free = await table.freePort([lowest, highest], held)
        if (free === undefined) {
          // a program that held a port may be gone by now
          const freed = await Promise.all(held.map(async port => ((await isPortFree(port)) ? [port] : [])))
          if (freed.flat().length === 0) throw exhausted()
          for (const port of freed.flat()) foreign.delete(port)
          continue
        }
        try {
          return await take(free)
        } catch (error) {
          if (sqlState(error) !== '23505') throw error
        }
      }
      throw exhausted()
    },
  }
}
