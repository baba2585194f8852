import { afterAll, beforeAll, expect, it } from 'vitest'
import { callCosts } from '../testing/calls.ts'
import { type Desk, type Session, startDesk } from '../testing/desk.ts'
import { catalogue } from './catalogue.ts'

/**
 * What tools cost in calls to the site once names, numbers and the time zone are known. The site limits calls per
 * minute, so a tool that begins to ask more should do so by decision.
 */

/** What the API forces to more than three; e2e/bench/tools.ts prints the reasons. */
const forced: Record<string, number> = { request_approval: 4 }

const cost: [tool: string, args: Record<string, unknown>, most: number][] = [
  ['get_my_context', {}, 0],
  ['get_queue_summary', { scope: 'mine' }, 1],
  ['search_requests', { view: 'mine', status: ['open'], priority: ['high'], group: ['network'] }, 1],
  ['get_request', { request_id: '61' }, 1],
  ['get_request', { request_id: '61', include: ['tasks', 'worklogs', 'linked', 'allowed_actions'] }, 5],
  ['get_request_activity', { request_id: '61' }, 4],
  ['list_field_options', { field: 'status' }, 0],
  ['get_form_fields', {}, 0],
  ['find_people', { query: 'alice' }, 0],
  ['search_solutions', { text: 'vpn' }, 1],
  ['create_request', { subject: 'Cost 1', priority: 'high', allow_duplicate: true }, 2],
  ['create_request', { subject: 'Cost 2', priority: 'high' }, 3],
  ['update_request', { request_id: '61', priority: 'high' }, 3],
  ['assign_request', { request_id: '61', technician: 'alice' }, 3],
  ['add_note', { request_id: '61', text: 'x' }, 2],
  ['reply_to_requester', { request_id: '61', text: 'x' }, 1],
  ['log_time', { request_id: '61', minutes: 5 }, 1],
  ['add_task', { request_id: '61', title: 'x' }, 2],
  ['resolve_request', { request_id: '61', resolution: 'x', log_minutes: 5 }, 3],
  ['close_request', { request_id: '62', resolution: 'x' }, 3],
]

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  for (const subject of ['One', 'Two']) await carol.ok('create_request', { subject, requester: 'Ana Ferreira' })
  // warms the caches: the first call of each kind pays for the lists
  for (const [tool, args] of cost.slice(0, 11)) await carol.ok(tool, args)
  await carol.ok('get_request', { request_id: '62' })
  await carol.ok('assign_request', { request_id: '61', technician: 'alice' })
})
afterAll(() => desk[Symbol.asyncDispose]())

it('no tool makes more than three calls in the common case, preview and act together', async () => {
  const own = await startDesk()
  try {
    const context = await own.context('carol')
    const costs = await callCosts(own, context, await own.connect(context))
    expect(costs.map(({ tool }) => tool)).toEqual(catalogue.map(({ name }) => name))
    expect(costs.filter(({ tool, warm }) => warm > (forced[tool] ?? 3))).toEqual([])
    expect(costs.filter(({ most }) => most > 3)).toEqual([])
  } finally {
    await own[Symbol.asyncDispose]()
  }
}, 120_000)

it.each(cost)('%s %o costs at most %i calls', async (tool, args, most) => {
  await carol.ok(tool, args)
  expect(carol.calls.at(-1)?.sdpCalls).toBeLessThanOrEqual(most)
})
