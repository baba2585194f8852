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
const fresh = async () => (await carol.ok('create_request', { subject: `Close me ${++serial}` })).number as string

it.each(['partial_success', 'warning', 'success'] as const)(
  '3000 with the text "%s" is "not closed", and the wanted fields are named',
  async partialStatus => {
    desk.simulator.faults.set({ partialStatus, closeRequires: ['resolution', 'category'] })
    const number = await fresh()
    const failure = await carol.fails('close_request', { request_id: number, comments: 'done' })
    expect(failure).toMatch(/^Not closed/)
    expect(failure).toContain('resolution, category')
    expect(failure).toContain('3000')
    expect((await carol.ok('get_request', { request_id: number })).status).toBe('Open')
  },
)

it('closes with resolution, code and comments in one edit', async () => {
  const number = await fresh()
  desk.simulator.log.clear()
  const closed = await carol.ok('close_request', {
    request_id: number,
    resolution: 'Fixed',
    closure_code: 'completed',
    comments: 'ok',
    acknowledged: true,
  })
  expect(closed).toMatchObject({ closed: true, status_before: 'Open', status: 'Closed', closure_code: 'Completed' })
  expect(writesOf(desk)).toHaveLength(1)
  expect(await carol.ok('close_request', { request_id: number })).toMatchObject({
    closed: true,
    hint: expect.stringContaining('before'),
  })
})

it('where the site wants the resolution to be there first, it comes first, and the ticket is closed after', async () => {
  desk.simulator.faults.set({ resolutionFirst: true })
  const number = await fresh()
  expect(
    await carol.ok('close_request', { request_id: number, resolution: 'Fixed', closure_code: 'completed' }),
  ).toMatchObject({ closed: true, closure_code: 'Completed' })
})

it('3000 to an edit is "not closed" too, and the resolution is not claimed to be set', async () => {
  desk.simulator.faults.set({ closeRequires: ['resolution', 'category'] })
  const number = await fresh()
  const failure = await carol.fails('close_request', { request_id: number, resolution: 'Fixed' })
  expect(failure).toMatch(/^Not closed[\s\S]*category/)
  const ticket = await carol.ok('get_request', { request_id: number, include: ['resolution'] })
  expect(ticket).toMatchObject({ status: 'Open' })
  expect(ticket.resolution).toBeUndefined()
})

it('discovers the closure codes of the site', async () => {
  const number = await fresh()
  expect(
    await carol.fails('close_request', { request_id: number, closure_code: 'complete', resolution: 'x' }),
  ).toContain('Completed')
})

it('closes by edit where the site knows no close operation', async () => {
  const number = await fresh()
  for (const name of ['_close', 'close'])
    desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: `/requests/*/${name}` } })
  expect((await carol.ok('close_request', { request_id: number, resolution: 'x' })).status).toBe('Closed')
})
