import { setTimeout as delay } from 'node:timers/promises'
import { AppError } from '../errors.ts'
import { failureOf, stillStarting } from './failures.ts'
import type { InstanceRoute } from './fleet.ts'
import type { InstanceTable, Subject } from './instance-table.ts'

/** a start that failed but is tried again this soon is worth waiting for */
const patienceMs = 1_500
const longestStartMs = 60_000
const pauseMs = 50

/** Waits for instances on behalf of clients, waking or starting them where needed. */
export function createReadiness(parts: {
  table: Pick<InstanceTable, 'read' | 'wantRunning'>
  now: () => number
  /** aborts when the fleet closes */
  signal: AbortSignal
  /** where the user's instance was last seen ready */
  routeOf(userId: string): InstanceRoute | undefined
  openDoor(userId: string, to: InstanceRoute): void
  drainingOf(subject: Subject): InstanceRoute['draining']
  answers(userId: string, at: { address: string; generation: number }): Promise<boolean>
  /** looks at the user and does what is to do */
  look(userId: string): Promise<void>
  /** settles when the instance that comes up just now answers or gives up; undefined when none does */
  comingUp(userId: string): Promise<InstanceRoute> | undefined
}) {
  const { table, now, signal } = parts
  const waiting = new Map<string, Promise<InstanceRoute>>()

  async function becomeReady(userId: string): Promise<InstanceRoute> {
    const giveUpAt = now() + longestStartMs
    for (;;) {
      const subject = await table.read(userId)
      if (!subject || subject.wanted.state === 'removed')
        throw new AppError('user-not-found', 'There is no such user. List the users with GET /v1/users.')
      if (subject.suspended)
        throw new AppError('user-suspended', 'Your access is suspended. Ask your admin to lift the suspension.')
      if (subject.adminWants === 'stopped') await table.wantRunning(userId)

      const { row, wanted } = subject
      const current = row?.state === 'ready' && row.generation === wanted.generation ? row : null
      const route = parts.routeOf(userId)
      if (current && route?.generation === current.generation && (await parts.answers(userId, route))) {
        // unless it was closed while we asked
        if (parts.routeOf(userId) === route) {
          parts.openDoor(userId, route)
          return route
        }
      }
      if (row?.state === 'failed' && row.generation === wanted.generation && row.retryAt) {
        const waitMs = row.retryAt.getTime() - now()
        if (waitMs > patienceMs) throw failureOf(subject, now())
        if (waitMs > 0) await delay(waitMs, undefined, { signal })
      }
      if (now() > giveUpAt) throw stillStarting()
      try {
        await parts.look(userId)
      } catch (error) {
        // the engine is away, but the instance may well be there
        if (current?.address && error instanceof AppError && error.code === 'engine-unreachable') {
          const last = { address: current.address, generation: current.generation, draining: parts.drainingOf(subject) }
          if (await parts.answers(userId, last)) {
            parts.openDoor(userId, last)
            return last
          }
        }
        throw error
      }
      const comingUp = parts.comingUp(userId)
      if (comingUp) {
        const found = await comingUp.catch(() => null)
        if (found) return found
      } else await delay(pauseMs, undefined, { signal })
      // failed, replaced by another decision, or another control plane is at it: look again
    }
  }

  return {
    /** Many callers share one wait; `signal` and `timeoutMs` end this caller's part of it. */
    async ensureReady(
      userId: string,
      { timeoutMs, signal: caller }: { timeoutMs: number; signal?: AbortSignal },
    ): Promise<InstanceRoute> {
      let ready = waiting.get(userId)
      if (!ready) {
        ready = becomeReady(userId).finally(() => waiting.delete(userId))
        ready.catch(() => {})
        waiting.set(userId, ready)
      }
      const ending = new AbortController()
      const timeout = AbortSignal.any([ending.signal, ...(caller ? [caller] : [])])
      const late = delay(timeoutMs, undefined, { signal: timeout }).then(() => {
        throw stillStarting()
      })
      try {
        return await Promise.race([ready, late])
      } finally {
        ending.abort()
      }
    },
  }
}
