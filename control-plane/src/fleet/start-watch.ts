import { setTimeout as delay } from 'node:timers/promises'
import { superseded } from './failures.ts'
import type { InstanceRoute } from './fleet.ts'
import type { HealthChecker } from './health.ts'
import type { Subject } from './instance-table.ts'
import { startDeadlineMs } from './plan.ts'
import type { ObservedInstance } from './runtime.ts'

type Watch = { containerId: string; ready: Promise<InstanceRoute>; abort: AbortController }

const firstPauseMs = 10
const longestPauseMs = 100

/** Waits until instances that were started answer as themselves: one watch for each user. */
export function createStartWatch(parts: {
  health: HealthChecker
  now: () => number
  /** aborts when the fleet closes */
  signal: AbortSignal
  /** It answers. @throws when somebody decided otherwise while it came up; `signal` has then aborted */
  onAnswer(
    subject: Subject,
    found: ObservedInstance & { address: string },
    seen: { tookMs: number; signal: AbortSignal },
  ): Promise<InstanceRoute>
  /** It did not answer in time. */
  onTimeout(subject: Subject): Promise<void>
}) {
  const { health, now } = parts
  const watches = new Map<string, Watch>()

  async function untilAnswer(subject: Subject, found: ObservedInstance, stop: AbortSignal): Promise<InstanceRoute> {
    const { address, generation } = found
    const { userId } = subject.wanted
    const since = subject.row?.state === 'ready' ? now() : subject.row!.changedAt.getTime()
    const signal = AbortSignal.any([stop, parts.signal])
    let pauseMs = firstPauseMs
    while (!address || !(await health.ask(userId, { address, generation }, signal))) {
      signal.throwIfAborted()
      if (now() - since >= startDeadlineMs) {
        watches.delete(userId)
        await parts.onTimeout(subject)
        throw superseded()
      }
      await delay(pauseMs, undefined, { signal }).catch(() => {})
      pauseMs = Math.min(longestPauseMs, pauseMs * 1.4)
    }
    signal.throwIfAborted()
    return parts.onAnswer(subject, { ...found, address }, { tookMs: now() - since, signal })
  }

  return {
    begin(subject: Subject, found: ObservedInstance): void {
      const { userId } = subject.wanted
      const before = watches.get(userId)
      if (before?.containerId === found.id) return
      before?.abort.abort(superseded())
      const abort = new AbortController()
      const watch: Watch = { containerId: found.id, ready: untilAnswer(subject, found, abort.signal), abort }
      watches.set(userId, watch)
      const forget = () => {
        if (watches.get(userId) === watch) watches.delete(userId)
      }
      watch.ready.then(forget, forget)
    },
    end(userId: string, why: Error = superseded()): void {
      watches.get(userId)?.abort.abort(why)
      watches.delete(userId)
    },
    /** @returns when the instance that comes up just now answers; undefined when none does */
    of: (userId: string): Promise<InstanceRoute> | undefined => watches.get(userId)?.ready,
    all: () => [...watches.values()].map(({ ready }) => ready),
  }
}
