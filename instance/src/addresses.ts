import { BlockList, isIPv4, isIPv6 } from 'node:net'

/**
 * What control plane and instance agree on about addresses: which may be called on behalf of a user. Pure; sends
 * nothing. Ranges: IANA special-purpose address registries (RFC 6890 and its updates).
 */

/**
 * - `public`: anybody's to call
 * - `private`: loopback, private and shared networks; only for hosts an operator allowed
 * - `never`: link-local with the clouds' metadata services, multicast, unspecified, reserved; no setting allows them
 */
export type AddressKind = 'public' | 'private' | 'never'

/** Made when the first address is looked at: the list is a native object, which no snapshot can hold (start.ts). */
const ranges = (list: string[]): Pick<BlockList, 'check'> => {
  let blocks: BlockList | undefined
  return {
    check(address: string, family: 'ipv4' | 'ipv6' = 'ipv4') {
      blocks ??= blockList(list)
      return blocks.check(address, family)
    },
  } as Pick<BlockList, 'check'>
}

function blockList(list: string[]): BlockList {
  const blocks = new BlockList()
  for (const range of list) {
    const [network, bits] = range.split('/') as [string, string]
    blocks.addSubnet(network, Number(bits), isIPv4(network) ? 'ipv4' : 'ipv6')
  }
  return blocks
}

const never = ranges([
  ...['0.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '240.0.0.0/4'],
  // metadata services outside of link-local: Alibaba Cloud, Oracle Cloud, AWS over IPv6
  ...['100.100.100.200/32', '192.0.0.192/32', 'fd00:ec2::/32'],
  ...['::/128', 'fe80::/10', 'ff00::/8', '2001::/32'],
])
const notPublic = ranges([
  ...['10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '172.16.0.0/12', '192.0.0.0/24', '192.0.2.0/24'],
  ...['192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24'],
  ...['::1/128', 'fc00::/7', '2001:db8::/32', '3fff::/20', '64:ff9b:1::/48'],
])
const globalUnicast = ranges(['2000::/3'])
/** IPv6 ranges whose addresses stand for an IPv4 address: mapped, NAT64, 6to4; first bit of that address. */
const embedding = [
  { within: ranges(['::ffff:0:0/96', '64:ff9b::/96']), firstGroup: 6 },
  { within: ranges(['2002::/16']), firstGroup: 1 },
]

/**
 * One spelling for each address: an IPv4 address mapped into IPv6 becomes plain, brackets and zones go.
 * @returns undefined for what is no address
 */
export function plainAddress(text: string): string | undefined {
  const bare = text.replace(/^\[|\]$/g, '').replace(/%.*$/, '')
  if (isIPv4(bare)) return bare
  if (!isIPv6(bare)) return undefined
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(bare)?.[1]
  if (mapped) return mapped
  const groups = ipv6Groups(bare)
  return groups.slice(0, 5).every(group => group === 0) && groups[5] === 0xffff ? ipv4At(groups, 6) : bare.toLowerCase()
}

/** @param text - an IPv4 or IPv6 address; anything else is `never` */
export function addressKind(text: string): AddressKind {
  const address = plainAddress(text)
  if (address === undefined) return 'never'
  if (isIPv4(address)) return never.check(address) ? 'never' : notPublic.check(address) ? 'private' : 'public'
  for (const { within, firstGroup } of embedding)
    if (within.check(address, 'ipv6')) return addressKind(ipv4At(ipv6Groups(address), firstGroup))
  if (never.check(address, 'ipv6')) return 'never'
  if (notPublic.check(address, 'ipv6')) return 'private'
  return globalUnicast.check(address, 'ipv6') ? 'public' : 'never'
}

/**
 * Whether an upstream may be called at this address.
 * @param host - the name or address that was asked for
 * @param allowedHosts - names an operator allowed on private addresses; `*.corp.example` means every name below it
 */
export function mayCall(host: string, address: string, allowedHosts: readonly string[]): boolean {
  const kind = addressKind(address)
  return kind === 'public' || (kind === 'private' && matchesHost(host, allowedHosts))
}

/** Whether a host name is in a list of names and of `*.` patterns. */
export function matchesHost(host: string, patterns: readonly string[]): boolean {
  const name = host
    .toLowerCase()
    .replace(/^\[|\]$/g, '')
    .replace(/\.$/, '')
  return patterns.some(pattern => (pattern.startsWith('*.') ? name.endsWith(pattern.slice(1)) : name === pattern))
}

/** The eight 16-bit groups of a valid IPv6 address. */
export function ipv6Groups(address: string): number[] {
  // URL writes any spelling the shortest way, with hexadecimal groups only
  const [left = '', right] = new URL(`http://[${address}]/`).hostname.slice(1, -1).split('::')
  const parse = (part: string) => (part === '' ? [] : part.split(':').map(group => Number.parseInt(group, 16)))
  const [head, tail] = [parse(left), parse(right ?? '')]
  return right === undefined ? head : [...head, ...Array(8 - head.length - tail.length).fill(0), ...tail]
}

function ipv4At(groups: number[], first: number): string {
  return [groups[first]!, groups[first + 1]!].flatMap(group => [group >> 8, group & 0xff]).join('.')
}
