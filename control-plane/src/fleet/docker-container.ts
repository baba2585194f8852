import { createHash } from 'node:crypto'
import { bootVariable } from '@sdp-mcp/instance/contract'
import type { Docker } from './docker-engine.ts'
import { instant, label, type Ownership } from './docker-labels.ts'
import { type InstanceSpec, limitsKey, type ObservedInstance } from './runtime.ts'

/** How instances are told to the engine as containers, and containers read as instances. */

export type ContainerPlace = {
  ownership: Ownership
  /** whether the control plane runs on the engine's host, or is a container on the networks of instances */
  reach: 'loopback' | 'network'
  /** lines for /etc/hosts of instances */
  extraHosts: readonly string[]
  isRestricted: boolean
  /** whether an address is one of this machine's own */
  isOwnAddress: (address: string) => boolean
}

const unprivilegedUser = '10001:10001'

/** What the engine is told to create. Anything here shows in `docker inspect`: nothing secret may enter. */
export function containerDefinition(
  spec: InstanceSpec,
  { ownership, reach, extraHosts, isRestricted }: ContainerPlace,
): Docker.ContainerCreateOptions {
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
      NetworkMode: ownership.networkName(user),
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
    ...ownership.labels(user),
    [label.generation]: String(generation),
    [label.port]: String(listen.port),
    [label.image]: spec.image,
    [label.limits]: limitsKey(spec.limits),
    [label.configHash]: configHash,
  }
  return body
}

/**
 * Where the control plane reaches a container. On the engine's own host that is the container's address as well, and the
 * published port only where the engine is elsewhere behind it, as with a virtual machine or without root: there the
 * network's gateway is no address of this machine. The way by the port leads through a proxy of the engine, which takes
 * connections for a container that is gone, opens six files for each, and copies every byte twice.
 */
function address(
  place: ContainerPlace,
  found: { port: string | undefined; networks: Record<string, { IPAddress: string; Gateway: string }> | undefined },
) {
  const on = Object.entries(found.networks ?? {}).find(([name]) => name.startsWith(place.ownership.networkPrefix))?.[1]
  const direct = on?.IPAddress ? `http://${on.IPAddress}:${found.port}` : null
  if (place.reach === 'network') return direct
  return on && place.isOwnAddress(on.Gateway) ? direct : `http://127.0.0.1:${found.port}`
}

/** A container looked at by itself, with every detail. */
export function instanceInspected(found: Docker.ContainerInspectInfo, place: ContainerPlace): ObservedInstance {
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
    address: State.Running
      ? address(place, { port: Labels[label.port], networks: found.NetworkSettings.Networks })
      : null,
    exit: ended ? { code: State.ExitCode, outOfMemory: State.OOMKilled, at: instant(State.FinishedAt) } : null,
    startedAt: instant(State.StartedAt),
  }
}

/** A container as a listing tells it: of one that has ended, a clean end is assumed. */
export function instanceListed(found: Docker.ContainerInfo, place: ContainerPlace): ObservedInstance {
  const { Labels } = found
  const running = listedAsRunning(found)
  return {
    id: found.Id,
    userId: Labels[label.userId] ?? '',
    generation: Number(Labels[label.generation]),
    image: Labels[label.image] ?? found.Image,
    limits: Labels[label.limits] ?? null,
    running,
    address: running ? address(place, { port: Labels[label.port], networks: found.NetworkSettings?.Networks }) : null,
    exit: running || found.State === 'created' ? null : { code: 0, outOfMemory: false, at: null },
    startedAt: null,
  }
}

export function listedAsRunning({ State }: Docker.ContainerInfo): boolean {
  return State === 'running' || State === 'paused' || State === 'restarting'
}
