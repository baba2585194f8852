import { AppError } from '../errors.ts'
import type { Runtime } from './runtime.ts'

export type CapacityLimits = {
  /** null: not limited by number */
  maxInstances: number | null
  /** memory set aside for each running instance, MiB */
  requestMb: number
  /** memory of the host that is not for instances, MiB */
  reserveMb: number
}

/**
 * How many instances the host has room for. Pure.
 * @param hostMb - memory of the host in MiB; null when it is not known, which limits nothing
 */
export function roomFor(hostMb: number | null, { maxInstances, requestMb, reserveMb }: CapacityLimits): number {
  const byMemory =
    hostMb === null ? Number.POSITIVE_INFINITY : Math.max(0, Math.floor((hostMb - reserveMb) / requestMb))
  return Math.min(maxInstances ?? Number.POSITIVE_INFINITY, byMemory)
}

const readAgainMs = 60_000

/** Says no before one instance too many is started: a host out of memory kills those that work. */
export function createCapacity({
  runtime,
  limits,
  now,
}: {
  runtime: Runtime
  limits: CapacityLimits
  now: () => number
}) {
  let hostMb: number | null = null
  let readAt = Number.NEGATIVE_INFINITY

  return {
    /** @throws AppError `capacity-exhausted` when `running` instances leave no room for one more */
    async demandRoom(running: number): Promise<void> {
      if (now() - readAt >= readAgainMs) {
        // an engine that does not answer is told by whoever asks it to start something
        hostMb = await runtime.hostMemoryMb().catch(() => hostMb)
        readAt = now()
      }
      const room = roomFor(hostMb, limits)
      if (running < room) return
      const why =
        room === limits.maxInstances
          ? `SDP_MAX_INSTANCES allows ${room}`
          : `${hostMb} MiB of memory less ${limits.reserveMb} for the host are enough for ${room} of ${limits.requestMb} MiB`
      throw new AppError(
        'capacity-exhausted',
        `${running} instances run, and ${why}. Wait until one is idle and stops, stop or remove one, or raise the limit.`,
        { retryAfterSeconds: 60 },
      )
    },
  }
}
