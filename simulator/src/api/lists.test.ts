import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type ApiClient, type Desk, messageOf, startDesk } from '../testing/desk.ts'

let desk: Desk
let carol: ApiClient
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.as('carol')
})
afterEach(() => desk.sim.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

type Row = Record<string, { name?: string; value?: string; in_progress?: boolean }> & { id: string; subject: string }
const list = async (listInfo: Record<string, unknown>, path = '/requests') =>
  (await carol.get(path, { list_info: listInfo })).body
const rows = async (criteria: unknown): Promise<Row[]> =>
  (await list({ row_count: 100, search_criteria: criteria })).requests
const subjects = async (criteria: unknown) => (await rows(criteria)).map(row => row.subject).sort()

test('a list is ten rows with an array of one response_status', async () => {
  const body = await list({})
  expect(body.requests).toHaveLength(10)
  expect(body.list_info).toEqual({ has_more_rows: true, start_index: 1, row_count: 10 })
  expect(body.response_status).toEqual([{ status_code: 2000, status: 'success' }])
})

test('pages by start_index and by page cover every row once', async () => {
  const total = (await list({ get_total_count: true })).list_info.total_count
  for (const step of [(n: number) => ({ start_index: n * 25 + 1 }), (n: number) => ({ page: n + 1 })]) {
    const seen: string[] = []
    for (let n = 0; ; n += 1) {
      const body = await list({ row_count: '25', sort_field: 'id', sort_order: 'asc', ...step(n) })
      seen.push(...body.requests.map((row: Row) => row.id))
      if (!body.list_info.has_more_rows) break
    }
    expect(new Set(seen).size).toBe(total)
    expect(seen).toHaveLength(total)
  }
})

test('more than a hundred rows are never given', async () => {
  await using large = await startDesk({ seed: false })
  const client = await large.as('carol')
  for (let i = 0; i < 103; i += 1) await client.post('/requests', { request: { subject: `Ticket ${i}` } })
  const { body } = await client.get('/requests', { list_info: { row_count: 1000 } })
  expect(body.requests).toHaveLength(100)
  expect(body.list_info).toMatchObject({ row_count: 100, has_more_rows: true })
  large.sim.faults.set({ rowCountAbove100: 'refuse' })
  const refused = await client.get('/requests', { list_info: { row_count: 101 } })
  expect(messageOf(refused)).toMatchObject({ status_code: 4001, field: 'row_count' })
})

test('fields_required limits the rows to these keys, inside or beside list_info', async () => {
  const inside = await list({ row_count: 1, fields_required: ['id', 'status'] })
  expect(Object.keys(inside.requests[0])).toEqual(['id', 'status'])
  expect(inside.requests[0].status).toHaveProperty('internal_name')
  const beside = await carol.get('/requests', { list_info: { row_count: 1 }, fields_required: ['subject'] })
  expect(Object.keys(beside.body.requests[0])).toEqual(['subject'])
  const dotted = await carol.get('/requests', { list_info: { fields_required: ['status.name'] } })
  expect(dotted.status).toBe(400)
})

test('rows sort by time, by the name of a lookup and by dotted paths', async () => {
  const byTime = (await list({ row_count: 100, sort_field: 'created_time', sort_order: 'asc' })).requests
  const times = byTime.map((row: Row) => Number(row.created_time?.value))
  expect(times).toEqual([...times].sort((a, b) => a - b))
  const byName = (await list({ row_count: 100, sort_field: 'requester', sort_order: 'desc' })).requests
  const names = byName.map((row: Row) => row.requester?.name)
  expect(names).toEqual([...names].sort((a, b) => String(b).localeCompare(String(a), 'en', { sensitivity: 'base' })))
  const byMail = await list({ row_count: 5, sort_fields: [{ field: 'requester.email_id', order: 'asc' }] })
  expect(byMail.requests[0].requester.name).toBe('Ana Ferreira')
  expect((await carol.get('/requests', { list_info: { sort_field: 'colour' } })).status).toBe(400)
})

test('names compare without case, by name, by object and by several values', async () => {
  const open = await subjects({ field: 'status.name', condition: 'is', value: 'open' })
  expect(open.length).toBeGreaterThan(10)
  expect(await subjects({ field: 'status', condition: 'eq', value: { name: 'OPEN' } })).toEqual(open)
  const both = await subjects({ field: 'status.name', condition: 'is', values: ['Open', 'On Hold'] })
  expect(both.length).toBeGreaterThan(open.length)
  expect(await subjects({ field: 'status.in_progress', condition: 'is', value: 'true' })).toEqual(
    await subjects({ field: 'status.name', condition: 'is', values: ['Open', 'On Hold', 'In Progress'] }),
  )
})

test('a criterion without value finds empty references, its negation the others', async () => {
  const without = await rows({ field: 'group', condition: 'is' })
  expect(without.length).toBeGreaterThan(0)
  expect(without.every(row => row.group === null)).toBe(true)
  const withGroup = await rows({ field: 'group', condition: 'is not' })
  expect(without.length + withGroup.length).toBe((await list({ get_total_count: true })).list_info.total_count)
})

test('negated conditions match exactly what the plain ones leave', async () => {
  const total = (await list({ get_total_count: true })).list_info.total_count
  const day = Date.now() - 24 * 3600 * 1000
  for (const [plain, negated, test] of [
    ['is', 'is not', { field: 'status.name', values: ['Open', 'Closed'] }],
    ['contains', 'not contains', { field: 'subject', value: 'printer' }],
    ['between', 'not between', { field: 'created_time', values: [day, Date.now()] }],
    ['greater than', 'lesser or equal', { field: 'created_time', value: day }],
    ['lt', 'gte', { field: 'display_id', value: '9' }],
  ] as const) {
    const counts = [
      (await rows({ ...test, condition: plain })).length,
      (await rows({ ...test, condition: negated })).length,
    ]
    expect([plain, counts[0]! > 0 && counts[1]! > 0, counts[0]! + counts[1]!]).toEqual([plain, true, total])
  }
  expect((await subjects({ field: 'subject', condition: 'ends with', value: 'LICENCE' })).length).toBe(1)
})

test('text, number and time conditions do what they say', async () => {
  expect(await subjects({ field: 'subject', condition: 'starts with', value: 'vpn drops' })).toHaveLength(2)
  expect(await subjects({ field: 'subject', condition: 'like', values: ['phishing'] })).toEqual([
    'Phishing mail "Your mailbox is full"',
  ])
  const day = Date.now() - 24 * 3600 * 1000
  const recent = await rows({ field: 'created_time', condition: 'greater than', value: String(day) })
  expect(recent.length).toBeGreaterThan(3)
  expect(recent.every(row => Number(row.created_time?.value) > day)).toBe(true)
  const between = await rows({ field: 'display_id', condition: 'between', values: [3, '5'] })
  expect(between.map(row => Number(row.display_id))).toEqual(expect.arrayContaining([3, 4, 5]))
  expect(between).toHaveLength(3)
  const prefixed = await carol.get('/requests', {
    list_info: { search_criteria: { field: 'display_id', condition: 'is', value: 'IN-3' } },
  })
  expect(messageOf(prefixed)).toMatchObject({ status_code: 4001, field: 'display_id' })
})

const high = { field: 'priority.name', condition: 'is', value: 'High' }
const low = { field: 'priority.name', condition: 'is', value: 'Low' }
const closed = { field: 'status.name', condition: 'is', value: 'Closed' }

test('an array is folded left to right', async () => {
  const found = await rows([high, { ...low, logical_operator: 'or' }, { ...closed, logical_operator: 'AND' }])
  expect(found.length).toBeGreaterThan(0)
  expect(found.every(row => row.status?.name === 'Closed')).toBe(true)
})

test('children are a bracket joined by their own operators', async () => {
  const found = await subjects([
    closed,
    { ...high, logical_operator: 'AND', children: [{ ...low, logical_operator: 'OR' }] },
  ])
  expect(found).toEqual(
    await subjects([high, { ...low, logical_operator: 'OR' }, { ...closed, logical_operator: 'AND' }]),
  )
})

test('a first criterion with operator and children is "A or (B and C)"', async () => {
  const found = await rows([
    { ...high, logical_operator: 'OR', children: [low, { ...closed, logical_operator: 'AND' }] },
  ])
  const isExpected = (row: Row) =>
    row.priority?.name === 'High' || (row.priority?.name === 'Low' && row.status?.name === 'Closed')
  expect(found.every(isExpected)).toBe(true)
  expect(found.some(row => row.priority?.name === 'High' && row.status?.name !== 'Closed')).toBe(true)
  expect(found.some(row => row.priority?.name === 'Low')).toBe(true)
})

test('unknown fields, conditions and views are refused', async () => {
  for (const listInfo of [
    { search_criteria: { field: 'colour', condition: 'is', value: 'red' } },
    { search_criteria: { field: 'subject', condition: 'less than', value: 'a' } },
    { filter_by: { name: 'No_Such_View' } },
    { row_count: 'many' },
  ]) {
    const answer = await carol.get('/requests', { list_info: listInfo })
    expect([listInfo, answer.status]).toEqual([listInfo, 400])
  }
})

test('search_fields filters by what a field contains', async () => {
  const found = await list({ search_fields: { email_id: 'ana.ferreira', name: 'ana' } }, '/requesters')
  expect(found.requesters.map((row: Row) => row.name)).toEqual(['Ana Ferreira'])
})

test('views select by status, due time and technician', async () => {
  const view = async (name: string): Promise<Row[]> => (await list({ row_count: 100, filter_by: { name } })).requests
  expect((await view('Open_Requests')).every(row => row.status?.in_progress)).toBe(true)
  const unassigned = await view('Unassigned_Requests')
  expect(unassigned.length).toBeGreaterThan(3)
  expect(unassigned.every(row => row.technician === null)).toBe(true)
  const overdue = await view('Overdue_Requests')
  expect(overdue.length).toBeGreaterThan(5)
  expect(overdue.every(row => Number(row.due_by_time?.value) < Date.now())).toBe(true)
  const mine = await view('My_Open_Requests')
  expect(mine.length).toBeGreaterThan(0)
  expect(mine.every(row => row.technician?.name === 'Carol Jensen')).toBe(true)
})
