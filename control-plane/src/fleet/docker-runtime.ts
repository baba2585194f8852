import type { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from '../log.ts'
import {
  type ContainerPlace,
  containerDefinition,
  instanceInspected,
  instanceListed,
  listedAsRunning,
} from './docker-container.ts'
import { changeTimeoutMs, createDockerEngine, type Docker, readTimeoutMs } from './docker-engine.ts'
import { engineStatus, isGone, isWithoutNetwork } from './docker-errors.ts'
import { label, type Owner, ownershipOf } from './docker-labels.ts'
import { demultiplex } from './docker-logs.ts'
import { createDockerNetworks } from './docker-networks.ts'
import { createOwnAddresses } from './own-addresses.ts'
import { type InstanceSpec, type ObservedInstance, type Runtime, RuntimeError } from './runtime.ts'
import { networkPeers } from './subnets.ts'

/** Instances on a Docker engine: one hardened container and one bridge network for each user. */

export type DockerRuntimeOptions = {
  /** where the engine listens: `unix:///var/run/docker.sock`, a plain path, or `tcp://host:port` */
  engine?: string
  /** name of this installation; containers of other installations on the same engine are never touched */
  installation: string
  /**
   * `loopback`: the control plane runs on the Docker host; each instance's port is published on 127.0.0.1, and used where
   * the container's own address cannot be.
   * `network`: the control plane is a container; nothing is published, it joins each user's network instead.
   */
  reach: 'loopback' | 'network'
  /** the control plane's own container (name or id); needed for `network` */
  controlPlaneContainer?: string | undefined
  /** further containers that join each user's network, e.g. the database */
  networkPeers?: readonly string[]
  /** subnets of the users' networks are cut from this one, e.g. `10.213.0.0/16` */
  networkPool: string
  /** lines for /etc/hosts of instances, e.g. `host.docker.internal:host-gateway` */
  extraHosts?: readonly string[]
  /** whether users' networks lead out; `restricted` needs reach "network" */
  egress?: 'open' | 'restricted'
  /** whether an address is one of this machine's own; asked for the gateways of users' networks */
  isOwnAddress?: (address: string) => boolean
  log: Logger
}

const pingTimeoutMs = 3_000

export function createDockerRuntime(options: DockerRuntimeOptions): Runtime {
  const { installation, reach, networkPool, extraHosts = [], isOwnAddress = createOwnAddresses().has, log } = options
  if (reach === 'network' && !options.controlPlaneContainer)
    throw new Error('reach "network" needs the name of the control plane’s own container')
  const isRestricted = options.egress === 'restricted'
  if (isRestricted && reach !== 'network') throw new Error('restricted egress needs reach "network"')
  const engine = createDockerEngine(options.engine)
  const { docker, ask, open, closing, inspectContainer } = engine
  const ownership = ownershipOf(installation)
  const place: ContainerPlace = { ownership, reach, extraHosts, isRestricted, isOwnAddress }
  const networks = createDockerNetworks({
    engine,
    ownership,
    networkPool,
    peers: networkPeers(options),
    isRestricted,
    log,
  })

  /** Removes the user's network unless one of the user's containers, running or not, still needs it. */
  async function removeNetworkIfUnused(user: Owner): Promise<void> {
    if ((await listContainers(user.id)).length === 0) await networks.remove(user)
  }

  function listContainers(userId?: string): Promise<Docker.ContainerInfo[]> {
    const filters = { label: ownership.filter(userId) }
    return ask({ doing: 'listing the containers', timeoutMs: readTimeoutMs }, abortSignal =>
      docker.listContainers({ all: true, filters, abortSignal } as Docker.ContainerListOptions),
    )
  }

  /** Force-removes one container and waits until its name is free again. */
  async function removeContainer(id: string): Promise<void> {
    const deadline = Date.now() + changeTimeoutMs
    for (;;) {
      try {
        await ask({ doing: `removing the container ${id}` }, abortSignal =>
          docker.getContainer(id).remove({ force: true, v: true, abortSignal } as Docker.ContainerRemoveOptions),
        )
        return
      } catch (error) {
        if (isGone(error)) return
        // 409: somebody else's removal is in progress
        if (engineStatus(error) !== 409 || Date.now() > deadline) throw error
        await delay(100)
      }
    }
  }

  /** A container of the wanted definition that is ready to be started, or runs already. */
  async function ensureContainer(
    spec: InstanceSpec,
    network: Promise<void>,
  ): Promise<{ id: string; running: boolean }> {
    const { user, generation } = spec.boot
    const name = `${ownership.networkName(user)}-${generation}`
    const body = containerDefinition(spec, place)
    let lastError: unknown
    for (let attempt = 0; attempt < 4; attempt++) {
      try {
        const container = await ask({ doing: `creating the container ${name}`, image: spec.image }, abortSignal =>
          // the library would also repeat the whole body in the URL
          docker.createContainer({ _query: { name }, _body: body, abortSignal } as Docker.ContainerCreateOptions),
        )
        return { id: container.id, running: false }
      } catch (error) {
        lastError = error
        // engines that look for the network at once: create again when it is there
        if (isWithoutNetwork(error)) {
          await network
          continue
        }
        if (engineStatus(error) !== 409) throw error
      }
      const found = await inspectContainer(name)
      if (!found) continue
      if (!ownership.isOurs(found.Config.Labels))
        throw new RuntimeError(
          'refused',
          `A container named ${name} exists that is not ours. Remove it with: docker rm -f ${name}`,
        )
      if (found.Config.Labels[label.userId] === user.id) {
        if (found.State.Running) return { id: found.Id, running: true }
        if (await reusable(found, body, spec.image)) return { id: found.Id, running: false }
      }
      await removeContainer(found.Id)
    }
    throw lastError
  }

  /** Starting a stopped container again is half the work of making a new one, and its log goes on. */
  async function reusable(
    found: Docker.ContainerInspectInfo,
    body: Docker.ContainerCreateOptions,
    imageName: string,
  ): Promise<boolean> {
    if (found.State.Status !== 'exited' && found.State.Status !== 'created') return false
    if (found.Config.Labels[label.configHash] !== body.Labels?.[label.configHash]) return false
    // the name may stand for a newer image by now
    const image = await ask({ doing: `looking at the image ${imageName}`, image: imageName }, abortSignal =>
      docker.getImage(imageName).inspect({ abortSignal } as Docker.ImageInspectOptions),
    )
    return image.Id === found.Image
  }

  /** Starts a created or stopped container and writes the boot line to its standard input. */
  async function startContainer(id: string, spec: InstanceSpec): Promise<void> {
    const { user, listen } = spec.boot
    const request = { doing: `starting the container of ${user.username}`, image: spec.image, port: listen.port }
    await ask(request, abortSignal => docker.getContainer(id).start({ abortSignal }))
    // Attached after the start: before it, a container that was just stopped may still offer the input of its last
    // run, and the line would be lost. The process waits for its line.
    const input = (await open(`attaching to the container of ${user.username}`, closing, abortSignal =>
      docker.getContainer(id).attach({ stream: true, stdin: true, hijack: true, abortSignal }),
    )) as Duplex
    try {
      const boot = { ...spec.boot, listen: { ...listen, host: '0.0.0.0' } }
      await engine.write('handing over the boot material', input, `${JSON.stringify(boot)}\n`)
    } finally {
      input.on('error', () => {}).destroy()
    }
  }

  async function fromList(found: Docker.ContainerInfo, precisely: boolean): Promise<ObservedInstance | null> {
    const { Labels } = found
    if (!Labels[label.userId] || !Labels[label.generation] || found.State === 'removing') return null
    const ended = !listedAsRunning(found) && found.State !== 'created'
    // A listing tells the exit code only in words and never why; a clean end needs no second look.
    if (precisely || (ended && !found.Status.startsWith('Exited (0)'))) {
      const details = await inspectContainer(found.Id)
      return details && instanceInspected(details, place)
    }
    return instanceListed(found, place)
  }

  /** The engine tells of an end a moment before its own listing knows. */
  async function whenEnded(id: string): Promise<void> {
    for (let look = 0; look < 40; look++) {
      const found = await inspectContainer(id).catch(() => null)
      if (!found?.State.Running) return
      await delay(25)
    }
  }

  return {
    kind: 'docker',

    async ping() {
      // the library's types know no options here
      const version = docker.version as (options: object) => Promise<Docker.DockerVersion>
      const request = { doing: 'asking for its version', timeoutMs: pingTimeoutMs }
      const found = await ask(request, abortSignal => version.call(docker, { abortSignal }))
      return { version: found.Version }
    },

    async hostMemoryMb() {
      // the library's types know no options here
      const info = docker.info as (options: object) => Promise<{ MemTotal: number }>
      const request = { doing: 'asking for its memory', timeoutMs: readTimeoutMs }
      const { MemTotal } = await ask(request, abortSignal => info.call(docker, { abortSignal }))
      return Math.floor(MemTotal / 1_048_576)
    },

    async hasImage(image) {
      try {
        await ask({ doing: `looking at the image ${image}`, timeoutMs: readTimeoutMs, image }, abortSignal =>
          docker.getImage(image).inspect({ abortSignal } as Docker.ImageInspectOptions),
        )
        return true
      } catch (error) {
        if (error instanceof RuntimeError && error.kind === 'image-missing') return false
        throw error
      }
    },

    async list(userId) {
      const listed = await listContainers(userId)
      const found = await Promise.all(listed.map(one => fromList(one, userId !== undefined)))
      return found.filter(instance => instance !== null)
    },

    async start(spec) {
      const { user } = spec.boot
      const network = networks.ensure(user)
      // at once: making the container needs the network's name, not the network
      const [networkMade, containerMade] = await Promise.allSettled([network, ensureContainer(spec, network)])
      try {
        if (containerMade.status === 'rejected') throw containerMade.reason
        if (networkMade.status === 'rejected') throw networkMade.reason
        let { id, running } = containerMade.value
        try {
          if (!running) await startContainer(id, spec)
        } catch (error) {
          if (!isWithoutNetwork(error)) throw error
          // somebody removed the network while the container was stopped, and the new one has another id
          await removeContainer(id)
          id = (await ensureContainer(spec, network)).id
          await startContainer(id, spec)
        }
        const found = await inspectContainer(id)
        if (!found)
          throw new RuntimeError(
            'refused',
            `The container of ${user.username} was removed by somebody else while it started. Try again.`,
          )
        return instanceInspected(found, place)
      } catch (error) {
        try {
          if (containerMade.status === 'fulfilled') await removeContainer(containerMade.value.id)
          await removeNetworkIfUnused(user)
        } catch (leftover) {
          // found again by its label at the next sweep
          log.warn({ error: leftover, username: user.username }, 'fleet.start.leftover')
        }
        throw error
      }
    },

    async stop(id, graceSeconds) {
      try {
        await ask(
          { doing: `stopping the container ${id}`, timeoutMs: graceSeconds * 1000 + readTimeoutMs },
          abortSignal => docker.getContainer(id).stop({ t: graceSeconds, abortSignal } as Docker.ContainerStopOptions),
        )
      } catch (error) {
        // 304: stopped already
        if (!isGone(error) && engineStatus(error) !== 304) throw error
      }
    },

    async remove(id) {
      const found = await inspectContainer(id)
      if (!found) return
      if (!ownership.isOurs(found.Config.Labels))
        throw new RuntimeError('refused', `The container ${id} belongs to another installation and is left alone.`)
      await removeContainer(found.Id)
      const { [label.userId]: userId, [label.username]: username } = found.Config.Labels
      if (userId && username) await removeNetworkIfUnused({ id: userId, username })
    },

    async tidy() {
      await networks.tidy(async () => new Set((await listContainers()).map(({ Labels }) => Labels[label.userId])))
    },

    async logs(id, { tail, follow, signal }) {
      const container = docker.getContainer(id)
      try {
        if (follow) {
          const stream = await open('following a log', signal, abortSignal =>
            container.logs({ follow: true, stdout: true, stderr: true, tail, abortSignal }),
          )
          return untilAborted(demultiplex(stream as AsyncIterable<Uint8Array>), signal)
        }
        const text = await ask({ doing: 'reading a log', timeoutMs: readTimeoutMs }, abortSignal =>
          container.logs({ follow: false, stdout: true, stderr: true, tail, abortSignal }),
        )
        // an empty log comes as an empty string
        return demultiplex(asyncOf([Buffer.from(text)]))
      } catch (error) {
        if (isGone(error)) return asyncOf([])
        throw error
      }
    },

    watch(changed, signal) {
      const until = AbortSignal.any([signal, closing])
      const filters = {
        type: ['container'],
        label: ownership.filter(),
        // "die" comes with every end; a start by a foreign hand is found by the next sweep
        event: ['die', 'oom', 'destroy', 'pause', 'unpause'],
      }
      const run = async () => {
        for (let first = true; !until.aborted; first = false) {
          try {
            const stream = await open('following its events', until, abortSignal =>
              docker.getEvents({ filters, abortSignal } as Docker.GetEventsOptions),
            )
            // while nobody listened anything may have happened
            if (!first) changed(null)
            for await (const line of lines(stream as AsyncIterable<Uint8Array>)) {
              const { id, Action, Actor } = JSON.parse(line) as EngineEvent
              const userId = Actor?.Attributes?.[label.userId] ?? null
              if (Action === 'die' && id) void whenEnded(id).finally(() => changed(userId))
              else changed(userId)
            }
          } catch (error) {
            if (!until.aborted) log.warn({ error }, 'fleet.engine.events-lost')
          }
          if (!until.aborted) await delay(1_000, undefined, { signal: until, ref: false }).catch(() => {})
        }
      }
      void run()
    },

    async close() {
      engine.close()
    },
  }
}

type EngineEvent = { id?: string; Action?: string; Actor?: { Attributes?: Record<string, string> } }

async function* asyncOf<T>(values: T[]): AsyncGenerator<T> {
  yield* values
}

/** Ends quietly, rather than with an error, when the reader has had enough. */
async function* untilAborted<T>(source: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  try {
    yield* source
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

async function* lines(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of chunks) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split('\n')
    rest = parts.pop() ?? ''
    yield* parts.filter(part => part.trim() !== '')
  }
}
