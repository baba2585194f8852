import { expect, test } from 'vitest'
import { createCapacity, roomFor } from './capacity.ts'
import { createMemoryEngine, createMemoryRuntime } from './testing/memory-runtime.ts'

test.for([
  ['nothing is limited', null, { maxInstances: null, requestMb: 96, reserveMb: 1024 }, Number.POSITIVE_INFINITY],
  ['by number', null, { maxInstances: 5, requestMb: 96, reserveMb: 1024 }, 5],
  ['by memory', 4096, { maxInstances: null, requestMb: 96, reserveMb: 1024 }, 32],
  ['by what is less', 4096, { maxInstances: 50, requestMb: 96, reserveMb: 1024 }, 32],
  ['a host smaller than its reserve has no room', 512, { maxInstances: null, requestMb: 96, reserveMb: 1024 }, 0],
] as const)('room: %s', ([, hostMb, limits, expected]) => {
  expect(roomFor(hostMb, limits)).toBe(expected)
})

test('a full host is told with the limit that was reached, and memory that was added is noticed', async () => {
  const engine = createMemoryEngine()
  engine.hostMemoryMb = 1_300
  let clock = 0
  const limits = { maxInstances: 4, requestMb: 100, reserveMb: 1_000 }
  const capacity = createCapacity({ runtime: createMemoryRuntime(engine), limits, now: () => clock })
  await capacity.demandRoom(2)
  await expect(capacity.demandRoom(3)).rejects.toMatchObject({
    code: 'capacity-exhausted',
    message: expect.stringContaining('1300 MiB of memory less 1000'),
  })
  engine.hostMemoryMb = 2_000
  clock += 61_000
  await capacity.demandRoom(3)
  await expect(capacity.demandRoom(4)).rejects.toMatchObject({ message: expect.stringContaining('SDP_MAX_INSTANCES') })
  // an engine that is away is not a reason of its own
  engine.down = true
  clock += 61_000
  await capacity.demandRoom(3)
})
