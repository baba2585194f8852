import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// A control plane of two workers on a real engine: whatever one of them does is true in the other one.

const installation = 'e2e-workers'
const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
const next = 'sdp-mcp/instance:e2e-workers-next'
let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>

const docker = async (...args: string[]) =>
  promisify(execFile)('docker', args, { env: { ...process.env, DOCKER_HOST: inject('engine').host } })

beforeAll(async () => {
  await docker('tag', image, next)
  stack = await startStack({
    installation,
    environment: { SDP_WORKERS: '2', SDP_LOG_LEVEL: 'debug', SDP_IDLE_STOP_AFTER: '12s' },
  })
  alice = await stack.addUser('alice')
})
afterAll(async () => {
  await stack?.[Symbol.asyncDispose]()
  await docker('rmi', next).catch(() => {})
})

const lines = () =>
  stack
    .controlPlane()
    .output()
    .split('\n')
    .filter(line => line.startsWith('{'))
    .map(line => JSON.parse(line) as { msg: string; worker?: number; [field: string]: unknown })

const ping = JSON.stringify({ jsonrpc: '2.0', id: 0, method: 'ping' })
/** what an instance answers to a message without a session: it came through, and leaves nothing behind */
const reached = 400

/** One request on a connection of its own, unless an agent keeps one. */
function send(url: string, key: string, { method = 'GET', body = '', agent }: Sent = {}): Promise<IncomingMessage> {
  return new Promise((done, failed) => {
    const headers = {
      authorization: `Bearer ${key}`,
      accept: 'application/json, text/event-stream',
      ...(body ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) } : {}),
    }
    const request = httpRequest(url, { method, headers, agent: agent ?? false })
    request.once('response', done).once('error', failed)
    request.end(body)
  })
}
type Sent = { method?: string; body?: string; agent?: Agent }

const call = (url: string, key: string, agent?: Agent) =>
  statusOf(url, key, { method: 'POST', body: ping, ...(agent ? { agent } : {}) })

async function statusOf(url: string, key: string, sent: Sent = {}): Promise<number> {
  const response = await send(url, key, sent)
  response.resume()
  await new Promise(done => response.once('close', done))
  return response.statusCode!
}

/** Event streams on connections of their own, which come to both workers in turn. */
async function openStreams(count: number, key: string) {
  const streams = []
  for (let index = 0; index < count; index++) {
    const response = await send(alice.sse, key)
    expect(response.statusCode).toBe(200)
    const stream = { response, endedAt: 0 }
    response.on('data', () => {}).on('error', () => {})
    response.on('close', () => {
      stream.endedAt = performance.now()
    })
    streams.push(stream)
  }
  return streams
}

const pidsOfWorkers = () => {
  const { pid } = stack.controlPlane().process
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number)
}
const metric = async (name: string) =>
  Number(new RegExp(`^${name} (\\S+)$`, 'm').exec((await stack.admin('GET', '/metrics')).body)?.[1])
const instance = async () => (await stack.admin('GET', '/v1/users/alice')).body.instance

test('two processes serve both listeners, and each line of the log says whose it is', async () => {
  expect(pidsOfWorkers()).toHaveLength(2)
  expect(lines().filter(({ msg }) => msg === 'control-plane.starting')).toEqual([
    expect.objectContaining({ workers: 2, runtime: 'docker' }),
  ])
  const listening = lines().filter(({ msg }) => msg === 'control-plane.listening')
  expect(listening.map(({ worker }) => worker).sort()).toEqual([1, 2])
  for (let count = 0; count < 6; count++) {
    expect(await statusOf(`${stack.publicUrl}/readyz`, 'none')).toBe(200)
    // connections go to the workers in turn, so that two calls go to both
    for (let turn = 0; turn < 2; turn++) expect(await call(alice.mcp, alice.key)).toBe(reached)
    expect(await statusOf(`${stack.adminUrl}/v1/system`, stack.adminToken)).toBe(200)
  }
  for (const msg of ['proxy.exchange.done', 'http.request.done'])
    await eventually(() => {
      const by = new Set(lines().flatMap(line => (line.msg === msg ? [line.worker] : [])))
      return by.has(1) && by.has(2)
    })
  expect((await stack.admin('GET', '/v1/system')).body.workers).toBe(2)
})

test('a key that was just given out opens every worker at once', async () => {
  for (let round = 0; round < 10; round++) {
    const { body } = await stack.admin('POST', '/v1/users/alice/api-keys', {})
    const statuses = await Promise.all(Array.from({ length: 4 }, () => call(alice.mcp, body.apiKey.key)))
    expect(statuses).toEqual([reached, reached, reached, reached])
    await stack.admin('DELETE', `/v1/users/alice/api-keys/${body.apiKey.id}`)
  }
})

test('revoking a key ends its streams in every worker within a second, and counts are of all workers', async () => {
  const { body } = await stack.admin('POST', '/v1/users/alice/api-keys', {})
  const key: string = body.apiKey.key
  const streams = await openStreams(8, key)
  expect(await metric('sdp_mcp_streams_open')).toBe(8)
  expect(await metric('sdp_mcp_workers')).toBe(2)
  expect(await metric('sdp_mcp_leader')).toBe(1)
  const { routes } = (await stack.admin('GET', '/v1/routes')).body
  expect(routes).toEqual([expect.objectContaining({ username: 'alice', openExchanges: 8 })])

  const revokedAt = performance.now()
  const answer = await stack.admin('DELETE', `/v1/users/alice/api-keys/${body.apiKey.id}`)
  expect(answer.status).toBeLessThan(300)
  await eventually(() => streams.every(({ endedAt }) => endedAt > 0), { withinMs: 5_000, what: 'the end of streams' })
  for (const { endedAt } of streams) expect(endedAt - revokedAt).toBeLessThan(1_000)
  const cuts = lines().filter(({ msg }) => msg === 'proxy.exchanges.cut')
  expect(new Set(cuts.map(({ worker }) => worker))).toEqual(new Set([1, 2]))
  expect(cuts.reduce((sum, { count }) => sum + Number(count), 0)).toBe(8)
  for (let count = 0; count < 4; count++) expect(await call(alice.mcp, key)).toBe(401)
})

test('the rate limit of a user holds for all workers together', async () => {
  await stack.admin('PATCH', '/v1/users/alice', { limits: { requestsPerSecond: 10, burst: 10 } })
  // what was spent before comes back
  await delay(2_200)
  // both workers have heard; a bucket that is emptied through one is empty in the other
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  let first = 0
  while ((await call(alice.mcp, alice.key, agent)) === reached) first++
  expect(first).toBeGreaterThanOrEqual(8)
  agent.destroy()
  await delay(250)
  const beganAt = performance.now()
  let taken = 0
  while (performance.now() - beganAt < 3_000) if ((await call(alice.mcp, alice.key)) === reached) taken++
  const seconds = (performance.now() - beganAt) / 1000
  // by itself the other worker would have let in a burst and ten a second more
  expect(taken).toBeLessThanOrEqual(10 * seconds + 10)
  expect(taken).toBeGreaterThan(5)
  await stack.admin('PATCH', '/v1/users/alice', { limits: { requestsPerSecond: null, burst: null } })
})

test('a worker that is killed takes its own streams along and no others, and is replaced', async () => {
  const streams = await openStreams(6, alice.key)
  const [victim, survivor] = pidsOfWorkers() as [number, number]
  process.kill(victim, 'SIGKILL')
  await eventually(() => streams.some(({ endedAt }) => endedAt > 0), { what: 'the end of some streams' })
  for (let count = 0; count < 5; count++) expect(await call(alice.mcp, alice.key)).toBe(reached)
  await eventually(() => pidsOfWorkers().length === 2 && !pidsOfWorkers().includes(victim), { what: 'a new worker' })
  await eventually(async () => (await metric('sdp_mcp_workers')) === 2, { withinMs: 20_000, what: 'its answer' })
  expect(pidsOfWorkers()).toContain(survivor)
  expect(streams.filter(({ endedAt }) => endedAt === 0)).toHaveLength(3)
  for (const { response } of streams) response.destroy()
  // one of the two leads again
  await eventually(async () => (await metric('sdp_mcp_leader')) === 1, { withinMs: 20_000, what: 'a leader' })
})

test('traffic through the worker that does not lead keeps an instance awake', async () => {
  const leader = lines()
    .filter(({ msg, leading }) => msg === 'fleet.leadership.changed' && leading === true)
    .at(-1)!.worker
  const before = await instance()
  // a connection stays with its worker: one that has come to the other one
  let agent = new Agent()
  const carriedBy = async () => {
    const from = lines().length
    expect(await call(alice.mcp, alice.key, agent)).toBe(reached)
    return eventually(
      () =>
        lines()
          .slice(from)
          .find(({ msg }) => msg === 'proxy.exchange.done')?.worker,
    )
  }
  for (;;) {
    agent = new Agent({ keepAlive: true, maxSockets: 1 })
    if ((await carriedBy()) !== leader) break
    agent.destroy()
  }
  for (const until = Date.now() + 35_000; Date.now() < until; await delay(3_000)) {
    expect(await carriedBy()).not.toBe(leader)
    expect((await instance()).state).toBe('ready')
  }
  expect((await instance()).containerId).toBe(before.containerId)
  agent.destroy()
  await eventually(async () => (await instance()).reasonCode === 'idle', { withinMs: 60_000, what: 'sleep' })
  // and whichever worker is asked, it wakes once
  const statuses = await Promise.all(Array.from({ length: 10 }, () => call(alice.mcp, alice.key)))
  expect(new Set(statuses)).toEqual(new Set([reached]))
  expect((await instance()).containerId).toBe(before.containerId)
})

test('a rollout moves a user whose sessions are spread over the workers, and no call fails', async () => {
  const clients = await Promise.all(
    Array.from({ length: 4 }, (_, at) => connect(at % 2 ? 'mcp' : 'sse', at % 2 ? alice.mcp : alice.sse, alice.key)),
  )
  let over = false
  let calls = 0
  const failures: unknown[] = []
  const lanes = clients.map(async client => {
    while (!over)
      await callTool(client, 'search_requests', { view: 'all', limit: 1 }).then(
        () => calls++,
        error => failures.push(error),
      )
  })
  await eventually(() => calls > 8, { withinMs: 30_000 })
  const begun = await stack.admin('POST', '/v1/rollouts', { image: next, drainSeconds: 600, observeSeconds: 1 })
  expect(begun.status).toBe(202)
  await eventually(async () => (await stack.admin('GET', `/v1/rollouts/${begun.body.id}`)).body.state === 'done', {
    withinMs: 60_000,
    what: 'the rollout',
  })
  const during = calls
  await eventually(() => calls > during + 8, { withinMs: 30_000 })
  // those who come now come to the new one, by either worker
  for (let count = 0; count < 4; count++) {
    await using client = await connect('mcp', alice.mcp, alice.key)
    await callTool(client, 'search_requests', { view: 'all', limit: 1 })
  }
  over = true
  await Promise.all(lanes)
  expect(failures).toEqual([])
  await Promise.all(clients.map(client => client.close()))
}, 180_000)

test('SIGTERM ends both workers in order', async () => {
  const pids = pidsOfWorkers()
  const streams = await openStreams(4, alice.key)
  expect(await stack.controlPlane().stop('SIGTERM')).toBe(0)
  expect(streams.every(({ endedAt }) => endedAt > 0)).toBe(true)
  for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow()
  expect(lines().filter(({ msg }) => msg === 'control-plane.ended')).toHaveLength(2)
})
