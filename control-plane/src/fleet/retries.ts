/** Looks again at users when their time has come; one time for each. */
export function createRetries({
  now,
  signal,
  look,
}: {
  now: () => number
  /** aborts when the fleet closes */
  signal: AbortSignal
  look: (userId: string) => void
}) {
  const timers = new Map<string, NodeJS.Timeout>()

  return {
    has: (userId: string) => timers.has(userId),
    /** Instead of the time that was set before. */
    at(userId: string, at: Date): void {
      if (signal.aborted) return
      clearTimeout(timers.get(userId))
      const timer = setTimeout(
        () => {
          timers.delete(userId)
          look(userId)
        },
        Math.max(0, at.getTime() - now()),
      )
      timers.set(userId, timer)
    },
    cancel(userId: string): void {
      clearTimeout(timers.get(userId))
      timers.delete(userId)
    },
    close(): void {
      for (const timer of timers.values()) clearTimeout(timer)
    },
  }
}
