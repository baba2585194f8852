import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
let number: string
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  number = (await carol.ok('create_request', { subject: 'Work on me' })).number
})
afterAll(() => desk[Symbol.asyncDispose]())

const sent = () =>
  desk.simulator.log
    .list()
    .filter(({ method }) => method === 'POST')
    .at(-1)?.input as { worklog: Record<string, { value: string }> }

it('logs minutes that end now, for me, with the ticket named request_id or parent_id', async () => {
  const logged = await carol.ok('log_time', { request_id: number, minutes: 95, description: 'Router reset' })
  expect(logged).toMatchObject({ minutes: 95, owner: 'Carol Jensen', worklog_id: expect.stringMatching(/^\d+$/) })
  const { worklog } = sent()
  expect(worklog.time_spent).toEqual({ hours: '1', minutes: '35' })
  expect(Number(worklog.end_time?.value) - Number(worklog.start_time?.value)).toBe(95 * 60_000)
  await carol.ok('log_time', { parent_id: number, minutes: 5 })
})

it('logs between two times, for somebody else, with a type', async () => {
  const { options } = await carol.ok('list_field_options', { field: 'worklog_type' })
  const logged = await carol.ok('log_time', {
    request_id: number,
    start: 'yesterday 09:00',
    end: 'yesterday 10:30',
    technician: 'alice',
    type: options[0].name,
  })
  expect(logged).toMatchObject({ minutes: 90, owner: 'Alice Moreau' })
})

it.each([
  [{}, 'how long'],
  [{ start: 'today 10:00', end: 'today 09:00' }, 'ends before it starts'],
  [{ start: 'today 09:00', end: 'today 09:10', minutes: 60 }, 'more than lies between'],
  [{ minutes: 0 }, 'minutes'],
  [{ minutes: 10, module: 'project' }, 'task_id'],
])('refuses %o before sending', async (args, text) => {
  expect(await carol.fails('log_time', { request_id: number, ...args })).toContain(text)
})

it('logs on tasks, problems and changes', async () => {
  const { task_id } = await carol.ok('add_task', { request_id: number, title: 'Sub task' })
  expect(await carol.ok('log_time', { request_id: number, task_id, minutes: 10 })).toMatchObject({ on: 'request task' })
  for (const module of ['problem', 'change']) {
    expect(await carol.ok('log_time', { module, parent_id: '1', minutes: 10 }), module).toMatchObject({
      on: module,
      minutes: 10,
    })
  }
})
