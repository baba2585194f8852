import { isIPv6 } from 'node:net'
import { ipv6Groups, plainAddress } from '@sdp-mcp/instance/contract'
import { AppError } from './errors.ts'

/**
 * Slows down guessing: after some failures from one address each further one doubles the time it has to wait.
 * While it waits not even the right secret is looked at, else waiting would not slow anybody down.
 */
export interface Attempts {
  /** @throws AppError `too-many-attempts` while the address has to wait */
  check(address: string): void
  failed(address: string): void
  /** Forgets the failures of an address. */
  succeeded(address: string): void
  /** addresses remembered at the moment */
  size(): number
  /** What another worker saw; see `tell` below. */
  heard(event: AttemptEvent): void
}

export type AttemptEvent = { address: string; failed: boolean }

const freeFailures = 5
const longestWaitMs = 300_000
const forgottenAfterMs = 900_000

/**
 * @param elapsed - a clock that never jumps, in ms
 * @param capacity - most addresses remembered; beyond it the one that failed longest ago is forgotten
 * @param tell - takes what other workers must know, so that guesses spread over them are slowed down all the same
 */
export function createAttempts({
  elapsed = () => performance.now(),
  capacity = 10_000,
  tell = () => {},
}: {
  elapsed?: () => number
  capacity?: number
  tell?: (event: AttemptEvent) => void
} = {}): Attempts {
  type Entry = { failures: number; lastAt: number; waitUntil: number }
  /** the one that failed last is last */
  const entries = new Map<string, Entry>()

  function current(key: string): Entry | undefined {
    const entry = entries.get(key)
    if (!entry || elapsed() - entry.lastAt < forgottenAfterMs) return entry
    entries.delete(key)
    return undefined
  }

  function fail(address: string): void {
    const key = group(address)
    const failures = (current(key)?.failures ?? 0) + 1
    const waitMs = failures < freeFailures ? 0 : Math.min(1000 * 2 ** (failures - freeFailures), longestWaitMs)
    entries.delete(key)
    entries.set(key, { failures, lastAt: elapsed(), waitUntil: elapsed() + waitMs })
    if (entries.size > capacity) entries.delete(entries.keys().next().value as string)
  }

  return {
    check(address) {
      const entry = current(group(address))
      if (!entry || entry.waitUntil <= elapsed()) return
      const seconds = Math.ceil((entry.waitUntil - elapsed()) / 1000)
      throw new AppError(
        'too-many-attempts',
        `There were too many failed attempts from your address. Wait ${seconds} seconds, then send the right credentials.`,
        { retryAfterSeconds: seconds },
      )
    },
    failed(address) {
      fail(address)
      tell({ address, failed: true })
    },
    succeeded(address) {
      // what was never in doubt is no news
      if (entries.delete(group(address))) tell({ address, failed: false })
    },
    size: () => entries.size,
    heard: ({ address, failed }) => void (failed ? fail(address) : entries.delete(group(address))),
  }
}

/** An IPv6 host has a whole /64 to itself, so that is what counts as one address. */
function group(address: string): string {
  const plain = plainAddress(address) ?? address
  if (!isIPv6(plain)) return plain
  return `${ipv6Groups(plain)
    .slice(0, 4)
    .map(group => group.toString(16))
    .join(':')}::/64`
}
