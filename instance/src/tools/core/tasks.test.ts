import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
let number: string
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  number = (await carol.ok('create_request', { subject: 'Many hands' })).number
})
afterAll(() => desk[Symbol.asyncDispose]())

it('a task is added, given away, moved on, commented and closed, and its description is left alone', async () => {
  const added = await carol.ok('add_task', {
    request_id: number,
    title: 'Order a part',
    description: 'Type **X**',
    owner: 'me',
    due: 'tomorrow 17:00',
    estimate_minutes: 90,
  })
  expect(added).toMatchObject({
    title: 'Order a part',
    status: 'Open',
    owner: 'Carol Jensen',
    due: expect.stringMatching(/T17:00/),
  })
  const { task_id } = added
  const moved = await carol.ok('update_task', {
    request_id: number,
    task_id,
    owner: 'alice',
    percent: 40,
    comment: 'half way',
  })
  expect(moved.changes).toContainEqual({
    field: 'owner',
    before: 'Carol Jensen',
    asked: 'Alice Moreau',
    actual: 'Alice Moreau',
  })
  const closed = await carol.ok('update_task', { request_id: number, task_id, status: 'closed' })
  expect(closed).toMatchObject({ status: 'Closed', done: true })
  const puts = desk.simulator.log.list().filter(({ method }) => method === 'PUT')
  for (const { input } of puts) expect(JSON.stringify(input)).not.toContain('description')
  const { tasks } = await carol.ok('get_request', { request_id: number, include: ['tasks'] })
  expect(tasks).toEqual([expect.objectContaining({ id: task_id, status: 'Closed', owner: 'Alice Moreau' })])
})

it('hangs on problems, changes, projects and milestones too', async () => {
  for (const module of ['problem', 'change', 'release', 'project']) {
    const { task_id } = await carol.ok('add_task', { module, parent_id: '1', title: 'Check' })
    expect(await carol.ok('update_task', { module, parent_id: '1', task_id, percent: 10 }), module).toMatchObject({
      on: module,
    })
  }
  expect(await carol.fails('add_task', { module: 'milestone', parent_id: '1', title: 'x' })).toContain('project_id')
})

it('an unknown owner is refused before anything is sent', async () => {
  const before = desk.simulator.log.list().filter(({ method }) => method === 'POST').length
  await carol.fails('add_task', { request_id: number, title: 'x', owner: 'Nobody Atall' })
  expect(desk.simulator.log.list().filter(({ method }) => method === 'POST').length).toBe(before)
})

it('a change of nothing is refused', async () => {
  const { task_id } = await carol.ok('add_task', { request_id: number, title: 'Idle' })
  expect(await carol.fails('update_task', { request_id: number, task_id })).toContain('nothing to change')
})
