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
