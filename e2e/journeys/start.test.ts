import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { freePort } from '@sdp-mcp/migrations/testing'
import Docker from 'dockerode'
import { afterAll, afterEach, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually } from '../support/stack.ts'

// `npm start` as the README tells it, on both runtimes.

const root = dirname(dirname(import.meta.dirname))
let data: string
beforeAll(async () => {
  data = await mkdtemp(join(tmpdir(), 'sdp-mcp-start-'))
})
afterAll(() => Promise.all([data, `${data}-real`].map(folder => rm(folder, { recursive: true, force: true }))))

const running: ChildProcess[] = []
afterEach(() => {
  // what a failed test left behind
  for (const child of running.splice(0))
    if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, 'SIGINT')
})

type Started = {
  output: string
  adminUrl: string
  token: string
  sse: string
  key: string
  stop(): Promise<number | null>
}

async function start(environment: Record<string, string>): Promise<Started> {
  const child = spawn('npm', ['start'], {
    cwd: root,
    env: { ...process.env, SDP_DATA_DIR: data, SDP_INSTALLATION: 'e2e-start', ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
    // like a terminal's foreground job: Ctrl-C signals the whole group
    detached: true,
  })
  running.push(child)
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', chunk => {
      output += chunk
    })
  const exited = new Promise<number | null>(done => child.once('exit', code => done(code)))
  await eventually(() => output.includes('Ctrl-C stops everything') || child.exitCode !== null, {
    withinMs: 220_000,
    what: 'npm start',
  })
  if (child.exitCode !== null) throw new Error(`npm start ended with code ${child.exitCode}:\n${output}`)
  const [, adminUrl] = /Admin API\s+(\S+)/.exec(output)!
  const [, token] = /curl -H "Authorization: Bearer ([^"]+)"/.exec(output)!
  const [, sse, key] =
    /claude mcp add --transport sse sdp (\S+) --header "Authorization: Bearer (sdpmcp_[\w-]{43})"/.exec(output)!
  return { output, adminUrl: adminUrl!, token: token!, sse: sse!, key: key!, stop: () => interrupt(child, exited) }
}

function interrupt(child: ChildProcess, exited: Promise<number | null>): Promise<number | null> {
  process.kill(-child.pid!, 'SIGINT')
  return exited
}

test.each(['docker', 'process'] as const)(
  'on the %s runtime it prints a working Claude Code line, keeps the data for the next start, and Ctrl-C leaves nothing running',
  async runtime => {
    const ports = {
      SDP_HTTP_PORT: String(await freePort()),
      SDP_ADMIN_PORT: String(await freePort()),
      SDP_RUNTIME: runtime,
    }
    const first = await start(ports)
    expect(first.output).toContain(`runtime: ${runtime}`)
    let subject = ''
    {
      await using client = await connect('sse', first.sse, first.key)
      subject = `Keyboard without an E (${runtime})`
      await callTool(client, 'create_request', { subject, allow_duplicate: true })
    }
    expect(
      (await fetch(`${first.adminUrl}/v1/users`, { headers: { authorization: `Bearer ${first.token}` } })).status,
    ).toBe(200)
    await first.stop()
    await eventually(
      () =>
        fetch(first.adminUrl).then(
          () => false,
          () => true,
        ),
      { what: 'the end of the control plane' },
    )
    const docker = new Docker({ socketPath: inject('engine').socket })
    expect(
      await docker.listContainers({ all: true, filters: { label: ['com.sdp-mcp.installation=e2e-start'] } }),
    ).toEqual([])

    const second = await start(ports)
    expect([second.key, second.sse]).toEqual([first.key, first.sse])
    {
      await using client = await connect('sse', second.sse, second.key)
      const found = await callTool(client, 'search_requests', { text: subject })
      expect(JSON.stringify(found)).toContain(subject)
    }
    await second.stop()
  },
)

test('a port that is taken is told with the way out, and a second start in the same folder is refused', async () => {
  const { createServer } = await import('node:net')
  const port = await freePort()
  const squatter = createServer().listen(port, '127.0.0.1')
  await expect(start({ SDP_HTTP_PORT: String(port), SDP_RUNTIME: 'process' })).rejects.toThrow(
    `port ${port} is taken by another program`,
  )
  squatter.close()
})

test('with settings of a real ServiceDesk Plus no simulator is started, and it says how to authorize the first person', async () => {
  const started = await start({
    SDP_DATA_DIR: `${data}-real`,
    SDP_HTTP_PORT: String(await freePort()),
    SDP_ADMIN_PORT: String(await freePort()),
    SDP_RUNTIME: 'process',
    // a name that never resolves: nothing leaves this machine
    SDP_BASE_URL: 'https://helpdesk.invalid',
    SDP_ACCOUNTS_URL: 'https://accounts.invalid',
    SDP_INSTANCE_NAME: 'itdesk',
  })
  expect(started.output).not.toMatch(/simulat/i)
  expect(started.output).toContain('/v1/users/alice/authorization')
  const response = await fetch(`${started.adminUrl}/v1/users/alice`, {
    headers: { authorization: `Bearer ${started.token}` },
  })
  expect(((await response.json()) as { sdp: unknown }).sdp).toMatchObject({
    baseUrl: 'https://helpdesk.invalid',
    connection: 'needs-authorization',
  })
  await started.stop()
})
