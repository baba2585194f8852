import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from '../log.ts'
import type { HealthChecker } from './health.ts'
import { type InstanceRow, nothingKnown, type Subject } from './instance-table.ts'
import type { ObservedInstance } from './runtime.ts'

/** how long an instance may take to answer that is started for its goodbye */
const startMs = 12_000

type Place = { address: string; generation: number }

/** Ends a removed user's grant while there still is an instance that can; one is started for it if need be. */
export function createGoodbye(parts: {
  health: HealthChecker
  log: Logger
  /** aborts when the fleet closes */
  signal: AbortSignal
  /** nobody is let in, woken for, or tried again any more */
  closeDoor(userId: string): void
  record(subject: Subject, change: Partial<InstanceRow> & { state: InstanceRow['state'] }): Promise<void>
  start(subject: Subject): Promise<ObservedInstance>
  lastWords(userId: string, instance: Place): Promise<void>
  /** has the grant revoked; null when no instance could be made to run */
  revoke(userId: string, instance: Place | null): Promise<void>
}) {
  const { health, log } = parts

  async function startFor(subject: Subject): Promise<Place | null> {
    const { address } = await parts.start(subject)
    return address === null ? null : { address, generation: subject.wanted.generation }
  }

  async function answersSoon(userId: string, at: Place): Promise<boolean> {
    const signal = AbortSignal.any([parts.signal, AbortSignal.timeout(startMs)])
    while (!signal.aborted) {
      if (await health.ask(userId, at, signal)) return true
      await delay(50)
    }
    return false
  }

  return {
    /** @param runningId - of the user's instance among `observed`, if it runs */
    async say(subject: Subject, observed: ObservedInstance[], runningId: string | null): Promise<void> {
      const { userId } = subject.wanted
      parts.closeDoor(userId)
      await parts.record(subject, { state: 'draining', ...nothingKnown })
      const running = observed.find(({ id }) => id === runningId)
      let instance = running?.address ? { address: running.address, generation: running.generation } : null
      if (subject.connected) {
        instance ??= await startFor(subject).catch(error => {
          log.warn({ userId, error }, 'fleet.goodbye.not-started')
          return null
        })
        if (instance && !(await answersSoon(userId, instance))) instance = null
      }
      if (instance) await parts.lastWords(userId, instance)
      await parts.revoke(userId, instance)
    },
  }
}
