import { expect, test } from 'vitest'
import { leastSquares, trendOf } from './trend.ts'

const minuteMs = 60_000
/** A saw: grows with garbage and falls back every seven samples, a little different each time. */
function saw(minutes: number, leakPerHour: number) {
  let seed = 7
  const noise = () => {
    seed = (seed * 48_271) % 2_147_483_647
    return seed / 2_147_483_647
  }
  return Array.from({ length: minutes * 12 }, (_, index) => ({
    atMs: index * 5_000,
    value: 80 + (index % 7) * 4 + noise() * 3 + (leakPerHour * index * 5_000) / 3_600_000,
  }))
}

test('the slope of a line is found, and nothing is sure about two points', () => {
  const line = [0, 1, 2, 3].map(index => ({ atMs: index * minuteMs, value: 10 + index * 2 }))
  expect(leastSquares(line).slope * minuteMs).toBeCloseTo(2)
  expect(leastSquares(line).error).toBeCloseTo(0)
  expect(trendOf(line.slice(0, 2), 0).exceeds).toBe(false)
})

test('saw teeth of garbage are no leak, in a short run as in a long one', () => {
  for (const minutes of [2, 10, 60, 240]) expect(trendOf(saw(minutes, 0), 20).exceeds, `${minutes} min`).toBe(false)
})

test('a leak of twice the bound is seen within an hour', () => {
  const trend = trendOf(saw(60, 40), 20)
  expect(trend.slope).toBeGreaterThan(30)
  expect(trend.exceeds).toBe(true)
})

test('what grows in the first third only, is how a process warms up', () => {
  const warming = Array.from({ length: 720 }, (_, index) => ({ atMs: index * 5_000, value: Math.min(index, 200) }))
  expect(trendOf(warming, 1).exceeds).toBe(false)
})
