import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

let serial = 0
const fresh = async () => (await carol.ok('create_request', { subject: `Assign me ${++serial}` })).number as string
const paths = () =>
  desk.simulator.log
    .list()
    .filter(({ method }) => method === 'PUT')
    .map(({ path }) => path.split('/').at(-1))

it('picks up, hands over, and takes away', async () => {
  const number = await fresh()
  expect(await carol.ok('assign_request', { request_id: number, technician: 'me' })).toMatchObject({
    done: true,
    picked_up: true,
  })
  expect(paths().at(-1)).toBe('_pickup')
  const handed = await carol.ok('assign_request', { request_id: number, technician: 'alice', group: 'network' })
  expect(handed.changes).toContainEqual({
    field: 'technician',
    before: 'Carol Jensen',
    asked: 'Alice Moreau',
    actual: 'Alice Moreau',
  })
  expect(paths().at(-1)).toBe('_assign')
  const taken = await carol.ok('assign_request', { request_id: number, technician: 'none' })
  expect(taken.changes).toEqual([{ field: 'technician', before: 'Alice Moreau', actual: 'empty' }])
})

it('the same call twice leaves the same state', async () => {
  const number = await fresh()
  await carol.ok('assign_request', { request_id: number, technician: 'bob' })
  expect((await carol.ok('assign_request', { request_id: number, technician: 'bob' })).done).toBe(true)
})

it('falls back to an edit where the site has no such operation', async () => {
  const number = await fresh()
  desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: '/requests/*/_assign' } })
  desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: '/requests/*/assign' } })
  expect((await carol.ok('assign_request', { request_id: number, technician: 'bob' })).done).toBe(true)
})

it('a requester is no technician, and nothing is sent', async () => {
  const number = await fresh()
  const before = paths().length
  expect(await carol.fails('assign_request', { request_id: number, technician: 'Heidi Brandt' })).toContain(
    'Nobody called',
  )
  expect(paths().length).toBe(before)
})

it('explains a refusal of the site', async () => {
  const number = await fresh()
  desk.simulator.faults.set({ assignNeedsCategory: true })
  expect(await carol.fails('assign_request', { request_id: number, technician: 'bob' })).toMatch(/Next: .*no category/)
})
