import { createHash } from 'node:crypto'
import { Agent } from 'node:http'
import type { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { bootVariable } from '@sdp-mcp/instance/contract'
import Docker from 'dockerode'
import type { Logger } from '../log.ts'
import { type EngineRequest, engineStatus, isGone, isWithoutNetwork, toRuntimeError } from './docker-errors.ts'
import { demultiplex } from './docker-logs.ts'
import { createGate } from './gate.ts'
import { type InstanceSpec, limitsKey, type ObservedInstance, type Runtime, RuntimeError } from './runtime.ts'
import { candidates, formatSubnet, networkPeers, parseSubnet, type Subnet, userPrefix } from './subnets.ts'

/** The only importer of dockerode: one hardened container and one bridge network for each user. */

export type DockerRuntimeOptions = {
  /** where the engine listens: `unix:///var/run/docker.sock`, a plain path, or `tcp://host:port` */
  engine?: string
  /** name of this installation; containers of other installations on the same engine are never touched */
  installation: string
  /**
   * `loopback`: the control plane runs on the Docker host; each instance's port is published on 127.0.0.1.
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
  log: Logger
}

const label = {
  installation: 'com.sdp-mcp.installation',
  userId: 'com.sdp-mcp.user-id',
  username: 'com.sdp-mcp.username',
  generation: 'com.sdp-mcp.generation',
  port: 'com.sdp-mcp.port',
  image: 'com.sdp-mcp.image',
  limits: 'com.sdp-mcp.limits',
  configHash: 'com.sdp-mcp.config-hash',
} as const

const defaultEngine = 'unix:///var/run/docker.sock'
const unprivilegedUser = '10001:10001'
// the engine answers a reading call in milliseconds; what changes something may wait for the disk
const readTimeoutMs = 10_000
const changeTimeoutMs = 30_000
const pingTimeoutMs = 3_000
const concurrentCalls = 8
/** a network without containers may belong to a start under way in another control plane; after this age it is a leftover */
const leftoverAgeMs = 120_000

type Owner = { id: string; username: string }

export function createDockerRuntime(options: DockerRuntimeOptions): Runtime {
  const { installation, reach, networkPool, extraHosts = [], log } = options
  const engine = options.engine ?? defaultEngine
  const peers = networkPeers(options)
  if (reach === 'network' && !options.controlPlaneContainer)
    throw new Error('reach "network" needs the name of the control plane’s own container')
  const isRestricted = options.egress === 'restricted'
  if (isRestricted && reach !== 'network') throw new Error('restricted egress needs reach "network"')
  const pool = parseSubnet(networkPool)
  const prefix = userPrefix(peers)
  const agent = new Agent({ keepAlive: true })
  const docker = new Docker({ ...engineAddress(engine), agent } as Docker.DockerOptions)
  const gate = createGate(concurrentCalls)
  const closing = new AbortController()

  /** One call of the engine: bounded in number and time, its failure told as a {@link RuntimeError}. */
  function ask<T>(
    request: Pick<EngineRequest, 'doing' | 'image' | 'port'> & { timeoutMs?: number },
    call: (abortSignal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const timeoutMs = request.timeoutMs ?? changeTimeoutMs
    return gate.run(async () => {
      const signal = AbortSignal.timeout(timeoutMs)
      try {
        // the race: a client that forgets to settle its promise must not hang the fleet
        return await Promise.race([call(signal), whenAborted(signal)])
      } catch (error) {
        throw toRuntimeError(error, { ...request, engine, timeoutMs })
      }
    })
  }

  /** Opens a stream within the time limit; afterwards it lives until `signal` aborts. */
  async function open<T>(doing: string, signal: AbortSignal, call: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const opening = new AbortController()
    const timer = setTimeout(() => opening.abort(new DOMException('timed out', 'TimeoutError')), readTimeoutMs)
    const either = AbortSignal.any([signal, closing.signal, opening.signal])
    try {
      return await Promise.race([call(either), whenAborted(either)])
    } catch (error) {
      throw toRuntimeError(error, { doing, engine, timeoutMs: readTimeoutMs })
    } finally {
      clearTimeout(timer)
    }
  }

  const networkName = (user: Owner) => `sdp-mcp-${installation}-${user.username}`
  const ours = (labels: Record<string, string> | undefined) => labels?.[label.installation] === installation

  /** What the engine is told to create. Anything here shows in `docker inspect`: nothing secret may enter. */
  function definition(spec: InstanceSpec): Docker.ContainerCreateOptions {
    const { user, generation, listen } = spec.boot
    const portKey = `${listen.port}/tcp`
    const body: Docker.ContainerCreateOptions = {
      Image: spec.image,
      User: unprivilegedUser,
      Env: [`${bootVariable}=stdin`],
      Tty: false,
      OpenStdin: true,
      StdinOnce: true,
      AttachStdin: true,
      AttachStdout: false,
      AttachStderr: false,
      ...(reach === 'loopback' ? { ExposedPorts: { [portKey]: {} } } : {}),
      HostConfig: {
        NetworkMode: networkName(user),
        ...(reach === 'loopback'
          ? { PortBindings: { [portKey]: [{ HostIp: '127.0.0.1', HostPort: String(listen.port) }] } }
          : {}),
        ExtraHosts: [...extraHosts],
        // Names of the world are the proxy's to resolve. The engine's own server still answers for names of the user's
        // network, and asks for others here, where nobody is: older engines would ask the host's resolver, which leads out.
        ...(isRestricted ? { Dns: ['127.0.0.1'] } : {}),
        ReadonlyRootfs: true,
        Tmpfs: { '/tmp': 'rw,noexec,nosuid,nodev,size=32m,mode=1777' },
        CapDrop: ['ALL'],
        SecurityOpt: ['no-new-privileges:true'],
        Privileged: false,
        IpcMode: 'private',
        PidsLimit: spec.limits.pids,
        Memory: spec.limits.memoryMb * 1024 * 1024,
        // equal to Memory: no swap on top
        MemorySwap: spec.limits.memoryMb * 1024 * 1024,
        OomKillDisable: false,
        NanoCpus: Math.round(spec.limits.cpus * 1e9),
        Ulimits: [
          // a memory dump would hold tokens
          { Name: 'core', Soft: 0, Hard: 0 },
          { Name: 'nofile', Soft: 8192, Hard: 8192 },
        ],
        Init: true,
        LogConfig: { Type: 'json-file', Config: { 'max-size': '5m', 'max-file': '3' } },
        // the fleet owns restarts; two owners would fight
        RestartPolicy: { Name: 'no' },
      },
    }
    const configHash = createHash('sha256').update(JSON.stringify(body)).digest('hex').slice(0, 16)
    body.Labels = {
      ...networkLabels(user),
      [label.generation]: String(generation),
      [label.port]: String(listen.port),
      [label.image]: spec.image,
      [label.limits]: limitsKey(spec.limits),
      [label.configHash]: configHash,
    }
    return body
  }

  const networkLabels = (user: Owner) => ({
    [label.installation]: installation,
    [label.userId]: user.id,
    [label.username]: user.username,
  })

  /** The user's network exists and the peers are on it. */
  async function ensureNetwork(user: Owner): Promise<void> {
    await createNetwork(user)
    await Promise.all(peers.map(peer => connectPeer(networkName(user), peer)))
  }

  async function createNetwork(user: Owner): Promise<void> {
    const name = networkName(user)
    let subnets = candidates(pool, prefix, user.id)
    // the first overlap makes us ask which are taken: most starts need no such question
    let asked = false
    for (let attempt = 0; attempt < 20; attempt++) {
      const { value: subnet, done } = subnets.next()
      if (done) break
      try {
        await ask({ doing: `creating the network ${name}` }, abortSignal =>
          docker.createNetwork({
            Name: name,
            Driver: 'bridge',
            // engines before 25 allow two networks of one name without it
            CheckDuplicate: true,
            Internal: isRestricted,
            // without an address of the host on it, not even the host is reached
            ...(isRestricted ? { Options: { 'com.docker.network.bridge.inhibit_ipv4': 'true' } } : {}),
            Attachable: false,
            EnableIPv6: false,
            IPAM: { Driver: 'default', Config: [{ Subnet: formatSubnet(subnet) }] },
            Labels: networkLabels(user),
            abortSignal,
          } as Docker.NetworkCreateOptions),
        )
        return
      } catch (error) {
        if (error instanceof RuntimeError && error.kind === 'network-exhausted') {
          if (!asked) {
            asked = true
            subnets = candidates(pool, prefix, user.id, await takenSubnets())
          }
          continue
        }
        if (engineStatus(error) !== 409) throw error
        if (await networkIsOf(user)) return
      }
    }
    throw new RuntimeError(
      'network-exhausted',
      `No subnet of SDP_INSTANCE_NETWORK_POOL (${networkPool}) is free for ${name}. Give the pool a larger network that nothing else uses.`,
    )
  }

  /** Whether the network of that name is this user's; a leftover of a removed user of the same name is removed. */
  async function networkIsOf(user: Owner): Promise<boolean> {
    const name = networkName(user)
    const found = await inspectNetwork(name)
    if (!found) return false
    if (!ours(found.Labels))
      throw new RuntimeError(
        'refused',
        `A Docker network named ${name} exists that is not ours. Remove it with: docker network rm ${name}`,
      )
    // one from before SDP_EGRESS was changed is made anew; who was on it is replaced for the same reason
    if (found.Labels?.[label.userId] === user.id && found.Internal === isRestricted) return true
    await removeNetwork(found.Id)
    return false
  }

  async function takenSubnets(): Promise<Subnet[]> {
    const networks = await ask({ doing: 'listing the networks', timeoutMs: readTimeoutMs }, abortSignal =>
      docker.listNetworks({ abortSignal } as Docker.NetworkListOptions),
    )
    return networks
      .flatMap(network => network.IPAM?.Config ?? [])
      .flatMap(({ Subnet }) => (Subnet?.includes('.') ? [parseSubnet(Subnet)] : []))
  }

  async function inspectNetwork(name: string): Promise<Docker.NetworkInspectInfo | null> {
    try {
      return await ask({ doing: `looking at the network ${name}`, timeoutMs: readTimeoutMs }, () =>
        docker.getNetwork(name).inspect(),
      )
    } catch (error) {
      if (isGone(error)) return null
      throw error
    }
  }

  async function connectPeer(network: string, peer: string): Promise<void> {
    try {
      await ask({ doing: `connecting ${peer} to the network ${network}` }, abortSignal =>
        docker.getNetwork(network).connect({ Container: peer, abortSignal } as Docker.NetworkConnectOptions),
      )
    } catch (error) {
      if (/already exists in network/i.test(String((error as Error).message))) return
      throw error
    }
  }

  /** Removes a network after everything that still hangs on it is disconnected. */
  async function removeNetwork(id: string): Promise<void> {
    for (let attempt = 0; attempt < 30; attempt++) {
      if (attempt > 1) await delay(100)
      try {
        await ask({ doing: `removing the network ${id}` }, abortSignal => docker.getNetwork(id).remove({ abortSignal }))
        return
      } catch (error) {
        if (isGone(error)) return
        // 403: something is still connected
        if (engineStatus(error) !== 403) throw error
        const found = await inspectNetwork(id)
        await Promise.all(
          Object.keys(found?.Containers ?? {}).map(Container =>
            ask({ doing: `disconnecting ${Container} from the network ${id}` }, abortSignal =>
              docker.getNetwork(id).disconnect({ Container, Force: true, abortSignal }),
            ).catch(error => {
              // somebody else is just removing it
              if (!isGone(error) && !/marked for removal|not connected/i.test(error.message)) throw error
            }),
          ),
        )
      }
    }
    throw new RuntimeError('refused', `The Docker network ${id} stays in use. Remove it with: docker network rm ${id}`)
  }

  /** Removes the user's network unless one of the user's containers, running or not, still needs it. */
  async function removeNetworkIfUnused(user: Owner): Promise<void> {
    if ((await listContainers(user.id)).length > 0) return
    const found = await inspectNetwork(networkName(user))
    if (found && ours(found.Labels) && found.Labels?.[label.userId] === user.id) await removeNetwork(found.Id)
  }

  function listContainers(userId?: string): Promise<Docker.ContainerInfo[]> {
    const filters = {
      label: [`${label.installation}=${installation}`, ...(userId ? [`${label.userId}=${userId}`] : [])],
    }
    return ask({ doing: 'listing the containers', timeoutMs: readTimeoutMs }, abortSignal =>
      docker.listContainers({ all: true, filters, abortSignal } as Docker.ContainerListOptions),
    )
  }

  async function inspect(id: string): Promise<Docker.ContainerInspectInfo | null> {
    try {
      return await ask({ doing: `looking at the container ${id}`, timeoutMs: readTimeoutMs }, abortSignal =>
        docker.getContainer(id).inspect({ abortSignal } as Docker.ContainerInspectOptions),
      )
    } catch (error) {
      if (isGone(error)) return null
      throw error
    }
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
    const name = `${networkName(user)}-${generation}`
    const body = definition(spec)
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
      const found = await inspect(name)
      if (!found) continue
      if (!ours(found.Config.Labels))
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
    const input = (await open(`attaching to the container of ${user.username}`, closing.signal, abortSignal =>
      docker.getContainer(id).attach({ stream: true, stdin: true, hijack: true, abortSignal }),
    )) as Duplex
    try {
      const boot = { ...spec.boot, listen: { ...listen, host: '0.0.0.0' } }
      await writeAndEnd(input, `${JSON.stringify(boot)}\n`)
    } finally {
      input.on('error', () => {}).destroy()
    }
  }

  async function writeAndEnd(stream: Duplex, text: string): Promise<void> {
    const signal = AbortSignal.timeout(readTimeoutMs)
    try {
      await Promise.race([
        whenAborted(signal),
        new Promise<void>((done, failed) => {
          stream.once('error', failed)
          // Handed to the engine's socket, which delivers it even if we leave now. The engine keeps its side open for as
          // long as the container runs, so there is no later sign to wait for.
          stream.once('finish', done)
          stream.end(text)
        }),
      ])
    } catch (error) {
      throw toRuntimeError(error, { doing: 'handing over the boot material', engine, timeoutMs: readTimeoutMs })
    }
  }

  function address(ports: { port: string | undefined; networks: Record<string, { IPAddress: string }> | undefined }) {
    if (reach === 'loopback') return `http://127.0.0.1:${ports.port}`
    const ip = Object.entries(ports.networks ?? {}).find(([name]) => name.startsWith(`sdp-mcp-${installation}-`))?.[1]
    return ip?.IPAddress ? `http://${ip.IPAddress}:${ports.port}` : null
  }

  function fromInspect(found: Docker.ContainerInspectInfo): ObservedInstance {
    const { Labels } = found.Config
    const { State } = found
    const ended = !State.Running && State.Status !== 'created'
    return {
      id: found.Id,
      userId: Labels[label.userId] ?? '',
      generation: Number(Labels[label.generation]),
      image: Labels[label.image] ?? found.Config.Image,
      limits: Labels[label.limits] ?? null,
      running: State.Running,
      address: State.Running ? address({ port: Labels[label.port], networks: found.NetworkSettings.Networks }) : null,
      exit: ended ? { code: State.ExitCode, outOfMemory: State.OOMKilled, at: instant(State.FinishedAt) } : null,
      startedAt: instant(State.StartedAt),
    }
  }

  async function fromList(found: Docker.ContainerInfo, precisely: boolean): Promise<ObservedInstance | null> {
    const { Labels } = found
    if (!Labels[label.userId] || !Labels[label.generation] || found.State === 'removing') return null
    const running = found.State === 'running' || found.State === 'paused' || found.State === 'restarting'
    // A listing tells the exit code only in words and never why; a clean end needs no second look.
    if (precisely || (!running && found.State !== 'created' && !found.Status.startsWith('Exited (0)'))) {
      const details = await inspect(found.Id)
      return details && fromInspect(details)
    }
    return {
      id: found.Id,
      userId: Labels[label.userId] ?? '',
      generation: Number(Labels[label.generation]),
      image: Labels[label.image] ?? found.Image,
      limits: Labels[label.limits] ?? null,
      running,
      address: running ? address({ port: Labels[label.port], networks: found.NetworkSettings?.Networks }) : null,
      exit: running || found.State === 'created' ? null : { code: 0, outOfMemory: false, at: null },
      startedAt: null,
    }
  }

  /** The engine tells of an end a moment before its own listing knows. */
  async function whenEnded(id: string): Promise<void> {
    for (let look = 0; look < 40; look++) {
      const found = await inspect(id).catch(() => null)
      if (!found?.State.Running) return
      await delay(25)
    }
  }

  async function connectMissingPeers(networks: Docker.NetworkInspectInfo[]): Promise<void> {
    for (const peer of peers) {
      const found = await inspect(peer)
      if (!found) {
        log.warn({ peer }, 'fleet.network.peer-missing')
        continue
      }
      const joined = new Set(Object.values(found.NetworkSettings.Networks).map(network => network.NetworkID))
      for (const network of networks)
        if (!joined.has(network.Id)) {
          await connectPeer(network.Id, peer)
          log.info({ peer, network: network.Name }, 'fleet.network.peer-connected')
        }
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
      const network = ensureNetwork(user)
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
        const found = await inspect(id)
        if (!found)
          throw new RuntimeError(
            'refused',
            `The container of ${user.username} was removed by somebody else while it started. Try again.`,
          )
        return fromInspect(found)
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
      const found = await inspect(id)
      if (!found) return
      if (!ours(found.Config.Labels))
        throw new RuntimeError('refused', `The container ${id} belongs to another installation and is left alone.`)
      await removeContainer(found.Id)
      const { [label.userId]: userId, [label.username]: username } = found.Config.Labels
      if (userId && username) await removeNetworkIfUnused({ id: userId, username })
    },

    async tidy() {
      const filters = { label: [`${label.installation}=${installation}`] }
      const networks = await ask({ doing: 'listing the networks', timeoutMs: readTimeoutMs }, abortSignal =>
        docker.listNetworks({ filters, abortSignal } as Docker.NetworkListOptions),
      )
      const used = new Set((await listContainers()).map(container => container.Labels[label.userId]))
      const kept: Docker.NetworkInspectInfo[] = []
      for (const network of networks) {
        const age = Date.now() - (instant(network.Created)?.getTime() ?? 0)
        if (used.has(network.Labels?.[label.userId] ?? '') || age < leftoverAgeMs) kept.push(network)
        else {
          await removeNetwork(network.Id)
          log.info({ network: network.Name }, 'fleet.network.leftover-removed')
        }
      }
      await connectMissingPeers(kept)
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
      const until = AbortSignal.any([signal, closing.signal])
      const filters = {
        type: ['container'],
        label: [`${label.installation}=${installation}`],
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
      closing.abort()
      agent.destroy()
    },
  }
}

type EngineEvent = { id?: string; Action?: string; Actor?: { Attributes?: Record<string, string> } }

function engineAddress(engine: string): Record<string, unknown> {
  if (engine.startsWith('/')) return { socketPath: engine, host: undefined, protocol: 'http' }
  const url = new URL(engine)
  if (url.protocol === 'unix:') return { socketPath: url.pathname, host: undefined, protocol: 'http' }
  // the library fills what we leave out from its own reading of the environment: leave nothing out
  return {
    socketPath: undefined,
    host: url.hostname,
    port: Number(url.port || 2375),
    protocol: url.protocol === 'https:' ? 'https' : 'http',
  }
}

/** The engine's "never" is the year 1. */
function instant(text: string | undefined): Date | null {
  const date = text ? new Date(text) : null
  return date && date.getTime() > 0 ? date : null
}

function whenAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, failed) => {
    if (signal.aborted) failed(signal.reason)
    else signal.addEventListener('abort', () => failed(signal.reason), { once: true })
  })
}

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
