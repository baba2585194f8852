/**
 * Gives memory back when nobody works. V8 collects garbage when it needs room, so a process that waits keeps what its
 * start and its last busy minute left behind, for hours; and there is one such process for each user.
 *
 * States: resting --worked()--> waiting --quiet for `afterMs`--> collected, and resting again.
 */
export type Trim = {
  /** Something was done for somebody. Costs one comparison while a collection is already planned. */
  worked(): void
  stop(): void
}

export function createTrim({
  isQuiet,
  collect = collector(),
  afterMs = 3_000,
  everyMs = 20_000,
  now = () => performance.now(),
}: {
  /** no call is under way: a collection holds everything up for some hundredths of a second */
  isQuiet: () => boolean
  /** undefined: the process was not started with --expose-gc, and nothing is ever done */
  collect?: (() => void) | undefined
  afterMs?: number
  /** between two collections */
  everyMs?: number
  now?: () => number
}): Trim {
  let workedAt = now()
  let collectedAt = Number.NEGATIVE_INFINITY
  let timer: NodeJS.Timeout | undefined

  function plan(): void {
    const at = Math.max(workedAt + afterMs, collectedAt + everyMs)
    timer = setTimeout(look, Math.max(afterMs / 10, at - now()))
    timer.unref()
  }
  function look(): void {
    timer = undefined
    if (!isQuiet()) workedAt = now()
    if (now() - workedAt < afterMs) plan()
    else {
      collectedAt = now()
      collect?.()
    }
  }
  return {
    worked() {
      workedAt = now()
      if (collect && timer === undefined) plan()
    },
    stop() {
      clearTimeout(timer)
      collect = undefined
    },
  }
}

/** The whole heap, and compiled code that was not used lately. */
function collector(): (() => void) | undefined {
  const gc = globalThis.gc
  return gc && (() => gc({ type: 'major', execution: 'sync', flavor: 'last-resort' }))
}
