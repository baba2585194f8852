import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { buildServices, type Services } from '../services.ts'
import { type Desk, startDesk } from '../testing/desk.ts'
import type { Sdp } from './client.ts'
import { isSdpError } from './errors.ts'

let desk: Desk
let services: Services
let sdp: Sdp
let calls = 0
let now = Date.now()
beforeAll(async () => {
  desk = await startDesk()
  services = buildServices(await desk.context('carol', { now: () => now }))
  sdp = services.client.bind({ signal: new AbortController().signal, onRequest: () => calls++ })
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

async function counted<T>(work: () => Promise<T>): Promise<[T, number]> {
  const from = calls
  return [await work(), calls - from]
}
const create = async (subject: string) => String((await services.requests.create(sdp, { subject })).id)

it('many numbers become ids in one call, and none after they were seen', async () => {
  const { records } = buildServices(await desk.context('carol'))
  const [ids, cost] = await counted(() => records.ids(sdp, 'request', ['12', '#13', 'RE-14', '12']))
  expect(cost).toBe(1)
  expect(ids).toHaveLength(3)
  expect(await counted(() => records.ids(sdp, 'request', ['14', '12']))).toEqual([[ids[2], ids[0]], 0])
  expect(await records.id(sdp, 'request', '13')).toBe(ids[1])
})

it('a number that nobody has is named, whatever the others are', async () => {
  const failure = await services.records.ids(sdp, 'request', ['12', '999999']).catch(error => error)
  expect(isSdpError(failure, 'not-found')).toBe(true)
  expect(failure.message).toContain('#999999')
})

it('many records are read in one call; what is gone is not among them', async () => {
  const [kept, trashed] = [await create('Kept'), await create('Trashed')]
  await sdp.operate({ path: `/requests/${trashed}`, template: '/requests/{}' }, 'move_to_trash', undefined, {
    method: 'DELETE',
  })
  const [found, cost] = await counted(() => services.records.many(sdp, 'request', [kept, trashed], ['subject']))
  expect(cost).toBe(1)
  expect([...found]).toEqual([[kept, { id: kept, subject: 'Kept' }]])
})

it('the head of a record is known for five minutes, and not after our own edit', async () => {
  const id = await create('Before')
  const subject = async () => (await services.records.head(sdp, 'request', id, ['subject', 'requester'])).subject
  expect(await counted(subject)).toEqual(['Before', 1])
  expect(await counted(subject)).toEqual(['Before', 0])
  now += 5 * 60_000 + 1
  expect(await counted(subject)).toEqual(['Before', 1])
  await services.requests.update(sdp, id, { subject: 'After' })
  expect(await counted(subject)).toEqual(['After', 1])
})

it('a row that showed less than what is asked is not taken for the record', async () => {
  const id = await create('Rows')
  await services.records.many(sdp, 'request', [id], ['subject'])
  expect((await counted(() => services.records.head(sdp, 'request', id, ['subject'])))[1]).toBe(0)
  const [head, cost] = await counted(() => services.records.head(sdp, 'request', id, ['subject', 'requester']))
  expect(cost).toBe(1)
  expect(head.requester).toMatchObject({ name: 'Carol Jensen' })
})

it.each([
  ['whole', 1],
  ['id', 2],
] as const)('an edit answered with %s is proved in %i calls', async (editAnswer, most) => {
  const id = await create('Edited')
  desk.simulator.faults.set({ editAnswer })
  const [record, cost] = await counted(() => services.records.change(sdp, 'request', id, { subject: 'Now' }))
  expect(record.subject).toBe('Now')
  expect(cost).toBe(most)
})
