import { execFile } from 'node:child_process'
import { openSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { freePort, startTemplateServer, type TemplateServer } from '@sdp-mcp/migrations/testing'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { connect } from '../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'
import { startClock } from './clock.ts'
import { startOwnEngine } from './own-engine.ts'
import { createRig } from './rig.ts'

/**
 * Everything that may break is broken, with real parts. `npm test` runs the short form, `npm run chaos` the long one: more
 * rounds, every fault point, longer outages. Ends with a table: fault, times, slowest recovery, lost.
 */

const long = process.env.SDP_CHAOS === 'long'
const installation = 'e2e-chaos'
const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
const other = 'sdp-mcp/instance:e2e-chaos-other'
const run = promisify(execFile)
const docker = (...args: string[]) =>
  run('docker', args, { env: { ...process.env, DOCKER_HOST: inject('engine').host } })

let postgres: TemplateServer
let stack: Stack
let rig: ReturnType<typeof createRig>

beforeAll(async () => {
  const engine = inject('engine')
  await docker('tag', image, other)
  postgres = await startTemplateServer([engine.hostAddress])
  stack = await startStack({
    installation,
    on: { engine, postgres: postgres.connection },
    environment: { SDP_IDLE_STOP_AFTER: 'never', SDP_INSTANCE_NETWORK_POOL: '10.215.0.0/16' },
  })
  rig = createRig({ stack, socket: engine.socket, installation })
  for (const username of ['alice', 'bob']) await add(username, true)
})
afterAll(async () => {
  process.stdout.write(`\n${rig?.table() ?? ''}\n`)
  await stack?.[Symbol.asyncDispose]()
  await postgres?.close()
  await docker('rmi', other).catch(() => {})
})

async function add(username: string, hasGrant = false): Promise<void> {
  if (hasGrant) {
    const { key, mcp, sse } = await stack.addUser(username)
    rig.people.set(username, { username, key, mcp, sse, hasGrant })
    return
  }
  const { status, body } = await stack.admin('POST', '/v1/users', { username })
  expect(status, JSON.stringify(body)).toBe(201)
  rig.people.set(username, { username, key: body.apiKey.key, ...body.endpoints, hasGrant })
}
async function remove(username: string): Promise<number> {
  const person = rig.people.get(username)
  const { status } = await stack.admin('DELETE', `/v1/users/${username}`)
  rig.people.delete(username)
  if (person) rig.deadKeys.add(person.key)
  return status
}
const crashed = () =>
  eventually(() => stack.controlPlane().process.signalCode === 'SIGKILL', { what: 'the crash', withinMs: 60_000 })
async function restart(environment: Record<string, string> = {}): Promise<void> {
  await stack.controlPlane().stop('SIGKILL')
  await stack.startControlPlane(environment)
}
let next = 0
const nextName = () => `user-${++next}`

test('all is well to begin with', () => rig.fault('nothing', async () => {}))

for (const point of ['start.recorded', 'start.running'])
  test(`the control plane is killed while it provisions, at ${point}`, () =>
    rig.fault(`kill -9 at ${point}`, async () => {
      await restart({ SDP_FAULT_POINT: point })
      const username = nextName()
      // the answer comes before the work, or not at all: what counts is what the database holds
      const answer = await stack.admin('POST', '/v1/users', { username }).catch(() => undefined)
      await crashed()
      await stack.startControlPlane()
      if (answer?.status === 201) {
        const { apiKey, endpoints } = answer.body
        rig.people.set(username, { username, key: apiKey.key, ...endpoints, hasGrant: false })
      } else {
        // nobody knows the key: the admin makes another one
        const made = await stack.admin('POST', `/v1/users/${username}/api-keys`)
        expect(made.status).toBe(201)
        const mcp = `${stack.publicUrl}/u/${username}/mcp`
        rig.people.set(username, { username, key: made.body.apiKey.key, mcp, sse: mcp, hasGrant: false })
      }
    }))

for (const point of long
  ? ['remove.goodbye', 'remove.container', 'remove.erased']
  : ['remove.goodbye', 'remove.container'])
  test(`the control plane is killed while it removes a user, at ${point}`, () =>
    rig.fault(`kill -9 at ${point}`, async () => {
      const username = nextName()
      await add(username)
      await restart({ SDP_FAULT_POINT: point })
      await eventually(async () => (await stack.admin('GET', `/v1/users/${username}`)).body.instance.state === 'ready')
      await remove(username).catch(() => {
        // the answer went down with it; the wish is in the database
      })
      const { key } = rig.people.get(username) ?? { key: undefined }
      rig.people.delete(username)
      if (key) rig.deadKeys.add(key)
      await crashed()
      await stack.startControlPlane()
    }))

const rolloutPoints = ['rollout.noted', 'move.begun', 'move.running', 'move.checked', 'move.swapped', 'move.drained']
for (const [at, point] of (long ? rolloutPoints : ['move.swapped']).entries())
  test(`the control plane is killed in a rollout, at ${point}`, () =>
    rig.fault(
      `kill -9 at ${point}`,
      async () => {
        await restart({ SDP_FAULT_POINT: point })
        const { body } = await stack.admin('POST', '/v1/rollouts', {
          image: at % 2 ? image : other,
          drainSeconds: 0,
          observeSeconds: 0,
        })
        await crashed()
        await stack.startControlPlane()
        await eventually(async () => (await stack.admin('GET', `/v1/rollouts/${body.id}`)).body.state === 'done', {
          what: 'the end of the rollout',
          withinMs: 120_000,
        })
      },
      { withinMs: 90_000 },
    ))

test('an instance is killed in the middle of calls: clients are told at once, and are served again', async () => {
  // each time it is tried again later: the sixth would be a crash loop, which is meant to be slow
  for (let round = 0; round < (long ? 5 : 2); round++)
    await rig.fault('kill an instance mid-call', async () => {
      const { mcp, key } = rig.people.get('alice')!
      const headers = {
        authorization: `Bearer ${key}`,
        accept: 'application/json, text/event-stream',
        'content-type': 'application/json',
      }
      await using client = await connect('mcp', mcp, key)
      const session = (client.transport as unknown as { sessionId: string }).sessionId
      const id = stack.simulator.faults.add({ kind: 'hang', match: { server: 'api' } })
      // on the wire: the official client would wait for a stream that can be resumed
      const params = { name: 'search_requests', arguments: { view: 'all', limit: 1 } }
      const ended = fetch(mcp, {
        method: 'POST',
        headers: { ...headers, 'mcp-session-id': session },
        body: JSON.stringify({ jsonrpc: '2.0', id: 77, method: 'tools/call', params }),
      })
        .then(response => response.text())
        .then(
          () => performance.now(),
          () => performance.now(),
        )
      await eventually(() => stack.simulator.faults.list().some(({ hits }) => hits > 0))
      const [container] = (await rig.containers()).filter(one => one.Labels['com.sdp-mcp.username'] === 'alice')
      const killedAt = performance.now()
      await rig.docker.getContainer(container!.Id).kill()
      // the engine takes its time to end a container; what comes after that is ours
      expect((await ended) - killedAt).toBeLessThan(3_000)
      stack.simulator.faults.remove(id)
    })
}, 300_000)

test('PostgreSQL is restarted', async () => {
  for (let round = 0; round < (long ? 5 : 1); round++) await rig.fault('PostgreSQL restarted', () => postgres.restart())
})

test('PostgreSQL stands still: streams go on, known keys are served', () =>
  rig.fault(
    'PostgreSQL paused',
    async () => {
      const { mcp, key } = rig.people.get('alice')!
      await using client = await connect('mcp', mcp, key)
      const goOn = await postgres.pause()
      try {
        for (const until = Date.now() + (long ? 30_000 : 5_000); Date.now() < until; await delay(500))
          await client.ping()
      } finally {
        goOn()
      }
    },
    { withinMs: 90_000 },
  ))

test('the accounts server is away', () =>
  rig.fault('accounts server away', async () => {
    const id = stack.simulator.faults.add({ kind: 'status', status: 503, match: { server: 'accounts' } })
    await restart()
    for (const until = Date.now() + (long ? 60_000 : 5_000); Date.now() < until; await delay(1_000)) {
      const { mcp, key } = rig.people.get('bob')!
      await using client = await connect('mcp', mcp, key)
      // the token that was there goes on to be used
      expect((await client.callTool({ name: 'get_my_context', arguments: {} })).isError).not.toBe(true)
    }
    stack.simulator.faults.remove(id)
    const lost = await stack.sql("select from oauth_tokens where state = 'connected' and refresh_token_sealed is null")
    expect(lost).toEqual([])
  }))

test('many users come at once', () =>
  rig.fault(
    `${long ? 50 : 20} users added at once`,
    async () => {
      await Promise.all(Array.from({ length: long ? 50 : 20 }, () => add(nextName())))
    },
    { withinMs: 180_000 },
  ))

test('many users leave at once', () =>
  rig.fault('all of them removed at once', async () => {
    const leaving = [...rig.people.keys()].filter(name => name.startsWith('user-'))
    const statuses = await Promise.all(leaving.map(remove))
    expect(new Set(statuses)).toEqual(new Set([204]))
  }))

test('the same user is added and removed in a race', async () => {
  for (let round = 0; round < (long ? 10 : 2); round++)
    await rig.fault('add and remove in a race', async () => {
      const username = nextName()
      const keys: string[] = []
      const actions = Array.from({ length: 12 }, async (_, at) => {
        await delay(Math.random() * 300)
        if (at % 2) return stack.admin('DELETE', `/v1/users/${username}`)
        const answer = await stack.admin('POST', '/v1/users', { username })
        if (answer.status === 201) keys.push(answer.body.apiKey.key)
        return answer
      })
      for (const { status } of await Promise.all(actions)) expect([201, 204, 404, 409, 503]).toContain(status)
      await eventually(async () => [204, 404].includes((await stack.admin('DELETE', `/v1/users/${username}`)).status))
      for (const key of keys) rig.deadKeys.add(key)
    })
})

test('two control planes fight over one fleet, and one of them is killed', () =>
  rig.fault(
    'two control planes, one killed',
    async () => {
      const [publicPort, adminPort] = [await freePort(), await freePort()]
      const ports = { SDP_HTTP_PORT: String(publicPort), SDP_ADMIN_PORT: String(adminPort) }
      const first = stack.controlPlane()
      await stack.startControlPlane(ports)
      const second = stack.controlPlane()
      const base = (at: number) => (at % 2 ? `http://127.0.0.1:${adminPort}` : stack.adminUrl)
      const headers = { authorization: `Bearer ${stack.adminToken}`, 'content-type': 'application/json' }
      const actions = Array.from({ length: 16 }, (_, at) =>
        at % 4 < 2
          ? fetch(`${base(at)}/v1/users/bob`, {
              method: 'PATCH',
              headers,
              body: JSON.stringify({ readOnly: at % 3 === 0 }),
            })
          : fetch(`${base(at)}/v1/users/alice/instance/${at % 8 < 4 ? 'restart' : 'start'}`, {
              method: 'POST',
              headers: { authorization: headers.authorization },
            }),
      )
      for (const response of await Promise.all(actions)) expect([200, 202]).toContain(response.status)
      // the one that has been there longer leads: the other takes over
      await first.stop('SIGKILL')
      await eventually(
        async () => {
          const text = await (await fetch(`http://127.0.0.1:${adminPort}/metrics`, { headers })).text()
          return /^sdp_mcp_leader 1$/m.test(text)
        },
        // within three seconds, unless the machine is busy with other things
        { what: 'another leader', withinMs: 30_000 },
      )
      await second.stop()
      await stack.startControlPlane()
    },
    { withinMs: 90_000 },
  ))

test('the disk for logs is full', () =>
  rig.fault('disk for logs full', async () => {
    await stack.controlPlane().stop()
    const full = openSync('/dev/full', 'w')
    await stack.startControlPlane({ SDP_LOG_LEVEL: 'trace' }, { stdout: full })
    const { mcp, key } = rig.people.get('alice')!
    for (let call = 0; call < 20; call++) {
      await using client = await connect('mcp', mcp, key)
      expect((await client.listTools()).tools.length).toBeGreaterThan(0)
    }
    expect(stack.controlPlane().process.exitCode).toBeNull()
    await stack.controlPlane().stop()
    await stack.startControlPlane()
  }))

test('SIGTERM ends the control plane and instances in order, with calls let to end', () =>
  rig.fault('SIGTERM with a call under way', async () => {
    const { mcp, key } = rig.people.get('alice')!
    const id = stack.simulator.faults.add({ kind: 'delay', delayMs: 2_000, match: { server: 'api' } })
    const client = await connect('mcp', mcp, key)
    const call = client.callTool({ name: 'search_requests', arguments: { view: 'all', limit: 1 } })
    await delay(300)
    const ended = stack.controlPlane().stop()
    expect((await call).isError).not.toBe(true)
    expect(await ended).toBe(0)
    stack.simulator.faults.remove(id)
    await client.close().catch(() => {})
    await stack.startControlPlane()
  }))

test('the Docker engine is stopped and started', async () => {
  await using engine = await startOwnEngine(image)
  const database = await startTemplateServer([engine.hostAddress])
  const own = await startStack({
    installation: 'e2e-chaos-engine',
    on: { engine, postgres: database.connection },
    address: engine.address,
    command: engine.enter,
    environment: { SDP_DB_HOST: engine.hostAddress, SDP_INSTANCE_IMAGE: image },
  })
  const there = createRig({ stack: own, socket: engine.socket, installation: 'e2e-chaos-engine' })
  try {
    const { key, mcp, sse } = await own.addUser('alice')
    there.people.set('alice', { username: 'alice', key, mcp, sse, hasGrant: true })
    for (let round = 0; round < (long ? 3 : 1); round++)
      await there.fault(
        'Docker engine stopped and started',
        async () => {
          await engine.stop()
          const { status, body } = await own.admin('GET', '/readyz')
          expect([status, body.runtime, body.database]).toEqual([503, 'failed', 'ok'])
          await engine.start()
        },
        { withinMs: 90_000 },
      )
    rig.rows.push(...there.rows)
  } finally {
    await own[Symbol.asyncDispose]()
    await database.close()
  }
})

const timeOfLastLine = (log: string) => new Date(JSON.parse(log.trim().split('\n').at(-1) ?? '{}').time).getTime()
async function controlPlaneTime(of: Stack): Promise<number> {
  await of.admin('POST', '/v1/users/alice/instance/start')
  return timeOfLastLine(of.controlPlane().output())
}
async function instanceTime(of: Stack, people: typeof rig.people): Promise<number> {
  const { mcp, key } = people.get('alice')!
  await using client = await connect('mcp', mcp, key)
  await client.callTool({ name: 'get_my_context', arguments: {} })
  const { body } = await of.admin('GET', '/v1/users/alice/instance/logs?tail=1')
  // a single line is JSON, and comes parsed
  return new Date(body.time).getTime()
}

test('the clocks of control plane and instances jump', async () => {
  const installation = 'e2e-chaos-clock'
  const clocked = 'sdp-mcp/instance:e2e-chaos-clock'
  const engine = inject('engine')
  await using clock = await startClock(engine.hostAddress)
  await clock.addTo(image, clocked, engine.host)
  const own = await startStack({
    installation,
    on: { engine, postgres: postgres.connection },
    environment: {
      NODE_OPTIONS: clock.nodeOptions,
      SDP_INSTANCE_IMAGE: clocked,
      SDP_IDLE_STOP_AFTER: 'never',
      SDP_INSTANCE_NETWORK_POOL: '10.216.0.0/16',
    },
  })
  const there = createRig({ stack: own, socket: engine.socket, installation })
  try {
    const { key, mcp, sse } = await own.addUser('alice')
    there.people.set('alice', { username: 'alice', key, mcp, sse, hasGrant: true })
    await using patient = await connect('mcp', mcp, key)
    const hours = 60 * 60_000
    for (const [offMs, what] of [
      [2 * hours, 'clock jumps two hours ahead'],
      [-2 * hours, 'clock jumps four hours back'],
      [0, 'clock jumps to the right time'],
    ] as const)
      await there.fault(what, async () => {
        clock.set(offMs)
        for (const timeOf of [controlPlaneTime, instanceTime])
          await eventually(async () => Math.abs((await timeOf(own, there.people)) - Date.now() - offMs) < 60_000, {
            what,
          })
        // a session that was open before goes on
        expect((await patient.callTool({ name: 'get_my_context', arguments: {} })).isError).not.toBe(true)
      })
    const [grant] = await own.sql<{ state: string }>('select state from oauth_tokens')
    expect(grant?.state).toBe('connected')
    rig.rows.push(...there.rows)
  } finally {
    await own[Symbol.asyncDispose]()
    await docker('rmi', clocked).catch(() => {})
  }
})

test('nothing was lost in all of this', () => {
  expect(rig.rows.length).toBeGreaterThan(14)
  expect(
    rig.rows.filter(({ lost }) => lost > 0),
    rig.reasons.join('\n'),
  ).toEqual([])
})
