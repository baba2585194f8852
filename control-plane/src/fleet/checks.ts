import type { HealthChecker } from './health.ts'
import type { Subject } from './instance-table.ts'
import type { ObservedInstance } from './runtime.ts'

const unusedMs = 60_000

export type Checks = ReturnType<typeof createChecks>

/** Asks instances that are ready how they are, and remembers what that says for the next plan. */
export function createChecks({
  health,
  now,
  signal,
}: {
  health: HealthChecker
  now: () => number
  signal: AbortSignal
}) {
  /** how often in a row an instance did not answer */
  const silent = new Map<string, number>()
  /** since when users' instances have had no session at any check */
  const unusedSince = new Map<string, number>()

  return {
    /**
     * @param observed - the user's containers; undefined when the engine could not be asked
     * @param counts - whether silence counts against the instance: whoever does not lead leaves it alone
     * @returns null when there is nobody to ask, or no answer
     */
    async ask(
      { wanted, row }: Subject,
      observed: ObservedInstance[] | undefined,
      { counts }: { counts: boolean },
    ): Promise<{ address: string; generation: number; sessions: number; inFlight: number } | null> {
      const { userId } = wanted
      if (wanted.state !== 'running' || row?.state !== 'ready') return null
      const found = observed?.find(({ id, running }) => running && id === row.containerId)
      const address = found?.address ?? row.address
      if (!address || (observed && !found)) return null
      const answer = await health.ask(userId, { address, generation: row.generation }, signal)
      if (signal.aborted) return null
      if (answer?.sessions !== 0) unusedSince.delete(userId)
      else if (!unusedSince.has(userId)) unusedSince.set(userId, now())
      if (!answer) {
        if (counts) silent.set(userId, (silent.get(userId) ?? 0) + 1)
        return null
      }
      silent.delete(userId)
      return { address, generation: row.generation, sessions: answer.sessions, inFlight: answer.inFlight }
    },

    silentChecks: (userId: string) => silent.get(userId) ?? 0,
    /** For long enough that nobody is just about to come back, e.g. after a restart of the control plane. */
    isUnused: (userId: string) => now() - (unusedSince.get(userId) ?? Number.POSITIVE_INFINITY) >= unusedMs,
    /** It had its time to answer: no further check is needed. */
    giveUp: (userId: string) => void silent.set(userId, Number.MAX_SAFE_INTEGER),
    /** It was seen alive, or is another one now. */
    forgive: (userId: string) => void silent.delete(userId),
    forget(userId: string): void {
      silent.delete(userId)
      unusedSince.delete(userId)
    },
  }
}
