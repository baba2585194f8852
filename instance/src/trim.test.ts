import { expect, test, vi } from 'vitest'
import { createTrim } from './trim.ts'

function setUp(isQuiet = () => true) {
  vi.useFakeTimers()
  const collections: number[] = []
  const trim = createTrim({
    isQuiet,
    collect: () => void collections.push(Date.now()),
    afterMs: 3_000,
    everyMs: 20_000,
    now: () => Date.now(),
  })
  const startedAt = Date.now()
  return { trim, collections: () => collections.map(at => at - startedAt) }
}

test('memory is given back once after work, and never again while nothing is done', () => {
  const { trim, collections } = setUp()
  vi.advanceTimersByTime(60_000)
  expect(collections()).toEqual([])
  trim.worked()
  vi.advanceTimersByTime(3_600_000)
  expect(collections()).toEqual([63_000])
  vi.useRealTimers()
})

test('a busy instance is left alone until it has been quiet for a while', () => {
  let calls = 1
  const { trim, collections } = setUp(() => calls === 0)
  for (let second = 0; second < 30; second++) {
    trim.worked()
    vi.advanceTimersByTime(1_000)
  }
  // one long call is under way, and nothing else happens
  vi.advanceTimersByTime(60_000)
  expect(collections()).toEqual([])
  calls = 0
  vi.advanceTimersByTime(6_000)
  expect(collections()).toHaveLength(1)
  vi.useRealTimers()
})

test('work now and then does not make a collection each time', () => {
  const { trim, collections } = setUp()
  for (let at = 0; at < 60_000; at += 5_000) {
    trim.worked()
    vi.advanceTimersByTime(5_000)
  }
  const all = collections()
  expect(all.length).toBeLessThanOrEqual(3)
  for (const [index, at] of all.entries()) if (index > 0) expect(at - all[index - 1]!).toBeGreaterThanOrEqual(20_000)
  trim.worked()
  trim.stop()
  vi.advanceTimersByTime(60_000)
  expect(collections().length).toBe(all.length)
  vi.useRealTimers()
})
