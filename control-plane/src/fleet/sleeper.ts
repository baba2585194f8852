import { setTimeout as delay } from 'node:timers/promises'
import type { Activity, Seen } from '../activity.ts'
import { rethrow } from './failures.ts'
import type { InstanceRoute } from './fleet.ts'
import { createGate } from './gate.ts'
import type { HealthChecker } from './health.ts'
import { type IdleLimits, isIdle } from './idle.ts'
import { type InstanceRow, type InstanceTable, nothingKnown, type Subject } from './instance-table.ts'
import { type Runtime, stopGraceSeconds } from './runtime.ts'

/** other control planes have heard of a change by now */
export const heardMs = 300

export type Sleeper = ReturnType<typeof createSleeper>

/** Puts instances to sleep that nobody uses. */
export function createSleeper(parts: {
  runtime: Runtime
  table: Pick<InstanceTable, 'read'>
  health: HealthChecker
  activity: Pick<Activity, 'meter' | 'read'>
  limits: IdleLimits
  now: () => number
  /** aborts when the fleet closes */
  signal: AbortSignal
  locked<T>(userId: string, work: () => Promise<T>): Promise<T>
  record(subject: Subject, change: Partial<InstanceRow> & { state: InstanceRow['state'] }): Promise<void>
  closeDoor(userId: string): void
  openDoor(userId: string, to: InstanceRoute): void
  lastWords(userId: string, instance: { address: string; generation: number }): Promise<void>
}) {
  const { runtime, table, health, activity, now, signal, record } = parts
  // apart from looks, so that whoever wakes an instance does not stand in line behind those that go to sleep
  const gate = createGate(2)
  const sleeping = new Set<string>()

  function usageOf({ wanted, row }: Subject, seen: Seen | undefined, inFlight: number) {
    const { calls } = activity.meter(wanted.userId)
    return { seen, readySince: row?.changedAt.getTime() ?? now(), inFlight: inFlight + calls, now: now() }
  }

  /**
   * The door is closed first, everywhere, and whoever knocks from then on waits for the lock and wakes it; then it is
   * looked whether somebody had slipped in, in which case the door opens again.
   */
  async function putToSleep(userId: string, limits: IdleLimits | null): Promise<boolean> {
    const subject = await table.read(userId)
    const { wanted, row, move } = subject ?? {}
    if (!subject || wanted?.state !== 'running' || move) return false
    if (row?.state !== 'ready' || !row.containerId || !row.address || signal.aborted) return false
    const { address, generation, containerId, changedAt } = row
    const idle = async () => {
      const [answer, seen] = await Promise.all([
        health.ask(userId, { address, generation }, signal),
        activity.read(userId),
      ])
      const usage = usageOf({ ...subject, row }, seen.get(userId), answer?.inFlight ?? 0)
      return limits ? isIdle(usage, limits) : usage.inFlight === 0
    }
    if (!(await idle())) return false
    parts.closeDoor(userId)
    await record(subject, {
      state: 'stopped',
      reasonCode: 'idle',
      reason: 'Nobody used it for a while. It starts with the next connection.',
      address: null,
    })
    await delay(heardMs)
    if (!(await idle())) {
      await record(subject, { state: 'ready', ...nothingKnown, address, changedAt })
      parts.openDoor(userId, { address, generation, draining: null })
      return false
    }
    await parts.lastWords(userId, { address, generation })
    await runtime.stop(containerId, stopGraceSeconds).catch(rethrow)
    return true
  }

  return {
    /** @param inFlight - calls that the instance itself says are under way */
    isIdle: (subject: Subject, seen: Seen | undefined, inFlight: number) =>
      isIdle(usageOf(subject, seen, inFlight), parts.limits),
    /**
     * Ends an instance nobody uses.
     * @param limits - null: whatever the time since the last use, as long as no call is under way
     * @returns whether it sleeps now
     */
    async sleep(userId: string, limits: IdleLimits | null = parts.limits): Promise<boolean> {
      if (sleeping.has(userId)) return false
      sleeping.add(userId)
      return gate
        .run(() => parts.locked(userId, () => putToSleep(userId, limits)))
        .finally(() => sleeping.delete(userId))
    },
    fallingAsleep: (userId: string) => sleeping.has(userId),
  }
}
