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

it('sets the resolution first, then closes with code and comments', async () => {
  const number = await fresh()
  const closed = await carol.ok('close_request', {
    request_id: number,
    resolution: 'Fixed',
    closure_code: 'completed',
    comments: 'ok',
    acknowledged: true,
  })
  expect(closed).toMatchObject({ closed: true, status_before: 'Open', status: 'Closed', closure_code: 'Completed' })
  expect(await carol.ok('close_request', { request_id: number })).toMatchObject({
    closed: true,
    hint: expect.stringContaining('before'),
  })
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
