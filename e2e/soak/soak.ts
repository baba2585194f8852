import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import Docker from 'dockerode'
import { callTool, connect } from '../support/mcp-client.ts'
import { eventually, type Stack } from '../support/stack.ts'
import { openStream, SoakError, type StreamClient } from './client.ts'
import { type Point, type Trend, trendOf } from './trend.ts'

export type SoakOptions = {
  durationMs: number
  /** open event streams, spread over the users */
  streams: number
  users: number
  /** from one measurement and one line of progress to the next */
  sampleMs: number
  /** from one disturbance of each kind to the next: new keys, restarts */
  disturbMs: number
  installation: string
  socket: string
  say: (line: string) => void
}

export type SoakReport = {
  calls: number
  reconnects: number
  rotations: number
  restarts: number
  wakes: number
  /** what went wrong because somebody had just changed a key or restarted the instance */
  expected: Record<string, number>
  unexpected: string[]
  series: Series[]
  /** descriptors of the control plane before anybody came and after everybody left */
  descriptors: { before: number; after: number }
}

export type Series = { name: string; unit: string; points: Point[]; bound: number; trend: Trend }

/** Growth per hour that is no longer taken for chance. A leak of 1 KB for each of a thousand calls a minute is 60 MB. */
const bounds = { alive: 10, instanceMemory: 10, descriptors: 30 }
/**
 * What V8 takes of the system says little while it works: it grows to a ceiling, and falls when it likes. So the control plane
 * is asked what is alive in it, and the instance whose memory is followed gets pauses, in which it collects garbage (trim.ts).
 */
export const tellingHeap = `--expose-gc --max-semi-space-size=8 --require=${join(import.meta.dirname, 'tell-heap.cjs')}`
const followed = { everyMs: 40_000, restsForMs: 14_000 }
/** After a disturbance of a user, so long that a loaded machine has started an instance again and clients are back. */
const graceMs = 45_000

/** Idle connections to instances and the database, which go after half a minute. */
export const descriptorsLeft = 40

type Person = {
  username: string
  key: string
  sse: string
  mcp: string
  /** disturbances that are not over */
  disturbances: number
  disturbedUntil: number
  /** the latest one */
  why: string
}

/**
 * Real parts under everything that happens in a week, all at once: streams that stay, calls, clients that leave and come
 * back, new API keys, restarts, and a user who sleeps and wakes. Whatever goes wrong is counted: as expected when somebody
 * had just disturbed that very user, as unexpected otherwise.
 */
export async function soak(stack: Stack, options: SoakOptions): Promise<SoakReport> {
  const { durationMs, streams, users, say } = options
  const report: SoakReport = {
    calls: 0,
    reconnects: 0,
    rotations: 0,
    restarts: 0,
    wakes: 0,
    expected: {},
    unexpected: [],
    series: [],
    descriptors: { before: 0, after: 0 },
  }
  // all users are one person of the desk, whose client would be refused its eleventh grant code in ten minutes
  stack.simulator.faults.set({ grantCodesPer10Minutes: 1_000, newRefreshTokensPer10Minutes: 1_000 })
  const people: Person[] = []
  for (let at = 0; at < users; at++) people.push(await addPerson(stack, `user-${at}`))
  const sleeper = await addPerson(stack, 'sleeper')
  const pid = stack.controlPlane().process.pid as number
  report.descriptors.before = await descriptorsOf(pid)
  const startedAt = performance.now()
  const endsAt = startedAt + durationMs
  const isOver = () => performance.now() >= endsAt
  const pause = (ms: number) => delay(Math.max(0, Math.min(ms, endsAt - performance.now())))
  const random = (most: number) => Math.floor(Math.random() * most)

  function note(person: Person, error: unknown): void {
    const what = error instanceof SoakError ? error.what : 'failed'
    if (person.disturbances > 0 || performance.now() < person.disturbedUntil) {
      const kind = `${person.why}: ${what}`
      report.expected[kind] = (report.expected[kind] ?? 0) + 1
    } else {
      const line = `${((performance.now() - startedAt) / 1000).toFixed(0)} s, ${person.username}: ${error}`
      // the first ones tell enough
      if (report.unexpected.length < 200) report.unexpected.push(line)
      if (report.unexpected.length <= 20) say(`UNEXPECTED ${line}`)
    }
  }
  function disturb(person: Person, why: string): void {
    person.why = why
    person.disturbances++
  }
  const settle = (person: Person) => {
    person.disturbances--
    person.disturbedUntil = performance.now() + graceMs
  }

  /** One client: a stream that stays open, a call now and then, sometimes it leaves and comes back. */
  async function client(person: Person, own: number): Promise<void> {
    let stream: StreamClient | undefined
    await pause((own / streams) * Math.min(10_000, durationMs / 5))
    while (!isOver()) {
      await rested(person)
      try {
        if (!stream?.isOpen) {
          stream = await openStream(person.sse, person.key, () => {
            // between two calls nobody else would tell
            if (!isOver()) note(person, new SoakError('stream-ended', 'the event stream ended between two calls'))
          })
          open.add(stream)
        }
        await stream.ask('tools/call', { name: 'search_requests', arguments: { view: 'all', limit: 1 } })
        report.calls++
      } catch (error) {
        if (!isOver()) note(person, error)
        await pause(1_000)
      }
      await pause(callEveryMs / 2 + random(callEveryMs))
      if (stream && random(12) === 0) {
        stream.close()
        open.delete(stream)
        stream = undefined
        report.reconnects++
      }
    }
    stream?.close()
  }
  /** Nobody asks the followed instance anything in its pauses. */
  async function rested(person: Person): Promise<void> {
    const inCycle = (performance.now() - startedAt) % followed.everyMs
    if (person === people[0] && inCycle > followed.everyMs - followed.restsForMs)
      await pause(followed.everyMs - inCycle)
  }
  const open = new Set<StreamClient>()
  // about twenty calls a second over all, whatever their number
  const callEveryMs = Math.max(2_000, streams * 50)

  /** New key, everybody changes to it, the old one is revoked, and its streams end. */
  async function rotate(): Promise<void> {
    await pause(options.disturbMs / 2)
    while (!isOver()) {
      const person = people[random(people.length)] as Person
      disturb(person, 'new key')
      const path = `/v1/users/${person.username}/api-keys`
      const { body: listed } = await stack.admin('GET', path)
      const { body: made, status } = await stack.admin('POST', path, { name: `soak ${report.rotations}` })
      if (status !== 201) throw new Error(`no new key for ${person.username}: ${JSON.stringify(made)}`)
      person.key = made.apiKey.key
      for (const { id } of listed.apiKeys) await stack.admin('DELETE', `${path}/${id}`)
      report.rotations++
      settle(person)
      await pause(options.disturbMs)
    }
  }

  /** The last user alone, so that the memory of the others' instances can be followed. */
  async function restart(): Promise<void> {
    const person = people.at(-1) as Person
    while (!isOver()) {
      await pause(options.disturbMs * 1.5)
      if (isOver()) return
      disturb(person, 'restart')
      await stack.admin('POST', `/v1/users/${person.username}/instance/restart`)
      await isReady(person)
      report.restarts++
      settle(person)
    }
  }

  /** Nobody is there until the instance sleeps; then a client of the SDK wakes it. */
  async function sleep(): Promise<void> {
    while (!isOver()) {
      try {
        await using client = await connect('mcp', sleeper.mcp, sleeper.key)
        await callTool(client, 'search_requests', { view: 'all', limit: 1 })
        report.calls++
        // a session that is ended in words keeps nobody awake
        await (client.transport as StreamableHTTPClientTransport).terminateSession()
      } catch (error) {
        if (!isOver()) note(sleeper, error)
      }
      const asleep = await eventually(
        async () => isOver() || (await stack.admin('GET', '/v1/users/sleeper')).body.instance.reasonCode === 'idle',
        { what: 'the sleeper asleep', withinMs: 120_000 },
      ).catch(error => void note(sleeper, error))
      if (asleep && !isOver()) report.wakes++
    }
  }

  const isReady = ({ username }: Person) =>
    eventually(async () => (await stack.admin('GET', `/v1/users/${username}`)).body.instance.state === 'ready', {
      what: `${username} ready`,
      withinMs: 120_000,
    })

  const gauges = await createGauges(options, stack.controlPlane().process, (people[0] as Person).username)
  async function sample(): Promise<void> {
    while (!isOver()) {
      const atMs = performance.now() - startedAt
      for (const { points, read } of gauges) points.push({ atMs, value: await read() })
      const shown = gauges.map(({ name, unit, points }) => `${name} ${points.at(-1)?.value.toFixed(0)} ${unit}`)
      const count = [...open].filter(({ isOpen }) => isOpen).length
      say(
        `${(atMs / 1000).toFixed(0)} s: ${count} streams, ${report.calls} calls, ${report.reconnects} reconnects, ${report.rotations} rotations, ${report.restarts} restarts, ${report.wakes} wakes, ${report.unexpected.length} unexpected; ${shown.join(', ')}`,
      )
      await pause(options.sampleMs)
    }
  }

  await Promise.all([
    ...Array.from({ length: streams }, (_, own) => client(people[own % people.length] as Person, own)),
    rotate(),
    restart(),
    sleep(),
    sample(),
  ])
  // everybody has left: what they held must be given back
  await eventually(async () => (await descriptorsOf(pid)) <= report.descriptors.before + descriptorsLeft, {
    what: 'descriptors given back',
    withinMs: 60_000,
  }).catch(error => say(`${error}`))
  report.descriptors.after = await descriptorsOf(pid)
  report.series = gauges.map(({ name, unit, points, bound }) => ({
    name,
    unit,
    points,
    bound,
    trend: trendOf(points, bound),
  }))
  return report
}

async function addPerson(stack: Stack, username: string): Promise<Person> {
  const grant = stack.simulator.createGrantCode({ user: 'carol' })
  const { status, body } = await stack.admin(
    'POST',
    '/v1/users',
    { username, sdp: { clientId: grant.clientId, clientSecret: grant.clientSecret, grantCode: grant.code } },
    { prefer: 'wait=60' },
  )
  if (status !== 201) throw new Error(`${username} could not be added: ${status} ${JSON.stringify(body)}`)
  return { username, key: body.apiKey.key, ...body.endpoints, disturbances: 0, disturbedUntil: 0, why: '' }
}

type Gauge = { name: string; unit: string; bound: number; points: Point[]; read(): Promise<number> }

async function createGauges(
  { socket, installation }: SoakOptions,
  controlPlane: ChildProcess,
  username: string,
): Promise<Gauge[]> {
  const pid = controlPlane.pid as number
  const docker = new Docker({ socketPath: socket })
  const filters = { label: [`com.sdp-mcp.installation=${installation}`, `com.sdp-mcp.username=${username}`] }
  const [found] = await docker.listContainers({ filters })
  if (!found) throw new Error(`${username} has no container`)
  const container = docker.getContainer(found.Id)
  const { State } = await container.inspect()
  const gauge = (name: string, unit: string, bound: number, read: () => Promise<number>) => ({
    name,
    unit,
    bound,
    points: [],
    read,
  })
  return [
    gauge('control plane alive', 'MB', bounds.alive, () => aliveIn(controlPlane)),
    gauge('control plane', 'MB', Number.POSITIVE_INFINITY, () => memoryOf(pid)),
    gauge('control plane', 'descriptors', bounds.descriptors, () => descriptorsOf(pid)),
    gauge('instance', 'MB', bounds.instanceMemory, async () => {
      const { memory_stats: memory } = await container.stats({ stream: false, 'one-shot': true } as { stream: false })
      const fields = memory.stats as unknown as Record<string, number>
      return (fields.total_rss ?? fields.anon ?? Number.NaN) / 1_048_576
    }),
    gauge('instance', 'descriptors', bounds.descriptors, () => descriptorsOf(State.Pid, true)),
  ]
}

/** What a full collection leaves; the process was started with {@link tellingHeap}. */
async function aliveIn(controlPlane: ChildProcess): Promise<number> {
  const told = once(controlPlane, 'message', { signal: AbortSignal.timeout(30_000) })
  controlPlane.send('soak: what is alive?')
  const [{ aliveBytes }] = (await told) as [{ aliveBytes: number }]
  return aliveBytes / 1_048_576
}

/** Memory of a process that is its own and nobody else's. */
async function memoryOf(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  return Number(/^RssAnon:\s+(\d+)/m.exec(status)?.[1]) / 1024
}

/** NaN where the process cannot be seen, as on another machine. @param withChildren - docker-init runs the program below it */
async function descriptorsOf(pid: number, withChildren = false): Promise<number> {
  try {
    const own = (await readdir(`/proc/${pid}/fd`)).length
    if (!withChildren) return own
    const children = (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim().split(/\s+/).filter(Boolean)
    const below = await Promise.all(children.map(child => descriptorsOf(Number(child))))
    return below.reduce((sum, count) => sum + count, own)
  } catch {
    return Number.NaN
  }
}
