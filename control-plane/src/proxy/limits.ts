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
}

/** @param nowMs - a clock that never jumps */
export function createLimiter(nowMs: () => number = performance.now.bind(performance)): Limiter {
  const users = new Map<string, { tokens: number; at: number; open: number }>()
  return {
    enter(userId, { requestsPerSecond, burst, concurrentRequests }) {
      const at = nowMs()
      let entry = users.get(userId)
      if (!entry) {
        entry = { tokens: burst, at, open: 0 }
        users.set(userId, entry)
      }
      if (concurrentRequests > 0 && entry.open >= concurrentRequests)
        throw new AppError(
          'concurrency-limit-exceeded',
          `You have ${entry.open} calls and event streams open, which is the limit. Close an MCP client that is not needed, or ask your admin for more.`,
          { retryAfterSeconds: 5 },
        )
      if (requestsPerSecond > 0) {
        entry.tokens = Math.min(burst, entry.tokens + ((at - entry.at) / 1000) * requestsPerSecond)
        entry.at = at
        if (entry.tokens < 1)
          throw new AppError(
            'rate-limit-exceeded',
            `You may send ${requestsPerSecond} requests a second. Send fewer, or ask your admin for more.`,
            { retryAfterSeconds: Math.max(1, Math.ceil((1 - entry.tokens) / requestsPerSecond)) },
          )
        entry.tokens -= 1
      }
      entry.open++
    },
    leave(userId) {
      const entry = users.get(userId)
      if (entry && entry.open > 0) entry.open--
    },
    forget: userId => void users.delete(userId),
  }
}
