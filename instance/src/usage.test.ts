import { expect, test } from 'vitest'
import { latencyBoundsMs, usageReport } from './contract.ts'
import { createUsage } from './usage.ts'

const inBuckets = (...durationsMs: number[]) =>
  [...latencyBoundsMs, Number.POSITIVE_INFINITY].map(
    (bound, at) => durationsMs.filter(ms => ms <= bound && ms > (latencyBoundsMs[at - 1] ?? -1)).length,
  )

test('calls are counted per day and tool, for a week', () => {
  let clock = Date.UTC(2026, 0, 1, 23, 59)
  const usage = createUsage(() => clock)
  usage.record({ tool: 'get_request', outcome: 'ok', durationMs: 10 })
  usage.record({ tool: 'get_request', outcome: 'not-found', durationMs: 30 })
  usage.record({ tool: 'add_note', outcome: 'ok', durationMs: 5 })
  const first = usageReport.parse(usage.report())
  expect(first.tools).toEqual([
    { day: '2026-01-01', tool: 'get_request', calls: 2, errors: 1, totalMs: 40, maxMs: 30, buckets: inBuckets(10, 30) },
    { day: '2026-01-01', tool: 'add_note', calls: 1, errors: 0, totalMs: 5, maxMs: 5, buckets: inBuckets(5) },
  ])
  for (let day = 0; day < 7; day++) {
    clock += 24 * 60 * 60 * 1000
    usage.record({ tool: 'get_request', outcome: 'ok', durationMs: 1 })
  }
  const later = usage.report()
  expect(later.epoch).toBe(first.epoch)
  expect(later.tools.map(({ day }) => day)).toEqual(Array.from({ length: 7 }, (_, at) => `2026-01-0${at + 2}`))
})
