import { expect, test } from 'vitest'
import { isIdle } from './idle.ts'

const minute = 60_000
const now = 1_000 * minute
const ago = (minutes: number) => now - minutes * minute
const limits = { stopAfterMs: 30 * minute, streamStopAfterMs: 480 * minute }
const seen = (activeMinutes: number, streamMinutes = Number.POSITIVE_INFINITY) => ({
  activeAt: ago(activeMinutes),
  streamedAt: Number.isFinite(streamMinutes) ? ago(streamMinutes) : 0,
  requests: 1,
  failures: 0,
})

test.for([
  ['never used, up for long', { seen: undefined, readySince: ago(31), inFlight: 0 }, true],
  ['never used, just came up', { seen: undefined, readySince: ago(29), inFlight: 0 }, false],
  ['used a while ago', { seen: seen(31), readySince: ago(100), inFlight: 0 }, true],
  ['used lately', { seen: seen(29), readySince: ago(100), inFlight: 0 }, false],
  ['used long ago, but woken since', { seen: seen(300), readySince: ago(1), inFlight: 0 }, false],
  ['a call under way, however long', { seen: seen(300), readySince: ago(300), inFlight: 1 }, false],
  ['a silent stream', { seen: seen(200, 0), readySince: ago(300), inFlight: 0 }, false],
  ['a stream silent for longer than streams may be', { seen: seen(481, 0), readySince: ago(500), inFlight: 0 }, true],
  ['a stream noted by another control plane', { seen: seen(200, 0.5), readySince: ago(300), inFlight: 0 }, false],
  ['used at a time that is still to come', { seen: seen(-1_440), readySince: ago(300), inFlight: 0 }, true],
  ['up since a time that is still to come', { seen: seen(5), readySince: ago(-1_440), inFlight: 0 }, false],
  ['a stream of a control plane that is gone', { seen: seen(200, 5), readySince: ago(300), inFlight: 0 }, true],
] as const)('%s', ([, situation, expected]) => {
  expect(isIdle({ ...situation, now }, limits)).toBe(expected)
})

test('"never" is never', () => {
  const long = { readySince: 0, inFlight: 0, now: now * 1_000 }
  expect(isIdle({ ...long, seen: undefined }, { ...limits, stopAfterMs: null })).toBe(false)
  const streaming = { ...seen(0), activeAt: 0, streamedAt: long.now }
  expect(isIdle({ ...long, seen: streaming }, { ...limits, streamStopAfterMs: null })).toBe(false)
  expect(isIdle({ ...long, seen: streaming }, limits)).toBe(true)
})
