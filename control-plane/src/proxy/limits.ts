import { AppError } from '../errors.ts'

/** What one user may use. 0 means: no limit. */
export type RequestLimits = { requestsPerSecond: number; burst: number; concurrentRequests: number }

/**
 * Counts what each user does: a token bucket and the number of requests under way, event streams included. One map
 * look-up a request; nothing is shared between users, so one of them cannot use up what belongs to another.
 */
export interface Limiter {
  /**
   * Counts a request in; call {@link leave} when it is over.
   * @throws AppError `rate-limit-exceeded`, `concurrency-limit-exceeded`; then it does not count
   */
  enter(userId: string, limits: RequestLimits): void
  leave(userId: string): void
  /** The user is gone. */
  forget(userId: string): void
  /** What changed since the last call, for the limiters of other workers; see {@link heard}. */
  share(): Use[]
  /**
   * What another worker let in counts here, too. Workers tell each other ten times a second, so all of them together
   * exceed a limit by no more than what comes in between.
   */
  heard(worker: number, uses: Use[]): void
  /** A worker has ended, and its requests with it. */
  left(worker: number): void
}

/** Of one user: requests let in since the last time, how many are open now, and how many a second are allowed. */
export type Use = [userId: string, admitted: number, open: number, requestsPerSecond: number]

/** with ten a second, every five seconds */
const tellAllEvery = 50

type Entry = {
  /** what is missing from a full bucket, as of `at` */
  spent: number
  at: number
  /** how fast it fills, in requests a second; as of the last request, here or elsewhere */
  rate: number
  open: number
  /** let in since the others were told; null: nothing has changed since */
  untold: number | null
  /** open in other workers, by worker, and the sum of it */
  elsewhere: Map<number, number> | undefined
  openElsewhere: number
}

/**
 * @param isShared - whether {@link Limiter.share} is called
 * @param nowMs - a clock that never jumps
 */
export function createLimiter({
  isShared = false,
  nowMs = performance.now.bind(performance),
}: {
  isShared?: boolean
  nowMs?: () => number
} = {}): Limiter {
  const users = new Map<string, Entry>()
  /** those that the others are not told of yet */
  let changed: string[] = []
  let shares = 0

  function entryOf(userId: string): Entry {
    let entry = users.get(userId)
    if (!entry) {
      entry = { spent: 0, at: nowMs(), rate: 0, open: 0, untold: null, elsewhere: undefined, openElsewhere: 0 }
      users.set(userId, entry)
    }
    return entry
  }
  /** The bucket as it is now. What is added to one of long ago would be forgiven for all that time. */
  function settle(entry: Entry): void {
    const at = nowMs()
    entry.spent = Math.max(0, entry.spent - ((at - entry.at) / 1000) * entry.rate)
    entry.at = at
  }
  function note(userId: string, entry: Entry, admitted: number): void {
    if (entry.untold === null) {
      entry.untold = 0
      changed.push(userId)
    }
    entry.untold += admitted
  }
  function openElsewhere(entry: Entry, worker: number, open: number): void {
    entry.elsewhere ??= new Map()
    entry.openElsewhere += open - (entry.elsewhere.get(worker) ?? 0)
    if (open > 0) entry.elsewhere.set(worker, open)
    else entry.elsewhere.delete(worker)
  }

  return {
    enter(userId, { requestsPerSecond, burst, concurrentRequests }) {
      const entry = entryOf(userId)
      const open = entry.open + entry.openElsewhere
      if (concurrentRequests > 0 && open >= concurrentRequests)
        throw new AppError(
          'concurrency-limit-exceeded',
          `You have ${open} calls and event streams open, which is the limit. Close an MCP client that is not needed, or ask your admin for more.`,
          { retryAfterSeconds: 5 },
        )
      if (requestsPerSecond > 0) {
        // what others let in meanwhile may make a debt, which is no larger than a burst
        entry.spent = Math.min(2 * burst, entry.spent)
        entry.rate = requestsPerSecond
        settle(entry)
        const missing = entry.spent + 1 - burst
        if (missing > 0)
          throw new AppError(
            'rate-limit-exceeded',
            `You may send ${requestsPerSecond} requests a second. Send fewer, or ask your admin for more.`,
            { retryAfterSeconds: Math.max(1, Math.ceil(missing / requestsPerSecond)) },
          )
        entry.spent += 1
      }
      entry.open++
      if (isShared) note(userId, entry, 1)
    },
    leave(userId) {
      const entry = users.get(userId)
      if (!entry || entry.open === 0) return
      entry.open--
      if (isShared) note(userId, entry, 0)
    },
    forget: userId => void users.delete(userId),
    share() {
      // a worker that was started again knows nothing of what is open
      if (++shares % tellAllEvery === 0) for (const [userId, entry] of users) if (entry.open > 0) note(userId, entry, 0)
      const told = changed
      changed = []
      return told.flatMap(userId => {
        const entry = users.get(userId)
        if (!entry) return []
        const use: Use = [userId, entry.untold ?? 0, entry.open, entry.rate]
        entry.untold = null
        return [use]
      })
    },
    heard(worker, uses) {
      for (const [userId, admitted, open, rate] of uses) {
        const entry = entryOf(userId)
        if (rate > 0) entry.rate = rate
        settle(entry)
        entry.spent += admitted
        openElsewhere(entry, worker, open)
      }
    },
    left(worker) {
      for (const entry of users.values()) if (entry.elsewhere?.has(worker)) openElsewhere(entry, worker, 0)
    },
  }
}
