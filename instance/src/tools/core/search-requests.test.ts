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

const sent = () => desk.simulator.log.list().at(-1)?.input as { list_info: Record<string, unknown> }

it('searches on the server: every condition travels as criteria', async () => {
  const found = await carol.ok('search_requests', {
    text: 'VPN',
    status: ['open', 'in progress'],
    technician: 'alice',
    created_from: '-60d',
    limit: 5,
  })
  expect(found.requests.length).toBeGreaterThan(0)
  for (const row of found.requests)
    expect(row).toMatchObject({ technician: 'Alice Moreau', subject: expect.stringMatching(/vpn/i) })
  const { list_info } = sent()
  expect(list_info).toMatchObject({ row_count: 5, start_index: 1, sort_field: 'created_time', sort_order: 'desc' })
  expect(JSON.stringify(list_info.search_criteria)).toMatch(/"status.id","condition":"is","values":\["\d+","\d+"\]/)
})

it('pages without gaps or repeats, and counts only when asked', async () => {
  const first = await carol.ok('search_requests', { limit: 7, total: true })
  const numbers: string[] = []
  for (let page: number | undefined = 1; page !== undefined; ) {
    const found = await carol.ok('search_requests', { limit: 7, page })
    expect(found.total).toBeUndefined()
    numbers.push(...found.requests.map((row: { number: string }) => row.number))
    expect(found.has_more).toBe(found.next_page !== undefined)
    page = found.next_page
  }
  expect(numbers).toHaveLength(first.total)
  expect(new Set(numbers).size).toBe(first.total)
})

it('views mean what they say, without the unreliable named filters', async () => {
  desk.simulator.faults.set({ myFiltersLeak: true })
  const mine = await carol.ok('search_requests', { view: 'mine', limit: 50 })
  expect(mine.requests.length).toBeGreaterThan(0)
  for (const row of mine.requests) {
    expect(row.technician).toBe('Carol Jensen')
    expect(['Closed', 'Resolved', 'Cancelled']).not.toContain(row.status)
  }
  for (const row of (await carol.ok('search_requests', { view: 'unassigned', limit: 50 })).requests)
    expect(row.technician).toBeUndefined()
  const overdue = await carol.ok('search_requests', { view: 'overdue', limit: 50 })
  for (const row of overdue.requests) expect(Date.parse(row.due)).toBeLessThanOrEqual(Date.now())
  await carol.ok('search_requests', { view: 'due_today' })
  await carol.ok('search_requests', { view: 'updated_by_requester' })
})

it('finds what requesters answered, for me or for others, by criteria or by the named view', async () => {
  const mine = await carol.ok('search_requests', { view: 'updated_by_requester' })
  expect(mine.requests.length).toBeGreaterThan(0)
  for (const row of mine.requests) expect(row.technician).toBe('Carol Jensen')
  const hers = await carol.ok('search_requests', { view: 'updated_by_requester', technician: 'alice' })
  for (const row of hers.requests) expect(row.technician).toBe('Alice Moreau')
  desk.simulator.faults.add({ kind: 'status', status: 400, match: { path: '/requests' }, count: 1 })
  const byView = await carol.ok('search_requests', { view: 'updated_by_requester' })
  expect(byView.requests).toEqual(mine.requests)
})

it('finds a ticket by its number as shown on the screen', async () => {
  const { requests } = await carol.ok('search_requests', { text: '#12' })
  expect(requests.map((row: { number: string }) => row.number)).toContain('12')
})

it('takes raw criteria and narrows them by the other filters', async () => {
  const criteria = [{ field: 'priority.name', condition: 'is', values: ['High', 'Low'] }]
  const found = await carol.ok('search_requests', { criteria, view: 'unassigned', limit: 50 })
  for (const row of found.requests) {
    expect(['High', 'Low']).toContain(row.priority)
    expect(row.technician).toBeUndefined()
  }
})

it('adds fields on request', async () => {
  const { requests } = await carol.ok('search_requests', { fields: ['site', 'mode'], limit: 1 })
  expect(requests[0]).toHaveProperty('site')
})

it('shows each person only their own tickets', async () => {
  const numbers = async (user: string) => {
    const session = await desk.connect(await desk.context(user))
    const { requests } = await session.ok('search_requests', { limit: 50 })
    return new Set(requests.map((row: { number: string }) => row.number))
  }
  const [hers, his] = [await numbers('alice'), await numbers('bob')]
  expect(hers.size).toBeGreaterThan(0)
  expect([...hers].filter(number => his.has(number))).toEqual([])
})

it('refuses a value that does not exist, with a close one, before any search', async () => {
  const failure = await carol.fails('search_requests', { status: ['opne'] })
  expect(failure).toContain('no status "opne"')
  expect(failure).toContain('Open')
})

it('refuses a date it cannot read, naming the forms it can', async () => {
  expect(await carol.fails('search_requests', { created_from: '31.12.2024' })).toContain('-7d')
})

it('an outage is an error, never an empty list', async () => {
  desk.simulator.faults.add({ kind: 'status', status: 403, match: { path: '/requests' } })
  expect(await carol.fails('search_requests')).toContain('HTTP 403')
})

it('fifty rows stay inside the budget', async () => {
  const result = await carol.call('search_requests', { limit: 50 })
  expect(JSON.stringify(result.structuredContent).length / 4).toBeLessThan(6_000)
})

it('who follows the answers misses no row where the budget cuts a page, and reads none twice', async () => {
  const requests = Object.values(desk.simulator.state.portals[0]?.tables.requests ?? {})
  for (const record of requests)
    record.subject = 'Ο εκτυπωτής στον δεύτερο όροφο δεν εκτυπώνει τα έγγραφα του λογιστηρίου. '.repeat(3)
  const { total } = await carol.ok('search_requests', { limit: 1, total: true })
  const numbers: string[] = []
  let cuts = 0
  for (let [page, limit]: [number | undefined, number] = [1, 50]; page !== undefined; ) {
    const found = await carol.ok('search_requests', { page, limit })
    numbers.push(...found.requests.map((row: { number: string }) => row.number))
    if (found.cut) {
      cuts++
      expect(found.cut).toEqual([expect.stringContaining(`page=${found.next_page} with limit=${found.next_limit}`)])
    }
    page = found.next_page
    limit = found.next_limit ?? limit
  }
  expect(cuts).toBeGreaterThan(0)
  expect(new Set(numbers).size).toBe(numbers.length)
  expect(numbers).toHaveLength(total)
})
