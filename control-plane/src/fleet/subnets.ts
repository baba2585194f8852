/** A network in CIDR notation as numbers. */
export type Subnet = { address: number; prefix: number }

/** @throws Error when the text is not an IPv4 network such as `10.213.0.0/16` */
export function parseSubnet(text: string): Subnet {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\/(\d{1,2})$/.exec(text)
  const [a, b, c, d, prefix] = (match?.slice(1) ?? []).map(Number)
  if (!match || [a!, b!, c!, d!].some(part => part > 255) || prefix! > 32)
    throw new Error(`"${text}" is not an IPv4 network such as 10.213.0.0/16`)
  const address = ((a! << 24) | (b! << 16) | (c! << 8) | d!) >>> 0
  return { address: (address & mask(prefix!)) >>> 0, prefix: prefix! }
}

export function formatSubnet({ address, prefix }: Subnet): string {
  return `${address >>> 24}.${(address >>> 16) & 255}.${(address >>> 8) & 255}.${address & 255}/${prefix}`
}

/** The prefix of the smallest network with room for `members` addresses beside gateway, network and broadcast; at most /29. */
export function prefixFor(members: number): number {
  return Math.min(29, 32 - Math.ceil(Math.log2(members + 3)))
}

/** Who is on each user's network beside the user's instances: the control plane where it is a container, and its peers. */
export function networkPeers(options: {
  reach: 'loopback' | 'network'
  controlPlaneContainer?: string | undefined
  networkPeers?: readonly string[]
}): string[] {
  if (options.reach === 'loopback') return []
  return [...(options.controlPlaneContainer ? [options.controlPlaneContainer] : []), ...(options.networkPeers ?? [])]
}

/** The prefix of each user's network: room for two generations of the instance, and the peers. */
export function userPrefix(peers: readonly string[]): number {
  return prefixFor(peers.length + 2)
}

/**
 * Tells addresses of containers on users' networks. The gateway of each network, its first address, is the host itself.
 * @param prefix - of the users' networks
 */
export function containerAddresses(pool: Subnet, prefix: number): (address: string) => boolean {
  return text => {
    if (!/^\d+\.\d+\.\d+\.\d+$/.test(text)) return false
    const { address } = parseSubnet(`${text}/32`)
    return overlaps({ address, prefix: 32 }, pool) && (address & ~mask(prefix)) !== 1
  }
}

/**
 * The subnets of a pool in the order a user tries them. Each user begins at a place of its own, so that users
 * created at the same moment seldom meet, and an address just freed is not handed to the next user at once.
 *
 * @param taken - networks in use; subnets that overlap one of them are left out
 */
export function* candidates(pool: Subnet, prefix: number, userId: string, taken: Subnet[] = []): Generator<Subnet> {
  if (prefix < pool.prefix) return
  const count = 2 ** (prefix - pool.prefix)
  const size = 2 ** (32 - prefix)
  const first = Number(BigInt(`0x${userId.replaceAll('-', '')}`) % BigInt(count))
  for (let step = 0; step < count; step++) {
    const candidate = { address: (pool.address + ((first + step) % count) * size) >>> 0, prefix }
    if (!taken.some(other => overlaps(candidate, other))) yield candidate
  }
}

export function overlaps(one: Subnet, other: Subnet): boolean {
  const shorter = mask(Math.min(one.prefix, other.prefix))
  return (one.address & shorter) === (other.address & shorter)
}

function mask(prefix: number): number {
  return prefix === 0 ? 0 : (-1 << (32 - prefix)) >>> 0
}
