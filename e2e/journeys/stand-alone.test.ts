import { type ChildProcess, spawn } from 'node:child_process'
import { cp, mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { cloneDatabase, freePort } from '@sdp-mcp/migrations/testing'
import { type Simulator, startSimulator } from '@sdp-mcp/simulator'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually } from '../support/stack.ts'

// One person alone: start-user-instance.sh, no control plane, no Docker.

const root = dirname(dirname(import.meta.dirname))
let simulator: Simulator
let checkout: string

beforeAll(async () => {
  simulator = await startSimulator()
  // .env files belong beside the script, and a test does not write into the real checkout
  checkout = await mkdtemp(join(tmpdir(), 'sdp-mcp-alone-'))
  for (const name of [
    'start-user-instance.sh',
    'bootstrap.mjs',
    'package.json',
    'pnpm-workspace.yaml',
    'pnpm-lock.yaml',
  ])
    await cp(join(root, name), join(checkout, name))
  for (const name of ['instance', 'migrations', 'node_modules', '.node'])
    await symlink(join(root, name), join(checkout, name))
})
afterAll(async () => {
  await simulator?.close()
  await rm(checkout, { recursive: true, force: true })
})

async function writeEnvironment(user: string, more: Record<string, string>): Promise<Record<string, string>> {
  const grant = await simulator.createGrantCode({ user })
  const values: Record<string, string> = {
    SDP_BASE_URL: simulator.url,
    SDP_ACCOUNTS_URL: simulator.url,
    SDP_INSTANCE_NAME: 'itdesk',
    SDP_DATA_CENTER: 'US',
    SDP_ALLOW_INSECURE_UPSTREAM: 'true',
    SDP_CLIENT_ID: grant.clientId,
    SDP_CLIENT_SECRET: grant.clientSecret,
    SDP_GRANT_CODE: grant.code,
    SDP_STATE_DIR: join(checkout, 'state'),
    ...more,
  }
  await writeFile(
    join(checkout, `.env.${user}`),
    Object.entries(values)
      .map(([name, value]) => `${name}="${value}"`)
      .join('\n'),
  )
  return values
}

const script = () => join(checkout, 'start-user-instance.sh')

async function overStdio(user: string): Promise<Client & AsyncDisposable> {
  const client = new Client({ name: 'sdp-mcp-tests', version: '1.0.0' })
  await client.connect(new StdioClientTransport({ command: script(), args: [user], cwd: tmpdir(), stderr: 'pipe' }))
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.close() })
}

const tokenCalls = () => simulator.log.filter(entry => entry.path.startsWith('/oauth/v2/token')).length

test('a client that spawns the script speaks MCP over stdio; tokens lie sealed in a file of mode 0600 and outlive a restart', async () => {
  const values = await writeEnvironment('alice', {})
  {
    await using client = await overStdio('alice')
    const created = await callTool(client, 'create_request', { subject: 'Printer on fire', allow_duplicate: true })
    expect(JSON.stringify(created)).toContain('Printer on fire')
  }
  const before = tokenCalls()
  {
    await using client = await overStdio('alice')
    expect(JSON.stringify(await callTool(client, 'search_requests', { text: 'Printer on fire' }))).toContain(
      'Printer on fire',
    )
  }
  expect(tokenCalls()).toBe(before)
  const { readdir, readFile } = await import('node:fs/promises')
  const state = await readdir(values.SDP_STATE_DIR!, { recursive: true, withFileTypes: true })
  const stateFiles = state.filter(entry => entry.isFile()).map(entry => join(entry.parentPath, entry.name))
  expect(stateFiles.length).toBeGreaterThan(0)
  for (const file of stateFiles) {
    expect((await stat(file)).mode & 0o077).toBe(0)
    expect(await readFile(file, 'utf8')).not.toMatch(/1000\.[0-9a-f]{32}\.[0-9a-f]{32}/)
  }
})

test('with a database its tokens lie sealed in PostgreSQL, and HTTP serves both transports behind a key', async () => {
  await using database = await cloneDatabase(inject('postgres'))
  const port = await freePort()
  const key = 'k'.repeat(20) + String(port).repeat(4)
  await writeEnvironment('bob', {
    SDP_DB_HOST: database.host,
    SDP_DB_PORT: String(database.port),
    SDP_DB_NAME: database.database,
    SDP_DB_USER: database.user,
    SDP_DB_PASSWORD: database.password,
    SDP_MASTER_KEY: Buffer.from(Array.from({ length: 32 }, (_, index) => (index * 37 + 11) % 256)).toString('base64'),
    SDP_HTTP_PORT: String(port),
    SDP_API_KEY: key,
  })
  const child: ChildProcess = spawn(script(), ['bob', '--http'], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
  try {
    await eventually(() => said.includes('claude mcp add') || child.exitCode !== null, {
      withinMs: 30_000,
      what: `the start; it said: ${said}`,
    })
    for (const kind of ['sse', 'mcp'] as const) {
      await using client = await connect(kind, `http://127.0.0.1:${port}/${kind}`, key)
      expect((await callTool(client, 'search_requests', { view: 'all', limit: 1 })).requests.length).toBe(1)
    }
    const { default: pg } = await import('pg')
    const owner = new pg.Client({ ...database })
    await owner.connect()
    const { rows } = await owner.query(
      'select u.username, t.state, t.refresh_token_sealed from oauth_tokens t join users u on u.id = t.user_id',
    )
    await owner.end()
    expect(rows).toHaveLength(1)
    expect(rows[0]).toMatchObject({ username: 'bob', state: 'connected' })
    expect(rows[0].refresh_token_sealed).toMatch(/^v1\./)
  } finally {
    child.kill('SIGTERM')
    await new Promise(done => child.once('exit', done))
  }
})

test('in stdio mode nothing but MCP reaches standard output', async () => {
  await writeEnvironment('carol', {})
  const child = spawn(script(), ['carol', '--stdio'], { stdio: ['pipe', 'pipe', 'pipe'] })
  let out = ''
  child.stdout.setEncoding('utf8').on('data', chunk => {
    out += chunk
  })
  child.stdin.write(
    `${JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'initialize', params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'test', version: '1' } } })}\n`,
  )
  await eventually(() => out.includes('"id":1'), { withinMs: 30_000, what: 'the answer to initialize' })
  child.stdin.end()
  await new Promise(done => child.once('exit', done))
  for (const line of out.trim().split('\n')) expect(JSON.parse(line).jsonrpc).toBe('2.0')
})

test.each([
  [['nobody'], /\.env\.nobody/],
  [['../alice'], /name/i],
  [[], /name the user/],
])('wrong use %j is told with the next step and a non-zero code', async (args, words) => {
  const child = spawn(script(), args as string[], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  const code = await new Promise(done => child.once('exit', done))
  expect(code).not.toBe(0)
  expect(said).toMatch(words)
})
