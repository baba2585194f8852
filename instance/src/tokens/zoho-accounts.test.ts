import { afterAll, beforeEach, expect, test } from 'vitest'
import { createOutgoing } from '../outgoing.ts'
import { fakeToken, goodGrant, type ScriptedReply, scriptedAccounts } from './testing.ts'
import { AccountsError, type AccountsErrorKind, createZohoAccounts } from './zoho-accounts.ts'

const server = await scriptedAccounts()
afterAll(() => server[Symbol.asyncDispose]())

const consoleUrl = 'https://api-console.zoho.eu'
const http = createOutgoing({ upstreams: 'any', behindProxy: false })
const accounts = createZohoAccounts({ accountsUrl: server.url, consoleUrl, http })
const impatient = createZohoAccounts({ accountsUrl: server.url, consoleUrl, http, timeoutMs: 300 })
const client = { clientId: '1000.ABC', clientSecret: 'f00d'.repeat(10) }
const code = fakeToken()

beforeEach(() => {
  server.calls.length = 0
  server.reply = () => ({})
})

async function failure(call: Promise<unknown>): Promise<AccountsError> {
  const error = await call.then(
    () => expect.unreachable('the call succeeded'),
    (thrown: unknown) => thrown,
  )
  expect(error).toBeInstanceOf(AccountsError)
  return error as AccountsError
}

test('a grant code is exchanged with a form body, so that nothing secret stands in a URL', async () => {
  const refreshToken = fakeToken()
  server.reply = () => ({ body: goodGrant({ refresh_token: refreshToken }) })
  const grant = await accounts.exchange(client, code)
  expect(grant).toMatchObject({ refreshToken, expiresInSeconds: 3600 })
  expect(grant.scopes).toEqual(['SDPOnDemand.requests.ALL', 'SDPOnDemand.setup.READ'])
  expect(server.calls).toEqual([
    {
      path: '/oauth/v2/token',
      form: { grant_type: 'authorization_code', client_id: client.clientId, client_secret: client.clientSecret, code },
    },
  ])
})

test('a life told in milliseconds is understood', async () => {
  server.reply = () => ({ body: goodGrant({ expires_in: 3_600_000, expires_in_sec: 3600 }) })
  expect((await accounts.refresh(client, code)).expiresInSeconds).toBe(3600)
  server.reply = () => ({ body: goodGrant({ expires_in: 3_600_000 }) })
  expect((await accounts.refresh(client, code)).expiresInSeconds).toBe(3600)
})

const throttle = {
  error: 'Access Denied',
  error_description: 'You have made too many requests continuously. Please try again after some time.',
  status: 'failure',
}
// biome-ignore format: a table reads best with one case a line
const cases: [call: 'exchange' | 'refresh', reply: ScriptedReply | 'hang up', kind: AccountsErrorKind, says: string][] = [
  ['exchange', { body: { error: 'invalid_code' } }, 'grant-code-rejected', consoleUrl],
  ['exchange', { body: { error: 'invalid_client' } }, 'client-rejected', 'client id'],
  ['exchange', { body: { error: 'invalid_client_secret' } }, 'client-rejected', 'client secret'],
  ['exchange', { body: { error: 'invalid_redirect_uri' } }, 'grant-code-rejected', 'Self Client'],
  ['exchange', { body: goodGrant() }, 'grant-code-rejected', 'no refresh token'],
  ['exchange', { body: throttle }, 'throttled', 'Wait'],
  ['exchange', { status: 400, body: throttle }, 'throttled', 'too many requests'],
  ['refresh', { status: 429, body: '', headers: { 'retry-after': '7' } }, 'throttled', 'Wait'],
  ['refresh', { body: { error: 'invalid_code' } }, 'refresh-token-rejected', consoleUrl],
  ['refresh', { status: 400, body: { error: 'invalid_grant' } }, 'refresh-token-rejected', 'Authorize again'],
  ['refresh', { body: { error: 'general_error' } }, 'unavailable', 'general_error'],
  ['refresh', { status: 503, body: '<html>' }, 'unavailable', '503'],
  ['refresh', { status: 200, body: '<html>login' }, 'unavailable', 'no JSON'],
  ['refresh', { status: 302, body: '', headers: { location: '/elsewhere' } }, 'unavailable', 'redirect'],
  ['refresh', { body: 'x'.repeat(70_000) }, 'unavailable', 'too long'],
  ['refresh', { delayMs: 1_000 }, 'unavailable', 'no answer within 0.3 s'],
  ['refresh', 'hang up', 'unavailable', 'could not be reached'],
]
test.for(cases)('%s answered with %j is %s', async ([call, reply, kind, says]) => {
  server.reply = () => reply
  const slow = typeof reply === 'object' && reply.delayMs !== undefined
  const error = await failure((slow ? impatient : accounts)[call](client, code))
  expect(error.kind).toBe(kind)
  expect(`${error.message} ${error.nextStep}`).toContain(says)
  expect(error.nextStep).toMatch(/\.$/)
  expect(server.calls).toHaveLength(1)
})

test('no error tells a secret, not even one that the server echoes', async () => {
  server.reply = () => ({ body: { error: 'invalid_code', error_description: `bad ${code} of ${client.clientSecret}` } })
  const error = await failure(accounts.exchange(client, code))
  const everything = JSON.stringify([error, error.message, error.nextStep, error.stack, String(error.cause)])
  expect(everything).not.toContain(code)
  expect(everything).not.toContain(client.clientSecret)
})

test('revoking a token that is already dead succeeds', async () => {
  server.reply = () => ({ body: { error: 'invalid_token' } })
  await accounts.revoke(code)
  expect(server.calls).toEqual([{ path: '/oauth/v2/token/revoke', form: { token: code } }])
})
