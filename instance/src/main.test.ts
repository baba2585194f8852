import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { request as httpRequest } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { freePort } from '@sdp-mcp/migrations/testing'
import { startSimulator } from '@sdp-mcp/simulator'
import { exportJWK, generateKeyPair, SignJWT } from 'jose'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { type Boot, exitCodes, statementAudience, statementIssuer, usageReport } from './contract.ts'
import { generateSealingKey } from './seal.ts'
import {
  fakeToken,
  goodGrant,
  type ScriptedAccounts,
  scriptedAccounts,
  type TestDatabase,
  testDatabase,
} from './tokens/testing.ts'

const entry = new URL('main.ts', import.meta.url).pathname
const { publicKey, privateKey } = await generateKeyPair('EdDSA')
const statementKey = { ...(await exportJWK(publicKey)), kid: 'k1', alg: 'EdDSA' }

let database: TestDatabase
let accounts: ScriptedAccounts
const simulator = await startSimulator()
let folder: string
const running = new Set<ChildProcess>()

beforeAll(async () => {
  database = await testDatabase(inject('postgres'))
  accounts = await scriptedAccounts()
  folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-main-'))
})
afterEach(async () => {
  await Promise.all([...running].map(kill))
  accounts.calls.length = 0
  accounts.reply = () => ({ body: goodGrant() })
})
afterAll(async () => {
  await rm(folder, { recursive: true, force: true })
  await accounts[Symbol.asyncDispose]()
  await simulator.close()
  await database[Symbol.asyncDispose]()
})

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    child.kill('SIGKILL')
    await once(child, 'exit')
  }
  running.delete(child)
}

type Program = { child: ChildProcess; stdout(): string; stderr(): string; exit: Promise<number | null> }

function start(args: string[], env: Record<string, string>): Program {
  const child = spawn(process.execPath, [entry, ...args], {
    env: { PATH: process.env.PATH, HOME: folder, ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  running.add(child)
  const text = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const)
    child[name]?.setEncoding('utf8').on('data', (chunk: string) => {
      text[name] += chunk
    })
  const exit = once(child, 'close').then(([code]) => code as number | null)
  return { child, stdout: () => text.stdout, stderr: () => text.stderr, exit }
}

async function bootFor(more: Partial<Boot> = {}, connection = {}): Promise<Boot> {
  const user = await database.addUser({ refreshToken: fakeToken(), ...connection })
  return {
    version: 1,
    user: { id: user.userId, username: 'alice', displayName: 'Alice', email: null },
    generation: 3,
    listen: { host: '127.0.0.1', port: await freePort() },
    statementKeys: [statementKey],
    database: user.database,
    dataKey: user.key.bytes.toString('base64'),
    sdp: { dataCenter: 'EU', portal: 'itdesk', baseUrl: accounts.url, accountsUrl: accounts.url },
    toolsets: ['core'],
    readOnly: false,
    consentLinks: false,
    allowInsecureUpstream: true,
    allowedUpstreamHosts: [],
    maxSessions: 100,
    logLevel: 'info',
    ...more,
  }
}

function statement(boot: Boot, purpose = 'mcp'): Promise<string> {
  return new SignJWT({ purpose })
    .setProtectedHeader({ alg: 'EdDSA', kid: 'k1' })
    .setIssuer(statementIssuer)
    .setAudience(statementAudience(boot.user.id, boot.generation))
    .setSubject(boot.user.username)
    .setIssuedAt()
    .setExpirationTime('300s')
    .sign(privateKey)
}

async function managed(boot: Boot): Promise<Program & { url: string }> {
  const program = start([], { SDP_BOOT: 'stdin' })
  program.child.stdin?.end(`${JSON.stringify(boot)}\n`)
  const url = `http://127.0.0.1:${boot.listen.port}`
  await expect
    .poll(
      () =>
        fetch(`${url}/healthz`).then(
          r => r.status,
          () => 0,
        ),
      { timeout: 15_000, interval: 20 },
    )
    .toBe(200)
  return { ...program, url }
}

describe('an instance started by the control plane', () => {
  test('serves both transports and reports its connection', async () => {
    const boot = await bootFor()
    const { url, child, exit, stdout, stderr } = await managed(boot)
    expect(await (await fetch(`${url}/healthz`)).json()).toMatchObject({
      status: 'ok',
      audience: statementAudience(boot.user.id, 3),
      sessions: 0,
    })
    const headers = { authorization: `Bearer ${await statement(boot)}` }
    for (const transport of [
      new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit: { headers } }),
      new SSEClientTransport(new URL(`${url}/sse`), { requestInit: { headers } }),
    ]) {
      const client = new Client({ name: 'test', version: '1' })
      await client.connect(transport)
      expect((await client.listTools()).tools.length).toBeGreaterThan(0)
      await client.close()
    }
    const control = { method: 'POST', headers: { authorization: `Bearer ${await statement(boot, 'control')}` } }
    const report = await fetch(`${url}/control/connection/exchange`, control)
    expect(await report.json()).toMatchObject({ state: 'connected', reasonCode: null })
    const usage = await fetch(`${url}/control/usage`, { headers: control.headers })
    expect(usageReport.parse(await usage.json())).toMatchObject({
      uptimeSeconds: expect.any(Number),
      tools: [],
      tokens: { mints: 1, failures: 0, mintsLeft: 9, accountsServer: 'fine' },
    })
    child.kill('SIGTERM')
    expect(await exit).toBe(0)
    expect(stdout()).toBe('')
    expect(stderr()).not.toContain(boot.database.password)
    expect(stderr()).not.toContain(boot.dataKey)
  })

  test.for<[string, string, number, RegExp]>([
    ['nothing', '', exitCodes.bootMissing, /boot line/],
    ['no JSON', 'hello\n', exitCodes.bootInvalid, /not valid JSON/],
    [
      'a wrong shape',
      '{"version":2,"dataKey":"secret-value"}\n',
      exitCodes.bootInvalid,
      /Boot version[\s\S]*Boot user/,
    ],
  ])('that is told %s exits and says why', async ([, input, code, says]) => {
    const program = start([], { SDP_BOOT: 'stdin' })
    program.child.stdin?.end(input)
    expect(await program.exit).toBe(code)
    expect(program.stderr()).toMatch(says)
    expect(program.stderr()).not.toContain('secret-value')
  })

  test('on a taken port exits with a code of its own', async () => {
    const boot = await bootFor()
    await managed(boot)
    const second = start([], { SDP_BOOT: 'stdin' })
    second.child.stdin?.end(`${JSON.stringify(boot)}\n`)
    expect(await second.exit).toBe(exitCodes.portInUse)
  })
})

describe('a call in flight', () => {
  test('at SIGTERM is finished, then the process exits 0', async () => {
    const boot = await bootFor()
    const { url, child, exit } = await managed(boot)
    const headers = { authorization: `Bearer ${await statement(boot)}` }
    const client = new Client({ name: 'test', version: '1' })
    await client.connect(new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit: { headers } }))
    await client.listTools()
    const asked = accounts.calls.length
    accounts.reply = (_, path) => (path.startsWith('/oauth') ? {} : { delayMs: 500, body: {}, status: 404 })
    const answer = client.callTool({ name: 'search_requests', arguments: {} })
    await expect.poll(() => accounts.calls.length).toBeGreaterThan(asked)
    child.kill('SIGTERM')
    expect(await answer).toMatchObject({ isError: true })
    expect(await exit).toBe(0)
    await client.close()
  })

  test('of the accounts server when the process is killed costs the code, not the truth about it', async () => {
    const boot = await bootFor({}, { grantCode: fakeToken(), refreshToken: undefined })
    const first = start([], { SDP_BOOT: 'stdin' })
    accounts.reply = () => {
      first.child.kill('SIGKILL')
      return { body: goodGrant({ refresh_token: fakeToken() }), delayMs: 50 }
    }
    first.child.stdin?.end(`${JSON.stringify(boot)}\n`)
    await first.exit
    expect(accounts.tokenCalls()).toBe(1)
    accounts.reply = () => ({ body: { error: 'invalid_code' } })
    const { url } = await managed({ ...boot, listen: { ...boot.listen, port: await freePort() } })
    const control = { method: 'POST', headers: { authorization: `Bearer ${await statement(boot, 'control')}` } }
    const report = await (await fetch(`${url}/control/connection/exchange`, control)).json()
    expect(report).toMatchObject({
      state: 'needs-authorization',
      reasonCode: 'grant-code-rejected',
      reason: expect.stringContaining('was used before'),
    })
    const { rows } = await database.admin.query('select from oauth_token_mints where user_id = $1', [boot.user.id])
    expect(rows).toHaveLength(2)
  })
})

test('V8 knows what it is asked for', async () => {
  const { exit, stdout, stderr } = start(['--version'], {})
  expect(await exit).toBe(0)
  expect(stdout()).toMatch(/^\d+\.\d+\.\d+\n$/)
  // it tells of a flag that it does not know, and goes on without it
  expect(stderr()).toBe('')
})

describe('one person alone', () => {
  async function environment(user: string, more: Record<string, string> = {}): Promise<Record<string, string>> {
    const { code, clientId, clientSecret } = simulator.createGrantCode({ user })
    return {
      SDP_USERNAME: user,
      SDP_INSTANCE_NAME: 'itdesk',
      SDP_BASE_URL: simulator.url,
      SDP_ACCOUNTS_URL: simulator.url,
      SDP_ALLOW_INSECURE_UPSTREAM: 'true',
      SDP_CLIENT_ID: clientId,
      SDP_CLIENT_SECRET: clientSecret,
      SDP_GRANT_CODE: code,
      SDP_STATE_DIR: await mkdtemp(join(folder, 'state-')),
      ...more,
    }
  }
  const tokenCalls = () => simulator.log.filter(({ path }) => path === '/oauth/v2/token').length

  test('is served on stdio, with nothing but the protocol on standard output', async () => {
    const env = await environment('alice', { SDP_LOG_LEVEL: 'trace' })
    const { child, stdout, stderr, exit } = start([], env)
    const say = (message: object) => child.stdin?.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`)
    const params = { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'raw', version: '1' } }
    say({ id: 1, method: 'initialize', params })
    say({ method: 'notifications/initialized' })
    say({ id: 2, method: 'tools/list' })
    say({ id: 3, method: 'tools/call', params: { name: 'search_requests', arguments: { limit: 1 } } })
    child.stdin?.write('this is no JSON\n')
    await expect.poll(stdout, { timeout: 15_000 }).toMatch(/"id":3/)
    child.stdin?.end()
    expect(await exit).toBe(0)
    const messages = stdout()
      .trim()
      .split('\n')
      .map(line => JSON.parse(line) as { jsonrpc: string; id: number; result?: { isError?: boolean } })
    for (const message of messages) expect(message.jsonrpc).toBe('2.0')
    expect(messages.find(({ id }) => id === 3)?.result?.isError).not.toBe(true)
    for (const secret of [env.SDP_GRANT_CODE, env.SDP_CLIENT_SECRET, simulator.state.refreshTokens.at(-1)?.token])
      expect(stderr()).not.toContain(secret)
  })

  test('keeps tokens in a sealed file only they can read, over restarts, and tries a code once', async () => {
    const env = await environment('bob')
    const before = tokenCalls()
    for (let round = 0; round < 2; round++) {
      const client = new Client({ name: 'test', version: '1' })
      await client.connect(
        new StdioClientTransport({ command: process.execPath, args: [entry, '--stdio'], env, stderr: 'ignore' }),
      )
      expect((await client.callTool({ name: 'get_my_context', arguments: {} })).isError).not.toBe(true)
      await client.close()
    }
    expect(tokenCalls()).toBe(before + 1)
    const state = env.SDP_STATE_DIR as string
    expect((await readdir(state)).sort()).toEqual(['bob.json', 'bob.json.lock', 'bob.json.mints', 'master.key'])
    for (const name of await readdir(state)) expect((await stat(join(state, name))).mode & 0o777).toBe(0o600)
    const kept = await readFile(join(state, 'bob.json'), 'utf8')
    expect(kept).not.toContain(env.SDP_CLIENT_SECRET)
    expect(kept).not.toContain(env.SDP_GRANT_CODE)
  })

  test('is served over HTTP on loopback, with an optional key and no entry for web pages', async () => {
    const port = String(await freePort())
    const apiKey = 'a-long-enough-api-key'
    const { stderr, stdout } = start(
      ['--http'],
      await environment('carol', { SDP_HTTP_PORT: port, SDP_API_KEY: apiKey }),
    )
    await expect
      .poll(stderr, { timeout: 15_000 })
      .toContain(`claude mcp add --transport http servicedesk http://127.0.0.1:${port}/mcp`)
    const url = `http://127.0.0.1:${port}`
    const client = new Client({ name: 'test', version: '1' })
    const headers = { authorization: `Bearer ${apiKey}` }
    await client.connect(new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit: { headers } }))
    expect((await client.listTools()).tools.length).toBeGreaterThan(0)
    await client.close()
    const status = async (path: string, headers: Record<string, string>) =>
      (await fetch(url + path, { method: 'POST', headers })).status
    expect(await status('/mcp', {})).toBe(401)
    expect(await status('/mcp', { authorization: 'Bearer wrong' })).toBe(401)
    expect(await status('/mcp', { 'x-api-key': apiKey })).toBe(415)
    expect(await status('/mcp', { 'x-api-key': apiKey, origin: 'https://evil.example' })).toBe(403)
    expect(await status('/control/connection/revoke', { 'x-api-key': apiKey })).toBe(403)
    expect((await fetch(`${url}/.well-known/oauth-protected-resource`)).status).toBe(404)
    expect(await hostStatus(Number(port), 'evil.example')).toBe(403)
    expect(stdout()).toBe('')
    expect(stderr()).not.toContain(apiKey)
  })

  test('may keep the tokens in PostgreSQL', async () => {
    const { host, port, user, password, database: name } = database.connection
    const env = await environment('dave', {
      SDP_DB_HOST: host,
      SDP_DB_PORT: String(port),
      SDP_DB_USER: user,
      SDP_DB_NAME: name,
      SDP_DB_PASSWORD: password,
      SDP_MASTER_KEY: generateSealingKey().bytes.toString('base64'),
    })
    const call = async () => {
      const client = new Client({ name: 'test', version: '1' })
      await client.connect(
        new StdioClientTransport({ command: process.execPath, args: [entry, '--stdio'], env, stderr: 'ignore' }),
      )
      expect((await client.callTool({ name: 'get_my_context', arguments: {} })).isError).not.toBe(true)
      await client.close()
    }
    const before = tokenCalls()
    await call()
    await call()
    expect(tokenCalls()).toBe(before + 1)
    const { rows } = await database.admin.query(
      "select t.state from oauth_tokens t join users u on u.id = t.user_id where u.username = 'dave' and u.wanted = 'stopped'",
    )
    expect(rows).toEqual([{ state: 'connected' }])
    const wrong = start(['--stdio'], { ...env, SDP_MASTER_KEY: generateSealingKey().bytes.toString('base64') })
    expect(await wrong.exit).toBe(exitCodes.bootInvalid)
    expect(wrong.stderr()).toMatch(/SDP_MASTER_KEY/)
  })

  test('is told everything that is wrong at once', async () => {
    const secretFile = join(folder, 'secret')
    await writeFile(secretFile, 'from-a-file\n')
    const { exit, stderr, stdout } = start(['--http'], {
      SDP_HTTP_HOST: '0.0.0.0',
      SDP_BASE_URL: 'http://helpdesk.example.com',
      SDP_TOOLSETS: 'core,everything',
      SDP_CLIENT_SECRET_FILE: secretFile,
      SDP_MASTER_KEY_FILE: join(folder, 'missing'),
      SDP_DATA_CENTER: 'MOON',
      SDP_ROLE: 'king',
      SDP_DB_HOST: 'localhost',
    })
    expect(await exit).toBe(exitCodes.bootInvalid)
    for (const name of [
      'SDP_INSTANCE_NAME',
      'SDP_CLIENT_ID',
      'SDP_BASE_URL',
      'SDP_TOOLSETS',
      'SDP_ROLE is "king"',
      'SDP_ROLE and SDP_TOOLSETS exclude each other',
      'SDP_DATA_CENTER',
      'SDP_API_KEY',
      'SDP_MASTER_KEY_FILE',
      'SDP_DB_PASSWORD',
    ])
      expect(stderr()).toContain(name)
    expect(stderr()).not.toContain('SDP_CLIENT_SECRET')
    expect(stdout()).toBe('')
  })

  test.each([
    [{ SDP_ROLE: 'technician' }, ['decide_approval', 'create_asset'], ['search_problems', 'trash_request']],
    [{ SDP_ROLE: 'viewer' }, ['search_changes', 'sdp_api_get'], ['create_request', 'trash_request']],
    [{ SDP_ROLE: 'project', SDP_READ_ONLY: 'true' }, ['search_projects'], ['create_project', 'add_note']],
  ])('%o decides which tools there are', async (wish, some, others) => {
    const { SDP_GRANT_CODE: _, ...env } = await environment('frank')
    const client = new Client({ name: 'test', version: '1' })
    await client.connect(
      new StdioClientTransport({
        command: process.execPath,
        args: [entry, '--stdio'],
        env: { ...env, ...(wish as Record<string, string>) },
        stderr: 'ignore',
      }),
    )
    const names = (await client.listTools()).tools.map(({ name }) => name)
    await client.close()
    for (const name of some) expect(names).toContain(name)
    for (const name of others) expect(names).not.toContain(name)
  })

  test('a viewer cannot be told to write', async () => {
    const { exit, stderr } = start(['--stdio'], { SDP_ROLE: 'viewer', SDP_READ_ONLY: 'false' })
    expect(await exit).toBe(exitCodes.bootInvalid)
    expect(stderr()).toContain('SDP_READ_ONLY cannot be false with SDP_ROLE=viewer')
  })

  test('without a grant is told how to get one, and can look around meanwhile', async () => {
    const { SDP_GRANT_CODE: _, ...env } = await environment('erin')
    const client = new Client({ name: 'test', version: '1' })
    await client.connect(
      new StdioClientTransport({ command: process.execPath, args: [entry, '--stdio'], env, stderr: 'ignore' }),
    )
    const answer = await client.callTool({ name: 'search_requests', arguments: {} })
    expect(answer.isError).toBe(true)
    expect(JSON.stringify(answer.content)).toContain('SDP_GRANT_CODE')
    await client.close()
  })
})

function hostStatus(port: number, host: string): Promise<number | undefined> {
  return new Promise((done, failed) => {
    httpRequest({ port, path: '/mcp', method: 'POST', headers: { host } }, response => {
      response.resume()
      done(response.statusCode)
    })
      .on('error', failed)
      .end()
  })
}

describe('start-user-instance.sh', () => {
  const script = new URL('../../start-user-instance.sh', import.meta.url).pathname

  /** Runs the script beside a program that shows what it was given. */
  async function run(args: string[], files: Record<string, string> = {}, env: Record<string, string> = {}) {
    const home = await mkdtemp(join(folder, 'script-'))
    await copyFile(script, join(home, 'start-user-instance.sh'))
    await writeFile(join(home, 'bootstrap.mjs'), 'console.log(JSON.stringify([process.argv.slice(2), process.env]))')
    for (const [name, text] of Object.entries(files)) await writeFile(join(home, name), text, { mode: 0o600 })
    const child = spawn(join(home, 'start-user-instance.sh'), args, {
      cwd: tmpdir(),
      env: { PATH: process.env.PATH, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const text = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const)
      child[name].setEncoding('utf8').on('data', (chunk: string) => {
        text[name] += chunk
      })
    const [code] = await once(child, 'close')
    return { code: code as number, ...text, home }
  }

  test('reads settings without running them, and hands on only settings', async () => {
    const { stdout, stderr, code, home } = await run(
      ['alice', '--stdio'],
      {
        '.env.alice': [
          '# a comment',
          '',
          'SDP_INSTANCE_NAME="it desk"  # quoted',
          "export SDP_CLIENT_SECRET='$(touch pwned)`touch pwned`'",
          'SDP_CLIENT_ID=1000.A#B   # not part of it',
          'SDP_DATA_CENTER=EU\r',
          'SDP_USERNAME=root',
          'SDP_TOOLSETS=core',
          'NODE_OPTIONS=--require=/evil.js',
          'SDP_BASE_URL=https://desk.example.com/a=b',
        ].join('\n'),
      },
      { SDP_TOOLSETS: 'core,approvals' },
    )
    expect([code, stderr]).toEqual([0, expect.stringMatching(/^sdp-mcp: line 9 of .* sets NODE_OPTIONS, [^\n]*\n$/)])
    const [args, env] = JSON.parse(stdout) as [string[], Record<string, string>]
    expect(args).toEqual(['instance/src/main.ts', '--stdio'])
    expect(env).toMatchObject({
      SDP_USERNAME: 'alice',
      SDP_INSTANCE_NAME: 'it desk',
      SDP_CLIENT_SECRET: '$(touch pwned)`touch pwned`',
      SDP_CLIENT_ID: '1000.A#B',
      SDP_DATA_CENTER: 'EU',
      SDP_TOOLSETS: 'core,approvals',
      SDP_BASE_URL: 'https://desk.example.com/a=b',
    })
    expect(env.NODE_OPTIONS).toBeUndefined()
    expect((await readdir(home)).includes('pwned')).toBe(false)
  })

  test('prints a template when the file is missing, and only on standard error', async () => {
    const { code, stdout, stderr } = await run(['alice'])
    expect(code).toBe(66)
    expect(stdout).toBe('')
    expect(stderr).toMatch(/\.env\.alice is missing[\s\S]*SDP_INSTANCE_NAME=[\s\S]*SDP_GRANT_CODE=/)
  })

  test.for(['', 'Alice', 'a', '../etc', 'al ice', 'alice-', '-alice', 'al;ice', 'a'.repeat(33)])(
    'refuses the name "%s"',
    async name => {
      expect(await run([name])).toMatchObject({ code: 64, stdout: '', stderr: expect.stringContaining('user') })
    },
  )

  test('says which line is wrong', async () => {
    expect(await run(['alice'], { '.env.alice': 'SDP_USERNAME\n' })).toMatchObject({
      code: 64,
      stderr: expect.stringContaining('line 1'),
    })
    expect(await run(['alice'], { '.env.alice': 'SDP_CLIENT_ID="open\n' })).toMatchObject({
      code: 64,
      stderr: expect.stringContaining('quote'),
    })
  })
})
