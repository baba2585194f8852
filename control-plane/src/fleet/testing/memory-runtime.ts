import { createServer, type Server } from 'node:http'
import {
  type InstanceSpec,
  limitsKey,
  type ObservedInstance,
  type Runtime,
  RuntimeError,
  type RuntimeErrorKind,
} from '../runtime.ts'

/**
 * A runtime whose instances are HTTP servers in this process: quick, and with everything that can go wrong at hand. It
 * passes the same suite as the real ones. Several runtime objects may share one {@link MemoryEngine}, as control planes
 * share a Docker engine.
 */
export type MemoryEngine = {
  instances: Map<string, MemoryInstance>
  watchers: Set<(userId: string | null) => void>
  /** what the next starts do instead: throw such an error, or never answer (`mute`), or end unanswered with an exit code */
  trouble: (RuntimeErrorKind | 'mute' | { exit: number })[]
  /** images it lacks; a start from one of them fails */
  missingImages: Set<string>
  /** every call is answered with `unreachable` */
  down: boolean
  /** how long an instance takes until it answers */
  bootMs: number
  hostMemoryMb: number
  starts: number
  stops: number
  /** an instance ends as if by itself */
  crash(userId: string, exit: { code: number; outOfMemory?: boolean }): Promise<void>
  running(userId: string): MemoryInstance[]
}

export type MemoryInstance = {
  observed: ObservedInstance
  spec: InstanceSpec
  server: Server
  log: string[]
  followers: Set<(line: string | null) => void>
  /** when set, requests are taken but not answered */
  frozen: boolean
  sessions: number
  /** calls that were not answered yet */
  inFlight: number
}

export function createMemoryEngine(): MemoryEngine {
  const engine: MemoryEngine = {
    instances: new Map(),
    watchers: new Set(),
    trouble: [],
    missingImages: new Set(),
    down: false,
    bootMs: 0,
    hostMemoryMb: 64_000,
    starts: 0,
    stops: 0,
    async crash(userId, { code, outOfMemory = false }) {
      for (const instance of engine.running(userId)) await end(engine, instance, code, outOfMemory)
    },
    running: userId =>
      [...engine.instances.values()].filter(({ observed }) => observed.running && observed.userId === userId),
  }
  return engine
}

let nextId = 1

export function createMemoryRuntime(engine: MemoryEngine): Runtime {
  const answer = () => {
    if (engine.down) throw new RuntimeError('unreachable', 'The engine of this test is down. Set it up again.')
  }
  const find = (userId: string, generation: number) =>
    [...engine.instances.values()].find(
      ({ observed }) => observed.userId === userId && observed.generation === generation,
    )

  const runtime: Runtime = {
    kind: 'process',
    async ping() {
      answer()
      return { version: '1.0' }
    },
    async hostMemoryMb() {
      answer()
      return engine.hostMemoryMb
    },
    async hasImage(image) {
      answer()
      return !engine.missingImages.has(image)
    },
    async list(userId) {
      answer()
      return [...engine.instances.values()]
        .map(({ observed }) => ({ ...observed }))
        .filter(observed => userId === undefined || observed.userId === userId)
    },
    async start(spec) {
      answer()
      const { boot, image } = spec
      const existing = find(boot.user.id, boot.generation)
      if (existing?.observed.running) return { ...existing.observed }
      if (existing) engine.instances.delete(existing.observed.id)
      engine.starts++
      const trouble = engine.missingImages.has(image) ? 'image-missing' : engine.trouble.shift()
      if (typeof trouble === 'string' && trouble !== 'mute')
        throw new RuntimeError(trouble, `The engine of this test says ${trouble}. Ask for something else.`)
      const { port } = boot.listen
      const log: string[] = []
      const followers = new Set<(line: string | null) => void>()
      const say = (line: string) => {
        log.push(line)
        for (const follower of followers) follower(line)
      }
      const server = createServer((request, response) => {
        if (instance.frozen) return
        const url = new URL(request.url ?? '/', 'http://instance')
        const json = (body: unknown) =>
          response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body))
        if (url.pathname === '/healthz')
          json({
            status: 'ok',
            audience: `instance:${boot.user.id}:${boot.generation}`,
            version: 'test',
            uptimeSeconds: 1,
            sessions: instance.sessions,
            inFlight: instance.inFlight,
          })
        else if (url.pathname === '/boot') json(boot)
        else if (url.pathname === '/say') {
          say(url.searchParams.get('text') ?? '')
          json({})
        } else if (url.pathname === '/exit') {
          json({})
          setTimeout(() => void end(engine, instance, Number(url.searchParams.get('code')), false), 10)
        } else response.writeHead(404).end()
      })
      const instance: MemoryInstance = {
        spec,
        server,
        log,
        followers,
        frozen: trouble !== undefined,
        sessions: 0,
        inFlight: 0,
        observed: {
          // one that stopped is started again, as an engine does it
          id: existing?.observed.id ?? `memory-${nextId++}`,
          userId: boot.user.id,
          generation: boot.generation,
          image,
          limits: limitsKey(spec.limits),
          running: true,
          address: `http://127.0.0.1:${port}`,
          exit: null,
          startedAt: new Date(),
        },
      }
      const listen = () =>
        new Promise<void>((done, failed) => {
          server.once('error', failed)
          server.listen(port, '127.0.0.1', () => {
            say(`listening for ${boot.user.username}`)
            done()
          })
        })
      if (engine.bootMs > 0)
        setTimeout(() => {
          if (instance.observed.running) listen().catch(() => void end(engine, instance, 66, false))
        }, engine.bootMs)
      else
        await listen().catch(() => {
          throw new RuntimeError('port-taken', `Another program holds port ${port}. Choose another one.`)
        })
      engine.instances.set(instance.observed.id, instance)
      const started = { ...instance.observed }
      if (typeof trouble === 'object') setTimeout(() => void end(engine, instance, trouble.exit, false), 5)
      return started
    },
    async stop(id, graceSeconds) {
      answer()
      const instance = engine.instances.get(id)
      if (!instance?.observed.running) return
      engine.stops++
      const stubborn = instance.spec.boot.user.username.startsWith('stubborn')
      if (stubborn) await new Promise(done => setTimeout(done, graceSeconds * 1000))
      await end(engine, instance, stubborn ? 137 : 0, false)
    },
    async remove(id) {
      answer()
      const instance = engine.instances.get(id)
      if (!instance) return
      if (instance.observed.running) await end(engine, instance, 137, false)
      engine.instances.delete(id)
    },
    async tidy() {
      answer()
    },
    async logs(id, { tail, follow, signal }) {
      const instance = engine.instances.get(id)
      return readLog(instance, tail, follow && instance?.observed.running === true, signal)
    },
    watch(changed, signal) {
      engine.watchers.add(changed)
      signal.addEventListener('abort', () => engine.watchers.delete(changed), { once: true })
    },
    async close() {},
  }
  return runtime
}

async function end(engine: MemoryEngine, instance: MemoryInstance, code: number, outOfMemory: boolean): Promise<void> {
  if (!instance.observed.running) return
  instance.observed.running = false
  instance.observed.address = null
  instance.observed.exit = { code, outOfMemory, at: new Date() }
  instance.server.closeAllConnections()
  await new Promise<void>(done => instance.server.close(() => done()))
  for (const follower of instance.followers) follower(null)
  if (!engine.down) for (const changed of engine.watchers) changed(instance.observed.userId)
}

async function* readLog(
  instance: MemoryInstance | undefined,
  tail: number,
  follow: boolean,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  if (!instance) return
  const waiting: (string | null)[] = instance.log.slice(-tail)
  if (!follow) waiting.push(null)
  let wake = () => {}
  instance.followers.add(line => {
    waiting.push(line)
    wake()
  })
  signal.addEventListener('abort', () => wake())
  while (!signal.aborted) {
    const line = waiting.shift()
    if (line === null) return
    if (line !== undefined) yield Buffer.from(`${line}\n`)
    else
      await new Promise<void>(done => {
        wake = done
      })
  }
}
