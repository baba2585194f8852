import type { World } from '../world.ts'
import { ApiFailure } from './failure.ts'

/** The 4015 answer (docs/sdp-api.md 4.5). */
export function limitReached(status: number, retryAfterSeconds?: number): ApiFailure {
  const message = 'URL blocked as maximum access limit for the page is exceeded. Please try after sometime.'
  return new ApiFailure(
    status,
    [{ status_code: 4015, type: 'failed', message }],
    retryAfterSeconds === undefined ? {} : { 'retry-after': String(retryAfterSeconds) },
  )
}

interface Bucket {
  tokens: number
  filledAt: number
  lockedUntil: number
}

/** A token bucket per user; once empty, the user is locked out for a while. */
export class RateLimit {
  private readonly buckets = new Map<string, Bucket>()

  /** @throws ApiFailure 4015 when the user's bucket is empty or the lock is on */
  spend(world: World, user: string): void {
    const { rateLimitPerMinute, rateLimitStatus, rateLimitLockSeconds, rateLimitRetryAfter } = world.faults.switches
    if (rateLimitPerMinute <= 0) {
      this.buckets.clear()
      return
    }
    const now = world.now()
    const bucket = this.buckets.get(user) ?? { tokens: rateLimitPerMinute, filledAt: now, lockedUntil: 0 }
    this.buckets.set(user, bucket)
    const refill = ((now - bucket.filledAt) / 60_000) * rateLimitPerMinute
    bucket.tokens = Math.min(rateLimitPerMinute, bucket.tokens + refill)
    bucket.filledAt = now
    if (bucket.lockedUntil <= now && bucket.tokens >= 1) {
      bucket.tokens -= 1
      return
    }
    if (bucket.lockedUntil <= now) bucket.lockedUntil = now + rateLimitLockSeconds * 1000
    const seconds = Math.max(1, Math.ceil((bucket.lockedUntil - now) / 1000))
    throw limitReached(rateLimitStatus, rateLimitRetryAfter ? seconds : undefined)
  }
}
