import Docker from 'dockerode'
import pg from 'pg'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { testInstallation } from '../support/setup.ts'
import { type Stack, startStack } from '../support/stack.ts'

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>

beforeAll(async () => {
  stack = await startStack()
  alice = await stack.addUser('alice')
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const tokenCalls = () =>
  stack.simulator.log.filter(entry => entry.path.startsWith('/oauth/v2/token') && !entry.path.includes('revoke')).length

/** What an attacker would look for: everything secret that went over the wire or came into being in this test. */
async function secretsInPlay(): Promise<string[]> {
  const state = (await (await fetch(`${stack.simulator.url}/_sim/state`)).json()) as unknown
  // Zoho's tokens, codes and secrets, whatever they are called in the simulator's state
  const zoho = [...JSON.stringify(state).matchAll(/1000\.[0-9a-f]{32}\.[0-9a-f]{32}/g)].map(match => match[0])
  expect(zoho.length).toBeGreaterThan(0)
  return [...new Set([...zoho, alice.key, stack.adminToken, stack.masterKey, stack.database.password])]
}

test('nothing in the database is a usable secret', async () => {
  const tables = await stack.sql<{ table_name: string }>(
    "select table_name from information_schema.tables where table_schema = 'public'",
  )
  let dump = ''
  for (const { table_name } of tables) dump += JSON.stringify(await stack.sql(`select * from ${table_name}`))
  expect(dump).toContain('"client_id"')
  for (const secret of await secretsInPlay()) expect(dump).not.toContain(secret)
})

test('nothing secret stands in docker inspect, in the log of the instance, or in the log of the control plane', async () => {
  const docker = new Docker({ socketPath: inject('engine').socket })
  const [container] = await docker.listContainers({
    filters: { label: [`com.sdp-mcp.installation=${testInstallation}`] },
  })
  const inspected = JSON.stringify(await docker.getContainer(container!.Id).inspect())
  const processes = JSON.stringify(await docker.getContainer(container!.Id).top())
  const logs = await stack.admin('GET', '/v1/users/alice/instance/logs?tail=1000')
  expect(logs.status).toBe(200)
  const password = await stack.sql('select role_password_sealed from data_keys')
  for (const secret of [...(await secretsInPlay()), JSON.stringify(password)]) {
    expect(inspected).not.toContain(secret)
    expect(processes).not.toContain(secret)
    expect(String(logs.body)).not.toContain(secret)
    expect(stack.controlPlane().output()).not.toContain(secret)
  }
})

test('a restart of the instance mints no new token', async () => {
  const before = tokenCalls()
  const { body } = await stack.admin('GET', '/v1/users/alice')
  expect((await stack.admin('POST', '/v1/users/alice/instance/restart')).status).toBe(202)
  const client = await connect('mcp', alice.mcp, alice.key)
  await callTool(client, 'search_requests', { view: 'all', limit: 1 })
  await client.close()
  const after = (await stack.admin('GET', '/v1/users/alice')).body
  expect(after.instance.containerId).not.toBe(body.instance.containerId)
  expect(tokenCalls()).toBe(before)
})

test("one user's database role reads no other user's row, not even sealed", async () => {
  await stack.addUser('bob')
  const [alices] = await stack.sql<{ id: string }>("select id from users where username = 'alice'")
  const client = new pg.Client({ ...stack.database })
  await client.connect()
  await client.query(`set role sdpmcp_u_${alices!.id.replaceAll('-', '')}`)
  for (const table of ['oauth_tokens', 'oauth_access_tokens', 'oauth_token_mints']) {
    const { rows } = await client.query(`select distinct user_id from ${table}`)
    expect(rows).toEqual([{ user_id: alices!.id }])
  }
  for (const table of ['users', 'api_keys', 'data_keys', 'signing_keys', 'instances', 'audit_events'])
    await expect(client.query(`select * from ${table}`)).rejects.toThrow('permission denied')
  await client.end()
})
