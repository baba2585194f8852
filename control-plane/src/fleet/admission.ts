import { type CapacityLimits, createCapacity } from './capacity.ts'
import { rethrow } from './failures.ts'
import { createGate } from './gate.ts'
import { type InstanceRow, type InstanceTable, nothingKnown, type Subject } from './instance-table.ts'
import { createPorts } from './ports.ts'
import type { Runtime } from './runtime.ts'

/**
 * Lets an instance start only where there are a port and memory for it. Counted and noted one at a time, so that many who
 * come at once do not all find the last place free.
 */
export function createAdmission({
  runtime,
  table,
  record,
  portRange,
  capacity: limits,
  now,
}: {
  runtime: Runtime
  table: InstanceTable
  record(subject: Subject, change: Partial<InstanceRow> & { state: InstanceRow['state'] }): Promise<void>
  /** first and last port of instances */
  portRange: readonly [number, number]
  capacity: CapacityLimits
  now: () => number
}) {
  const ports = createPorts({ table, range: portRange, now })
  const capacity = createCapacity({ runtime, limits, now })
  const gate = createGate(1)
  const withFreePort = <T>(take: (port: number) => Promise<T>) => gate.run(() => ports.withFree(take))

  return {
    /**
     * Notes the start together with the port, which a user keeps for life unless another program takes it.
     * @throws AppError `port-range-exhausted`, `capacity-exhausted`
     */
    async allotPort(subject: Subject): Promise<number> {
      const { userId, generation, image } = subject.wanted
      const starting = {
        state: 'starting',
        ...nothingKnown,
        containerId: null,
        address: null,
        startedAt: null,
        generation,
        image,
        failures: subject.row?.generation === generation ? subject.row.failures : 0,
      } as const
      const note = async (port: number) => {
        await capacity.demandRoom(await table.countOthersRunning(userId))
        await record(subject, { ...starting, port })
        return port
      }
      const kept = subject.row?.port
      return kept && ports.usable(kept) ? gate.run(() => note(kept)) : withFreePort(note)
    },
    withFreePort,
    /**
     * For an instance that stands beside the user's own for a while.
     * @throws AppError `capacity-exhausted`
     */
    async demandRoomBeside(userId: string): Promise<void> {
      await capacity.demandRoom((await table.countOthersRunning(userId)) + 1)
    },
    /** Another program holds this port: it is passed over for a while. */
    passOver: ports.passOver,
    /**
     * Whether another user could be served.
     * @throws AppError `engine-unreachable`, `port-range-exhausted`, `capacity-exhausted`
     */
    async check(): Promise<void> {
      await runtime.ping().catch(rethrow)
      if ((await table.countUsers()) >= ports.count) throw ports.exhausted()
      await capacity.demandRoom(await table.countOthersRunning(null))
    },
  }
}
