import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'
import { writesOf } from '../../testing/support.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

let serial = 0
const fresh = async () => (await carol.ok('create_request', { subject: `Resolve me ${++serial}` })).number as string

it('writes the resolution, then the status, and logs time in the same step', async () => {
  const number = await fresh()
  const result = await carol.ok('resolve_request', {
    request_id: number,
    resolution: 'Replaced the **cable**',
    log_minutes: 15,
  })
  expect(result).toMatchObject({
    done: true,
    status_before: 'Open',
    status: 'Resolved',
    resolution_set: true,
    time_logged: { minutes: 15, owner: 'Carol Jensen' },
  })
  const ticket = await carol.ok('get_request', { request_id: number, include: ['resolution', 'worklogs'] })
  expect(ticket.resolution).toContain('Replaced the **cable**')
  expect(ticket.worklogs).toEqual([expect.objectContaining({ minutes: 15 })])
})

it('takes another status by name, and refuses one that does not exist before writing', async () => {
  const number = await fresh()
  const failure = await carol.fails('resolve_request', { request_id: number, resolution: 'x', status: 'resolvd' })
  expect(failure).toContain('Resolved')
  expect((await carol.ok('get_request', { request_id: number, include: ['resolution'] })).resolution).toBeUndefined()
})

const editsOf = () => writesOf(desk).filter(({ method }) => method === 'PUT')

it('resolution and status travel together', async () => {
  const number = await fresh()
  desk.simulator.log.clear()
  await carol.ok('resolve_request', { request_id: number, resolution: 'x' })
  expect(editsOf().map(({ input }) => input)).toEqual([
    { request: { resolution: { content: '<p>x</p>' }, status: { id: expect.any(String) } } },
  ])
})

it('where the site wants the resolution to be there first, it comes first', async () => {
  const number = await fresh()
  desk.simulator.faults.set({ resolutionFirst: true })
  desk.simulator.log.clear()
  expect((await carol.ok('resolve_request', { request_id: number, resolution: 'x' })).status).toBe('Resolved')
  expect(editsOf().map(({ input }) => Object.keys((input as { request: object }).request))).toEqual([
    ['resolution', 'status'],
    ['resolution'],
    ['status'],
  ])
})

it('says which half is done when the second half fails', async () => {
  const number = await fresh()
  desk.simulator.faults.set({ resolutionFirst: true })
  desk.simulator.faults.add({ kind: 'status', status: 403, match: { method: 'PUT', path: '/requests' }, skip: 2 })
  expect(await carol.fails('resolve_request', { request_id: number, resolution: 'half' })).toMatch(
    /^The resolution is set\. But then:/,
  )
})
