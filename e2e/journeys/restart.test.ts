import { setTimeout as delay } from 'node:timers/promises'
import Docker from 'dockerode'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { connect } from '../support/mcp-client.ts'
import { testInstallation } from '../support/setup.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// Whoever sends a request while an instance ends gets an answer or an error soon, over both transports and at any moment.
// The SDK's clients notice nothing by themselves: they wait a whole minute for an answer that cannot come any more.

const installation = `${testInstallation}-restart`
let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
beforeAll(async () => {
  stack = await startStack({ installation, environment: { SDP_IDLE_STOP_AFTER: 'never' } })
  alice = await stack.addUser('alice')
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const docker = () => new Docker({ socketPath: inject('engine').socket })
const running = () => {
  const filters = { label: [`com.sdp-mcp.installation=${installation}`, 'com.sdp-mcp.username=alice'] }
  return docker().listContainers({ filters })
}
const container = async () => docker().getContainer((await running())[0]!.Id)
/** Its container is looked at, too: for a moment after its end the control plane does not know of it yet. */
const ready = () =>
  eventually(
    async () =>
      (await running()).length > 0 && (await stack.admin('GET', '/v1/users/alice')).body.instance.state === 'ready',
    { what: 'the instance is ready', withinMs: 90_000 },
  )

const ends: Record<string, () => Promise<unknown>> = {
  'is killed': async () => (await container()).kill({ signal: 'SIGKILL' }),
  'is stopped by Docker': async () => (await container()).stop({ t: 5 }),
  'is restarted by an admin': () => stack.admin('POST', '/v1/users/alice/instance/restart'),
}
/** relative to its end: while it works, while it ends, while it is away, while it comes up */
const moments = [-600, -150, -40, -10, 0, 10, 40, 100, 250, 600, 1_200, 2_500]
/** Far below the minute of the clients, far above what a loaded machine needs to start an instance again. */
const patienceMs = 35_000

test.for(Object.keys(ends))('while an instance %s', { timeout: 240_000 }, async how => {
  await ready()
  // a call takes a while, so that some are under way at the end
  const slow = stack.simulator.faults.add({ kind: 'delay', delayMs: 400, match: { server: 'api' } })
  const settled: { kind: string; at: number; ms: number; outcome: string }[] = []
  const clients = await Promise.all(
    moments.flatMap(at =>
      (['mcp', 'sse'] as const).map(async kind => ({ kind, at, client: await connect(kind, alice[kind], alice.key) })),
    ),
  )
  try {
    const endAt = performance.now() + 1_000
    const work = clients.map(async ({ kind, at, client }) => {
      await delay(Math.max(0, endAt + at - performance.now()))
      const startedAt = performance.now()
      const call = client.callTool({ name: 'search_requests', arguments: { view: 'all', limit: 1 } })
      const outcome = await call.then(
        () => 'answered',
        (error: Error) => error.message.slice(0, 120),
      )
      settled.push({ kind, at, ms: Math.round(performance.now() - startedAt), outcome })
    })
    await delay(Math.max(0, endAt - performance.now()))
    await ends[how]!()
    await Promise.all(work)
  } finally {
    stack.simulator.faults.remove(slow)
    await Promise.all(clients.map(({ client }) => client.close()))
  }
  expect(settled).toHaveLength(moments.length * 2)
  expect(settled.filter(({ ms }) => ms > patienceMs)).toEqual([])
  // some were under way when it happened, else this has shown nothing: those are cut by a kill, and finished by a stop
  const underWay = settled.filter(({ at, ms }) => at < 0 && at + ms > 0)
  expect(underWay.length).toBeGreaterThan(0)
  const told = settled.filter(({ outcome }) => outcome.includes('ended while it worked'))
  if (how === 'is killed') expect(told.length).toBeGreaterThan(0)
  else expect(underWay.filter(({ outcome }) => outcome === 'answered').length).toBeGreaterThan(0)
  await ready()
})
