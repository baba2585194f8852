import type { Logger } from 'pino'
import type { ToolCallRecord } from './session.ts'

/** One row of the audit: a tool call without arguments and answers, or that `lost` of them could not be written. */
export type AuditedCall = { at: number } & (Omit<ToolCallRecord, 'target'> & { target?: string | undefined })
export type LostCalls = { at: number; lost: number }

export type ToolAudit = {
  /** Notes a call; returns at once, whatever the database does. */
  record(call: ToolCallRecord): void
  /** Writes what is left, within `timeoutMs`. */
  close(timeoutMs?: number): Promise<void>
}

/** So that calls of one moment share a statement; at most this much is lost when the process is killed. */
const gatherMs = 1_000
const batchSize = 200
/** About ten minutes of a very busy user while the database is away; 300 kB. */
const keptCalls = 2_000
const longestPauseMs = 30_000

/**
 * Hands tool calls to the audit in the background: in batches, one at a time, again after a failure. While the store is
 * away the newest calls are kept up to a bound; how many had to be dropped is itself recorded.
 *
 * @param write - stores a batch, all of it or nothing
 */
export function createToolAudit(options: {
  write: (batch: readonly (AuditedCall | LostCalls)[]) => Promise<void>
  log: Logger
  now?: () => number
  gatherMs?: number
}): ToolAudit {
  const { write, log, now = Date.now } = options
  let waiting: AuditedCall[] = []
  let lost = 0
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<boolean> | undefined
  let failures = 0

  async function writeBatch(): Promise<boolean> {
    const batch = waiting.slice(0, batchSize)
    const lostNow = lost
    if (batch.length === 0 && lostNow === 0) return true
    // taken out while it is written: what arrives meanwhile must not push it out
    waiting = waiting.slice(batch.length)
    lost = 0
    try {
      await write([...(lostNow > 0 ? [{ at: now(), lost: lostNow }] : []), ...batch])
      failures = 0
      return true
    } catch (error) {
      waiting = [...batch, ...waiting]
      lost += lostNow
      drop()
      failures++
      log.warn({ err: error, waiting: waiting.length, lost }, 'tool-audit.write.failed')
      return false
    }
  }

  function drop(): void {
    const surplus = waiting.length - keptCalls
    if (surplus <= 0) return
    waiting = waiting.slice(surplus)
    lost += surplus
  }

  function schedule(): void {
    if (timer || writing) return
    const pauseMs = failures === 0 ? (options.gatherMs ?? gatherMs) : Math.min(1_000 * 2 ** failures, longestPauseMs)
    timer = setTimeout(() => {
      timer = undefined
      writing = writeBatch().finally(() => {
        writing = undefined
        if (waiting.length > 0 || lost > 0) schedule()
      })
    }, pauseMs)
    timer.unref()
  }

  return {
    record(call) {
      waiting.push({ at: now(), ...call })
      drop()
      schedule()
    },
    async close(timeoutMs = 2_000) {
      clearTimeout(timer)
      const deadline = Date.now() + timeoutMs
      const flush = async () => {
        await writing
        while ((waiting.length > 0 || lost > 0) && Date.now() < deadline) if (!(await writeBatch())) break
      }
      let late: NodeJS.Timeout | undefined
      await Promise.race([flush(), new Promise(done => (late = setTimeout(done, timeoutMs)))])
      clearTimeout(late)
      clearTimeout(timer)
      if (waiting.length > 0) log.error({ calls: waiting.length }, 'tool-audit.lost')
    },
  }
}
