import { randomUUID } from 'node:crypto'
import type { UsageReport } from './contract.ts'
import { addTo, createBuckets } from './latency.ts'

export type Usage = {
  record(call: { tool: string; outcome: string; durationMs: number }): void
  report(): Pick<UsageReport, 'epoch' | 'tools'>
}

const keptDays = 7

/** Counts tool calls per day and tool, for the control plane to fetch. */
export function createUsage(now: () => number = Date.now): Usage {
  const epoch = randomUUID()
  const days = new Map<string, Map<string, UsageReport['tools'][number]>>()
  let today = { number: Number.NaN, name: '' }

  /** The UTC date, whose text is made once a day. */
  function day(): string {
    const at = now()
    const number = Math.floor(at / 86_400_000)
    if (number !== today.number) today = { number, name: new Date(at).toISOString().slice(0, 10) }
    return today.name
  }

  return {
    record({ tool, outcome, durationMs }) {
      const name = day()
      const tools = days.get(name) ?? new Map<string, UsageReport['tools'][number]>()
      days.set(name, tools)
      const entry = tools.get(tool) ?? {
        day: name,
        tool,
        calls: 0,
        errors: 0,
        totalMs: 0,
        maxMs: 0,
        buckets: createBuckets(),
      }
      tools.set(tool, entry)
      entry.calls++
      if (outcome !== 'ok') entry.errors++
      entry.totalMs += durationMs
      addTo(entry.buckets, durationMs)
      entry.maxMs = Math.max(entry.maxMs, durationMs)
      const oldest = days.size > keptDays ? days.keys().next().value : undefined
      if (oldest !== undefined) days.delete(oldest)
    },
    report: () => ({ epoch, tools: [...days.values()].flatMap(tools => [...tools.values()]) }),
  }
}
