import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterAll(() => desk[Symbol.asyncDispose]())

it.each([
  'status',
  'priority',
  'category',
  'subcategory',
  'item',
  'group',
  'site',
  'closure_code',
  'template',
  'urgency',
  'impact',
  'mode',
  'level',
  'request_type',
  'worklog_type',
  'task_type',
])('lists the values of %s', async field => {
  const { options } = await carol.ok('list_field_options', { field })
  expect(options.length).toBeGreaterThan(0)
  for (const option of options)
    expect(option).toMatchObject({ name: expect.any(String), id: expect.stringMatching(/^\d+$/) })
})

it('narrows by parent and by part of the name', async () => {
  const { options } = await carol.ok('list_field_options', {
    field: 'Sub Category'.replace(' ', '').toLowerCase(),
    parent: 'network',
    query: 'lan',
  })
  expect(options.map(({ name }: { name: string }) => name).sort()).toEqual(['Wired LAN', 'Wireless LAN'])
})

it('reads a list once', async () => {
  await carol.ok('list_field_options', { field: 'urgency' })
  await carol.ok('list_field_options', { field: 'urgency' })
  expect(carol.calls.at(-1)?.sdpCalls).toBe(0)
})

it('names the fields there are when the one asked for is unknown', async () => {
  expect(await carol.fails('list_field_options', { field: 'prio' })).toContain('priority')
})

it('goes by the names a site gave its values, whatever their case, and suggests them for others', async () => {
  const context = await desk.context('carol')
  const hr = await desk.connect({ ...context, sdp: { ...context.sdp, portal: 'hrdesk' } })
  const { options } = await hr.ok('list_field_options', { field: 'priority' })
  expect(options.map(({ name }: { name: string }) => name)).toEqual(
    expect.arrayContaining(['1 - High', 'z - Medium', '3 - Normal', '4 - Low']),
  )
  const found = await hr.ok('search_requests', { priority: 'Z - MEDIUM' })
  for (const { priority } of found.requests) expect(priority).toBe('z - Medium')
  expect(found.requests.length).toBeGreaterThan(0)
  expect(await hr.fails('search_requests', { priority: 'medium-ish' })).toContain('z - Medium')
})
