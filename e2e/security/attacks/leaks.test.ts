import { readdir, readFile } from 'node:fs/promises'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { bearer, docker, secretsOf, unseal } from '../../support/attacker.ts'
import { callTool, connect } from '../../support/mcp-client.ts'
import { type Stack, startStack } from '../../support/stack.ts'

// Somebody who reads along: logs, inspect, images, dumps, process lists, answers.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let secrets: Record<string, string>

beforeAll(async () => {
  stack = await startStack({ environment: { SDP_LOG_LEVEL: 'trace' } })
  alice = await stack.addUser('alice')
  const client = await connect('sse', alice.sse, alice.key)
  await callTool(client, 'search_requests', { limit: 1 })
  await client.close()
  // failures write most: a wrong code, a wrong key, a broken body
  await stack.admin('POST', '/v1/users/alice/authorization', { grantCode: 'leaky-grant-code-of-the-test' })
  await stack.admin(
    'POST',
    '/v1/users',
    `{"username":"mallory","sdp":{"clientSecret":"leaky-client-secret-of-the-test"`,
  )
  await fetch(alice.mcp, { headers: bearer('sdpmcp_leaky-key-of-the-test-aaaaaaaaaaaaaaaaaaaaaaa') })
  secrets = await everySecret()
})
afterAll(() => stack?.[Symbol.asyncDispose]())

/** All that must not be seen, by name. */
async function everySecret(): Promise<Record<string, string>> {
  const { userId, dataKey, rolePassword } = await secretsOf(stack, 'alice')
  const [row] = await stack.sql<{ refresh: string; secret: string; access: string }>(
    'select refresh_token_sealed as refresh, client_secret_sealed as secret, access_token_sealed as access from oauth_tokens join oauth_access_tokens using (user_id)',
  )
  const open = (sealed: string, column: string) => unseal(dataKey, sealed, `${column}:${userId}`)
  const [signing] = await stack.sql<{ kid: string; private_sealed: string }>(
    'select kid, private_sealed from signing_keys',
  )
  const jwk = JSON.parse(
    unseal(stack.masterKey, signing!.private_sealed, `signing_keys.private_sealed:${signing!.kid}`),
  )
  return {
    'refresh token': open(row!.refresh, 'oauth_tokens.refresh_token_sealed'),
    'client secret': open(row!.secret, 'oauth_tokens.client_secret_sealed'),
    'access token': open(row!.access, 'oauth_access_tokens.access_token_sealed'),
    'data key': dataKey,
    'database password of the instance': rolePassword,
    'private signing key': jwk.d,
    'API key': alice.key,
    'admin token': stack.adminToken,
    'master key': stack.masterKey,
    'master key in hex': Buffer.from(stack.masterKey, 'base64').toString('hex'),
    'database password': stack.database.password,
    'sent grant code': 'leaky-grant-code-of-the-test',
    'sent client secret': 'leaky-client-secret-of-the-test',
    'sent key': 'leaky-key-of-the-test',
  }
}

function expectNoSecret(text: string, of: string): void {
  expect(text.length).toBeGreaterThan(0)
  expect([
    of,
    Object.entries(secrets)
      .filter(([, value]) => text.includes(value))
      .map(([name]) => name),
  ]).toEqual([of, []])
}

test('attack: reading the log of the control plane at its most talkative level yields no secret', () => {
  const output = stack.controlPlane().output()
  expect(output).toContain('"level":"debug"')
  expectNoSecret(output, 'control plane log')
  expect(output).not.toMatch(/Bearer \S|eyJ[\w-]{10,}\.eyJ/)
})

test('attack: reading the log of an instance at its most talkative level yields no secret', async () => {
  const { output } = await docker(['logs', alice.body.user.instance.containerId])
  expectNoSecret(output, 'instance log')
  expect(output).not.toMatch(/Bearer \S|eyJ[\w-]{10,}\.eyJ|v1\.[0-9a-f]{12}\./)
})

test('attack: docker inspect of container and network, and docker top, yield no secret', async () => {
  const id = alice.body.user.instance.containerId
  const inspected = (await docker(['inspect', id])).output
  const network = Object.keys(JSON.parse(inspected)[0].NetworkSettings.Networks)[0]!
  for (const args of [
    ['inspect', id],
    ['network', 'inspect', network],
    ['top', id, '-eo', 'pid,args'],
    ['ps', '--no-trunc'],
    ['diff', id],
  ])
    expectNoSecret(`${(await docker(args)).output} `, args.join(' '))
  expect(JSON.parse(inspected)[0].Config.Env.filter((entry: string) => /pass|secret|token|key/i.test(entry))).toEqual(
    [],
  )
})

test('attack: the history, labels and files of the images hold neither secrets nor the sources of the host', async () => {
  const image = alice.body.user.instance.image
  const history = (await docker(['history', '--no-trunc', '--format', '{{.CreatedBy}}', image])).output
  const inspected = (await docker(['image', 'inspect', image])).output
  expectNoSecret(history + inspected, 'image')
  expect(history + inspected).not.toMatch(/(PASSWORD|SECRET|TOKEN|MASTER_KEY)=[^\s"]/)
  expect(JSON.parse(inspected)[0].Config.User).toBe('10001:10001')
  const listed = await docker([
    'exec',
    alice.body.user.instance.containerId,
    'node',
    '-e',
    "console.log(require('fs').readdirSync('/app', { recursive: true }).join('\\n'))",
  ])
  expect(listed.output).not.toMatch(/\.env|\.git\b|\.pem|\.key$|id_rsa|\.npmrc|\.test\./m)
})

test('attack: a dump of the whole database holds no usable secret, and keys only as hashes', async () => {
  const tables = await stack.sql<{ name: string }>(
    "select table_name as name from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'",
  )
  let dump = ''
  for (const { name } of tables)
    dump += (await stack.sql<{ row: string }>(`select to_jsonb(t)::text as row from ${name} t`))
      .map(({ row }) => row)
      .join('\n')
  dump += JSON.stringify(
    await stack.sql("select rolname, rolpassword from pg_authid where rolname like 'sdpmcp\\_u\\_%'"),
  )
  expect(dump).toContain('SCRAM-SHA-256$')
  expectNoSecret(dump, 'dump')
  const keys = await stack.sql<{ hash: Buffer }>('select hash from api_keys')
  expect(keys.every(({ hash }) => hash.length === 32)).toBe(true)
})

test('attack: the statement log and activity view of the database show no secret', async () => {
  const activity = await stack.sql<{ query: string }>('select query from pg_stat_activity')
  expectNoSecret(activity.map(({ query }) => query).join('\n'), 'pg_stat_activity')
})

test('attack: the process list of the host, which everybody may read, gives away no secret', async () => {
  const commands: string[] = []
  for (const pid of (await readdir('/proc')).filter(name => /^\d+$/.test(name)))
    await readFile(`/proc/${pid}/cmdline`, 'latin1').then(
      text => commands.push(text),
      () => {},
    )
  // the instance and the control plane are among them
  expect(commands.filter(command => /main\.[cm]js/.test(command)).length).toBeGreaterThanOrEqual(2)
  expectNoSecret(commands.join('\n'), 'process list')
})

test('attack: no answer of the admin API shows a secret twice: neither users, keys, logs, metrics nor the description', async () => {
  for (const path of [
    '/v1/users',
    '/v1/users/alice',
    '/v1/users/alice/api-keys',
    '/v1/users/alice/instance/logs?tail=10000',
    '/v1/routes',
    '/v1/system',
    '/v1/sessions',
    '/v1/usage',
    '/v1/audit',
    '/metrics',
    '/openapi.json',
    '/healthz',
    '/readyz',
  ])
    expectNoSecret(JSON.stringify((await stack.admin('GET', path)).body), path)
})

test('attack: errors for clients and models name no internal address, file, port or stack', async () => {
  const { port } = alice.body.user.instance
  const client = await connect('mcp', alice.mcp, alice.key)
  const texts = [
    JSON.stringify(
      await client.callTool({ name: 'get_request', arguments: { request_id: '999999999' } }).catch(String),
    ),
    JSON.stringify(await client.callTool({ name: 'nonsense', arguments: {} }).catch(String)),
    await (await fetch(alice.mcp, { headers: bearer(alice.key) })).text(),
    await (await fetch(`${stack.publicUrl}/nowhere`)).text(),
    await (await fetch(alice.mcp)).text(),
  ]
  await client.close()
  for (const text of texts) {
    expectNoSecret(text, text)
    expect(text).not.toMatch(/\bat .*\.(m?js|ts):\d+|\/app\/|node_modules|ECONN/)
    expect(text).not.toContain(String(port))
    expect(text).not.toContain(inject('engine').hostAddress)
  }
})
