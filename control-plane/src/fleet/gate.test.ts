import { setTimeout as delay } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { createGate } from './gate.ts'

test('never more than the width at once, in order, and a failure frees its place', async () => {
  const gate = createGate(3)
  let inside = 0
  let most = 0
  const order: number[] = []
  const work = (index: number) =>
    gate.run(async () => {
      order.push(index)
      most = Math.max(most, ++inside)
      await delay(1)
      inside--
      if (index % 4 === 0) throw new Error('no')
    })
  await Promise.allSettled(Array.from({ length: 20 }, (_, index) => work(index)))
  expect(most).toBe(3)
  expect(order).toEqual(Array.from({ length: 20 }, (_, index) => index))
  expect(await gate.run(async () => 'free')).toBe('free')
})
