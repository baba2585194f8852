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

it.each(['/technicians', '/problems', '/solutions'])(
  'a 403 of the site on %s is told, with the way out, and once an hour',
  async path => {
    const session = await desk.connect(await desk.context('alice', { toolsets: ['core', 'problems'] }))
    desk.simulator.faults.add({ kind: 'status', status: 403, match: { server: 'api', path } })
    const { portal } = await session.ok('get_my_context')
    desk.simulator.faults.clear()
    expect(portal.refused).toEqual([
      expect.stringMatching(new RegExp(`^${path.slice(1)}: refused with HTTP 403.*role`)),
    ])
    expect(portal.refused_next_step).toContain('administrator of ServiceDesk Plus')
    expect((await session.ok('get_my_context')).portal.refused).toEqual(portal.refused)
    expect(session.calls.at(-1)?.sdpCalls).toBe(0)
  },
)

it('tells a requester what only technicians may see', async () => {
  const session = await desk.connect(await desk.context('heidi', { toolsets: ['core', 'problems', 'changes'] }))
  const { portal } = await session.ok('get_my_context')
  expect(portal.refused.map((line: string) => line.split(':')[0])).toEqual(
    expect.arrayContaining(['problems', 'changes']),
  )
})

it('does not try what needs a scope that was not granted', async () => {
  const scopes = ['SDPOnDemand.requests.READ']
  const session = await desk.connect(await desk.context('alice', { toolsets: ['core', 'problems'], scopes }))
  desk.simulator.log.clear()
  expect((await session.ok('get_my_context')).portal).not.toHaveProperty('refused')
  expect(desk.simulator.log.list().filter(({ path }) => path.endsWith('/problems'))).toEqual([])
})
