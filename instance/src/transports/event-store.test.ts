import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { expect, it } from 'vitest'
import { createEventStore } from './event-store.ts'

const answer = (id: number, text: string): JSONRPCMessage => ({
  jsonrpc: '2.0',
  id,
  result: { content: [{ type: 'text', text }], structuredContent: { rows: [{ id: '1', open: true, none: null }, 2] } },
})

/** Which of the events of a stream still come back. */
async function kept(store: ReturnType<typeof createEventStore>, after: string): Promise<unknown[]> {
  const ids: unknown[] = []
  await store.replayEventsAfter(after, { send: async (_id, message) => void ids.push('id' in message && message.id) })
  return ids
}

it('events are kept up to a number of bytes, about those they have as JSON', async () => {
  const size = JSON.stringify(answer(1, 'x'.repeat(1_000))).length
  for (const [room, expected] of [
    [size * 3.1, [3, 4, 5]],
    [size * 2.9, [4, 5]],
  ] as const) {
    const store = createEventStore({ maxBytes: room })
    const first = await store.storeEvent('stream', {} as JSONRPCMessage)
    for (let id = 1; id <= 5; id++) await store.storeEvent('stream', answer(id, 'x'.repeat(1_000)))
    expect(await kept(store, first)).toEqual(expected)
    expect(store.outlook(first)).toEqual({ kind: 'gap' })
  }
})

it('the latest event is kept however long it is, and no more than a number of them', async () => {
  const store = createEventStore({ maxEvents: 3, maxBytes: 500 })
  const first = await store.storeEvent('stream', {} as JSONRPCMessage)
  await store.storeEvent('stream', answer(1, 'x'.repeat(1_000)))
  expect(await kept(store, first)).toEqual([1])
  const small = createEventStore({ maxEvents: 3 })
  const begin = await small.storeEvent('stream', {} as JSONRPCMessage)
  for (let id = 1; id <= 9; id++) await small.storeEvent('stream', answer(id, ''))
  expect(await kept(small, begin)).toEqual([7, 8, 9])
})

it('what other streams lost is no gap in this one', async () => {
  const store = createEventStore({ maxEvents: 100, maxBytes: 2_000 })
  const [pending, done] = [await store.storeEvent('pending', {} as JSONRPCMessage), 'done']
  const begun = await store.storeEvent(done, {} as JSONRPCMessage)
  await store.storeEvent(done, answer(1, ''))
  await store.storeEvent('other', answer(2, 'x'.repeat(3_000)))
  expect(store.outlook(pending)).toEqual({ kind: 'open', streamId: 'pending' })
  expect(store.outlook(begun)).toEqual({ kind: 'gap' })
  await store.storeEvent('pending', answer(3, ''))
  expect(store.outlook(pending)).toEqual({ kind: 'finished', streamId: 'pending', events: 1 })
  expect(await kept(store, pending)).toEqual([3])
})

it('a stream that waits long for its answer is whole after ten thousand others', async () => {
  const store = createEventStore({ maxEvents: 8 })
  const pending = await store.storeEvent('pending', {} as JSONRPCMessage)
  let begun = ''
  for (let id = 1; id <= 10_000; id++) {
    begun = await store.storeEvent(`other-${id}`, {} as JSONRPCMessage)
    await store.storeEvent(`other-${id}`, answer(id, ''))
    if (id === 1) expect(store.outlook(begun).kind).toBe('finished')
  }
  expect(store.outlook(pending).kind).toBe('open')
  expect(store.outlook('2.other-1').kind).toBe('gap')
  expect(store.outlook(begun).kind).toBe('finished')
  await store.storeEvent('pending', answer(0, ''))
  expect(store.outlook(pending).kind).toBe('finished')
})

it('streams that are never answered do not pile up; the earliest are taken for forgotten', async () => {
  const store = createEventStore({ maxEvents: 8 })
  const first = await store.storeEvent('never-0', {} as JSONRPCMessage)
  for (let id = 1; id <= 3_000; id++) await store.storeEvent(`never-${id}`, {} as JSONRPCMessage)
  expect(store.outlook(first).kind).toBe('gap')
  expect(store.outlook('2900.never-2899').kind).toBe('open')
})
