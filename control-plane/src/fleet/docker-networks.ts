import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from '../log.ts'
import { type Docker, type DockerEngine, readTimeoutMs } from './docker-engine.ts'
import { engineStatus, isGone } from './docker-errors.ts'
import { instant, label, type Owner, type Ownership } from './docker-labels.ts'
import { RuntimeError } from './runtime.ts'
import { candidates, formatSubnet, parseSubnet, type Subnet, userPrefix } from './subnets.ts'

/** One bridge network for each user: their instances and the peers are on it, and nobody else. */
export interface DockerNetworks {
  /** The user's network exists and the peers are on it. */
  ensure(user: Owner): Promise<void>
  /** Removes the user's network, if there is one. */
  remove(user: Owner): Promise<void>
  /**
   * Removes networks that nobody needs, and brings back peers that left.
   * @param owners - ids of the users with containers, running or not
   */
  tidy(owners: () => Promise<ReadonlySet<string | undefined>>): Promise<void>
}

/** a network without containers may belong to a start under way in another control plane; after this age it is a leftover */
const leftoverAgeMs = 120_000

export function createDockerNetworks({
  engine: { docker, ask, inspectContainer },
  ownership,
  networkPool,
  peers,
  isRestricted,
  log,
}: {
  engine: DockerEngine
  ownership: Ownership
  /** subnets are cut from this one, e.g. `10.213.0.0/16`; each has room for two instances and the peers */
  networkPool: string
  /** names of the containers that join each network */
  peers: readonly string[]
  /** whether the networks lead nowhere */
  isRestricted: boolean
  log: Logger
}): DockerNetworks {
  const pool = parseSubnet(networkPool)
  const prefix = userPrefix(peers)

  async function createNetwork(user: Owner): Promise<void> {
    const name = ownership.networkName(user)
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
            Labels: ownership.labels(user),
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
    const name = ownership.networkName(user)
    const found = await inspectNetwork(name)
    if (!found) return false
    if (!ownership.isOurs(found.Labels))
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

  async function connectMissingPeers(networks: Docker.NetworkInspectInfo[]): Promise<void> {
    for (const peer of peers) {
      const found = await inspectContainer(peer)
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
    async ensure(user) {
      await createNetwork(user)
      await Promise.all(peers.map(peer => connectPeer(ownership.networkName(user), peer)))
    },

    async remove(user) {
      const found = await inspectNetwork(ownership.networkName(user))
      if (found && ownership.isOurs(found.Labels) && found.Labels?.[label.userId] === user.id)
        await removeNetwork(found.Id)
    },

    async tidy(owners) {
      const filters = { label: ownership.filter() }
      const networks = await ask({ doing: 'listing the networks', timeoutMs: readTimeoutMs }, abortSignal =>
        docker.listNetworks({ filters, abortSignal } as Docker.NetworkListOptions),
      )
      const used = await owners()
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
  }
}
