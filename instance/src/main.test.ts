import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { freePort } from '@sdp-mcp/migrations/testing'
import { exportJWK, generateKeyPair, SignJWT } from 'jose'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { type Boot, exitCodes, statementAudience, statementIssuer } from './contract.ts'
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
    allowInsecureUpstream: true,
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
