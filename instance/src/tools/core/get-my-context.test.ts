import { afterAll, beforeAll, expect, it } from 'vitest'
import { AuthorizationError } from '../../context.ts'
import { type Desk, startDesk } from '../../testing/desk.ts'

let desk: Desk
beforeAll(async () => {
  desk = await startDesk()
})
afterAll(() => desk[Symbol.asyncDispose]())

it('tells who I am, where, and what is enabled', async () => {
  const session = await desk.connect(await desk.context('alice', { toolsets: ['core'] }))
  expect(await session.ok('get_my_context')).toMatchObject({
    user: { username: 'alice', name: 'Alice Moreau', email: 'alice@northwind.example', technician: true },
    portal: { name: 'itdesk', time_zone: expect.any(String) },
    connection: { state: 'connected', scopes: expect.arrayContaining(['SDPOnDemand.requests.ALL']) },
    rate: { calls_last_minute: expect.any(Number) },
    tools: { toolsets: ['core'], read_only: false },
  })
})

it('works without any authorization, and says how to get it', async () => {
  const context = await desk.context('bob')
  context.tokens.lose(new AuthorizationError('needs-reauthorization', 'Zoho ended the grant.', ''))
  const session = await desk.connect(context)
  const { connection } = await session.ok('get_my_context')
  expect(connection.state).toBe('needs-reauthorization')
  expect(connection.reason).toBe('Zoho ended the grant.')
  expect(connection.next_step).toContain('https://api-console.zoho.com')
  expect(connection.next_step).toContain('POST /v1/users/bob/authorization')
  const failure = await session.fails('search_requests')
  expect(failure).toContain('Zoho ended the grant.')
  expect(failure).toContain('SDPOnDemand.requests.ALL')
})

it('names the scope that each hidden tool lacks, and how to get it', async () => {
  const context = await desk.context('alice', {
    toolsets: ['core', 'problems'],
    scopes: ['SDPOnDemand.requests.READ', 'SDPOnDemand.problems.READ', 'SDPOnDemand.users.READ'],
  })
  const session = await desk.connect(context)
  const { tools } = await session.ok('get_my_context')
  const offered = (await session.client.listTools()).tools.map(({ name }) => name)
  expect(tools.count).toBe(offered.length)
  expect(offered).not.toContain('create_problem')
  expect(tools.hidden).toContain('create_problem: not granted SDPOnDemand.problems.CREATE')
  expect(tools.hidden.join('\n')).toMatch(/create_request.*: not granted SDPOnDemand\.requests\.CREATE/)
  expect(tools.hidden_next_step).toContain('SDPOnDemand.problems.ALL')
  const all = await desk.connect(await desk.context('alice'))
  expect((await all.ok('get_my_context')).tools).not.toHaveProperty('hidden')
})

it('says so when the site does not answer', async () => {
  const session = await desk.connect(await desk.context('alice'))
  desk.simulator.faults.add({ kind: 'status', status: 503, match: { server: 'api' } })
  const { portal } = await session.ok('get_my_context')
  desk.simulator.faults.clear()
  expect(portal.problem).toContain('could not be reached')
})
