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
const fresh = async (more = {}) =>
  (await carol.ok('create_request', {
    subject: `Scanner ${++serial} is stuck`,
    requester: 'Ana Ferreira',
    ...more,
  })) as { id: string; number: string }

it('is private unless said otherwise, and tells what it became', async () => {
  const { number } = await fresh()
  const note = await carol.ok('add_note', { request_id: number, text: 'Checked the <cable>\n\n- fine' })
  expect(note).toMatchObject({ visibility: 'private', note_id: expect.stringMatching(/^\d+$/) })
  expect(note.mail).toBeUndefined()
  const shown = await carol.ok('add_note', { request_id: number, text: 'We are on it', visibility: 'requester' })
  expect(shown.visibility).toBe('requester')
  expect(shown.mail).toContain('depends')
})

it('uses the root this site takes', async () => {
  const { number } = await fresh()
  desk.simulator.faults.set({ noteRoot: 'note' })
  expect((await carol.ok('add_note', { request_id: number, text: 'x' })).visibility).toBe('private')
})
