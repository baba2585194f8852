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

  return {
    record({ tool, outcome, durationMs }) {
      const day = new Date(now()).toISOString().slice(0, 10)
      const tools = days.get(day) ?? new Map<string, UsageReport['tools'][number]>()
      days.set(day, tools)
      const entry = tools.get(tool) ?? {
        day,
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
