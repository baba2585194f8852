import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import Docker from 'dockerode'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// Moving users to another image while they work, on real containers with the official client.

const installation = 'e2e-rollout'
const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
const next = 'sdp-mcp/instance:e2e-rollout-next'
const broken = 'sdp-mcp/instance:e2e-rollout-broken'
/** serves MCP well, but asks the site at a wrong address, so that every tool fails */
const astray = 'sdp-mcp/instance:e2e-rollout-astray'
const names = ['alice', 'bob', 'carol'] as const
let stack: Stack
let users: Awaited<ReturnType<Stack['addUser']>>[]

const docker = async (...args: string[]) =>
  promisify(execFile)('docker', args, { env: { ...process.env, DOCKER_HOST: inject('engine').host } })

beforeAll(async () => {
  await docker('tag', image, next)
  // it answers the health request with its audience, and nothing else
  const { stdout } = await docker(
    'create',
    '--entrypoint',
    'node',
    image,
    '-e',
    `let text = ''
     process.stdin.on('data', chunk => { text += chunk; if (text.includes('\\n')) {
       const boot = JSON.parse(text)
       require('node:http').createServer((request, response) => request.url === '/healthz'
         ? response.end(JSON.stringify({ status: 'ok', audience: 'instance:' + boot.user.id + ':' + boot.generation, version: 'x', uptimeSeconds: 1, sessions: 0 }))
         : response.writeHead(500).end('broken')).listen(boot.listen.port, boot.listen.host)
     } })
     process.on('SIGTERM', () => process.exit(0))`,
  )
  await docker('commit', stdout.trim(), broken)
  await docker('rm', stdout.trim())
  const name = `${installation}-patch`
  await docker(
    ...['run', '--name', name, '--user', '0:0', '--network', 'none', '--entrypoint', 'node', image, '-e'],
    `const fs = require('node:fs')
     const text = fs.readFileSync('/app/main.cjs', 'utf8')
     if (!text.includes('/api/v3')) throw new Error('there is no /api/v3 in the program any more')
     fs.writeFileSync('/app/main.cjs', text.replaceAll('/api/v3', '/api/v2'))`,
  )
  const changes = ['USER 10001:10001', 'ENTRYPOINT ["node", "/app/main.cjs"]', 'CMD []']
  await docker('commit', ...changes.flatMap(change => ['--change', change]), name, astray)
  await docker('rm', name)
  stack = await startStack({ installation, environment: { SDP_IDLE_STOP_AFTER: 'never' } })
  users = await Promise.all(names.map(name => stack.addUser(name)))
})
afterAll(async () => {
  await stack?.[Symbol.asyncDispose]()
  await docker('rmi', next, broken, astray).catch(() => {})
})

const containers = () =>
  new Docker({ socketPath: inject('engine').socket }).listContainers({
    all: true,
    filters: { label: [`com.sdp-mcp.installation=${installation}`] },
  })
const rollout = async (id: string) => (await stack.admin('GET', `/v1/rollouts/${id}`)).body
const begin = async (body: object) => {
  const answer = await stack.admin('POST', '/v1/rollouts', body)
  expect(answer.status, JSON.stringify(answer.body)).toBe(202)
  return answer.body.id as string
}
const reaches = (id: string, state: string, withinMs = 90_000) =>
  eventually(async () => (await rollout(id)).state === state && rollout(id), { what: `rollout ${state}`, withinMs })
const oneEach = (wanted: string) =>
  eventually(
    async () => {
      const found = await containers()
      return found.length === names.length && found.every(one => one.State === 'running' && one.Image === wanted)
    },
    // sessions whose client left without a word count as over after half a minute
    { what: `one container of ${wanted} for each user`, withinMs: 90_000 },
  )

/** Clients of both transports that call a tool without a pause, long-lived ones and ever new ones; every failure is kept. */
function work() {
  const failures: unknown[] = []
  let calls = 0
  let over = false
  const lane = async (kind: 'sse' | 'mcp', url: string, key: string, callsEach: number) => {
    while (!over) {
      try {
        await using client = await connect(kind, url, key)
        for (let call = 0; call < callsEach && !over; call++) {
          await callTool(client, 'search_requests', { view: 'all', limit: 1 })
          calls++
        }
      } catch (error) {
        failures.push(error)
      }
    }
  }
  const lanes = users.flatMap(user => [
    lane('mcp', user.mcp, user.key, Number.POSITIVE_INFINITY),
    lane('sse', user.sse, user.key, Number.POSITIVE_INFINITY),
    lane('mcp', user.mcp, user.key, 2),
    lane('sse', user.sse, user.key, 2),
  ])
  return {
    failures,
    calls: () => calls,
    async stop() {
      over = true
      await Promise.all(lanes)
    },
  }
}

test('everybody is moved while they work, and no call fails', async () => {
  const before = (await containers()).map(({ Id }) => Id)
  const busy = work()
  await eventually(() => busy.calls() > 20, { withinMs: 60_000 })
  const id = await begin({ image: next, batchSize: 2, drainSeconds: 600, observeSeconds: 2 })
  const done = await reaches(id, 'done')
  expect(done.progress).toMatchObject({ moved: 3, failed: 0 })
  // both run, because the long-lived sessions have not ended
  expect(await containers()).toHaveLength(6)
  const sessions = (await stack.admin('GET', '/v1/sessions')).body
  expect(sessions.unanswered).toEqual([])
  const during = busy.calls()
  await eventually(() => busy.calls() > during + 20, { withinMs: 60_000 })
  await busy.stop()
  expect(busy.failures).toEqual([])
  await oneEach(next)
  for (const { Id } of await containers()) expect(before).not.toContain(Id)
}, 240_000)

test('an image that runs but does not serve MCP goes back by itself, and nobody notices', async () => {
  const before = (await containers()).map(({ Id }) => Id).sort()
  const busy = work()
  await eventually(() => busy.calls() > 20, { withinMs: 60_000 })
  const id = await begin({ image: broken, observeSeconds: 1 })
  const over = await reaches(id, 'rolled-back')
  expect(over).toMatchObject({ reasonCode: 'members-failed', progress: { moved: 0, waiting: 2, reverted: 1 } })
  await busy.stop()
  expect(busy.failures).toEqual([])
  expect((await containers()).map(({ Id }) => Id).sort()).toEqual(before)
}, 240_000)

test('an image that serves MCP but whose tools all fail goes back by itself, as its users find out', async () => {
  const before = (await containers()).map(({ Id }) => Id).sort()
  const busy = work()
  await eventually(() => busy.calls() > 40, { withinMs: 60_000 })
  const id = await begin({ image: astray, drainSeconds: 600, observeSeconds: 100 })
  const over = await reaches(id, 'rolled-back')
  expect(over).toMatchObject({ reasonCode: 'error-rate', progress: { moved: 0, waiting: 2, reverted: 1 } })
  expect(over.reason).toContain('tool calls with the new image failed')
  // those who began a session on the new one noticed, and work again
  expect(busy.failures.length).toBeGreaterThan(0)
  const during = busy.calls()
  await eventually(() => busy.calls() > during + 20, { withinMs: 60_000 })
  await busy.stop()
  await eventually(async () => (await containers()).length === before.length, { withinMs: 90_000 })
  expect((await containers()).map(({ Id }) => Id).sort()).toEqual(before)
}, 240_000)

test('a rollout goes on when the control plane is killed in the middle of a move', async () => {
  await stack.controlPlane().stop()
  await stack.startControlPlane({ SDP_FAULT_POINT: 'move.checked' })
  const id = await begin({ image, batchSize: 1, drainSeconds: 0, observeSeconds: 0 })
  await eventually(() => stack.controlPlane().process.signalCode === 'SIGKILL', { what: 'the crash', withinMs: 60_000 })
  await stack.startControlPlane()
  await reaches(id, 'done')
  await oneEach(image)
  for (const user of users) {
    await using client = await connect('mcp', user.mcp, user.key)
    expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  }
}, 240_000)
