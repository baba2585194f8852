import type { IncomingMessage, ServerResponse } from 'node:http'
import { BlockList, isIP, isIPv6, type Socket } from 'node:net'
import { matchesHost, plainAddress } from '@sdp-mcp/instance/contract'
import type { Config } from './config.ts'
import { AppError } from './errors.ts'
import { containerAddresses, networkPeers, parseSubnet, userPrefix } from './fleet/subnets.ts'
import type { Logger } from './log.ts'
import { writeProblem } from './problem.ts'

/** What a listener lets through before anything else looks at a request. */
export type DoorRules = {
  /** networks in CIDR notation that may come in; empty: everybody */
  allowedNetworks: readonly string[]
  /** networks of the proxies whose X-Forwarded-For is believed */
  trustedProxies: readonly string[]
  /** names, beside localhost and addresses, by which this listener is known; `*.` patterns allowed */
  hosts: readonly string[]
  /** origins of web pages that may call, beside those of this very listener */
  origins: readonly string[]
  /** whether pages of {@link origins} are told so (CORS) */
  cors: boolean
  /** whether an address is that of an instance, which never has business here */
  isInstance: (address: string) => boolean
}

export interface Door {
  /**
   * Whether a connection may stay; to be asked before a byte of it is read. Where the control plane is a container, it sits on
   * the network of each user, and where it listens on all addresses of a host, on the gateway of each: an instance
   * that was taken over would find the admin listener there.
   */
  admits(socket: Socket): boolean
  /** @returns true: the request was answered here, leave it alone */
  stops(request: IncomingMessage, response: ServerResponse): boolean
  /** Address of the client: of the connection, or what a trusted proxy says. */
  addressOf(request: IncomingMessage): string
}

const mostForwardings = 20

type Peer = { address: string; isTrusted: boolean; isAllowed: boolean }

/**
 * Checks, in this order: network address, Host, Origin. A request for `/healthz` is let through by address and name:
 * load balancers ask under names of their own, and the answer tells nothing.
 *
 * Host: a page on another site can reach us through a name of its own that it points at our address (DNS rebinding);
 * its browser then sends that name. A page cannot do so with an address or `localhost` as the name, because these are
 * never looked up where the attacker could answer. So addresses and localhost are taken, and names only if known.
 */
export function createDoor(rules: DoorRules, log: Logger): Door {
  const allowed = networks(rules.allowedNetworks)
  const trusted = networks(rules.trustedProxies)
  const hosts = rules.hosts.map(host => host.toLowerCase())
  const origins = new Set(rules.origins)
  let lastNoticeAt = Number.NEGATIVE_INFINITY
  let unnoticed = 0

  // What does not change with the requests of one connection, or with the few spellings of our own name, is worked out once.
  const peers = new WeakMap<Socket, Peer>()
  const ownHosts = new Set<string>()

  function peerOf({ socket }: IncomingMessage): Peer {
    let peer = peers.get(socket)
    if (!peer) {
      const address = plainAddress(socket.remoteAddress ?? '') ?? ''
      peer = { address, isTrusted: trusted?.(address) ?? false, isAllowed: allowed?.(address) ?? true }
      peers.set(socket, peer)
    }
    return peer
  }

  function addressOf(request: IncomingMessage): string {
    const peer = peerOf(request)
    if (!trusted || !peer.isTrusted) return peer.address
    // from the right: each entry was added by the proxy after it, and is as trustworthy as that one is
    const forwarded = [request.headers['x-forwarded-for']].flat().join(',').split(',').slice(-mostForwardings)
    let client = peer.address
    for (const entry of forwarded.reverse()) {
      const address = plainAddress(entry.trim())
      if (address === undefined) break
      client = address
      if (!trusted(address)) break
    }
    return client
  }

  function refusal(request: IncomingMessage): AppError | undefined {
    const { host, origin } = request.headers
    if (allowed && !(peerOf(request).isTrusted ? allowed(addressOf(request)) : peerOf(request).isAllowed))
      return new AppError(
        'address-refused',
        'Your network address may not use this service. Connect from an allowed network (VPN), or ask the operator to add yours.',
      )
    if (!ownHosts.has(host ?? '') && !learnHost(host))
      return new AppError(
        'host-refused',
        `The Host header names ${JSON.stringify(String(host ?? '').slice(0, 100))}, which is not a name of this server. Use the address you were given; the operator adds further names with SDP_ALLOWED_HOSTS.`,
      )
    // a page that this very listener served, or one that is allowed
    if (origin !== undefined && !isOwnPage(request) && !origins.has(origin.toLowerCase()))
      return new AppError(
        'origin-refused',
        'Web pages of this origin may not call this server. The operator allows origins with SDP_ALLOWED_ORIGINS.',
      )
    return undefined
  }

  function learnHost(host: string | undefined): boolean {
    const isOwn = isOwnHost(host, hosts)
    // a pattern matches any number of names
    if (isOwn && ownHosts.size < 256) ownHosts.add(host!)
    return isOwn
  }

  function notice(code: string, address: string): void {
    const at = performance.now()
    // whoever floods us must not flood the log as well
    if (at - lastNoticeAt < 1000) {
      unnoticed++
      return
    }
    log.warn({ code, address, unnoticed }, 'door.refused')
    lastNoticeAt = at
    unnoticed = 0
  }

  return {
    addressOf,
    admits({ remoteAddress }) {
      const address = plainAddress(remoteAddress ?? '') ?? ''
      if (!rules.isInstance(address)) return true
      notice('instance-refused', address)
      return false
    },
    stops(request, response) {
      if (request.url === '/healthz') return false
      const error = refusal(request)
      if (error) {
        notice(error.code, addressOf(request))
        response.setHeader('connection', 'close')
        writeProblem(response, error)
        request.resume()
        return true
      }
      const { origin } = request.headers
      if (origin === undefined || !rules.cors || !origins.has(origin.toLowerCase())) return false
      response.setHeader('access-control-allow-origin', origin)
      response.setHeader('vary', 'Origin')
      response.setHeader('access-control-expose-headers', 'Mcp-Session-Id, WWW-Authenticate, Retry-After')
      if (request.method !== 'OPTIONS') return false
      response.writeHead(204, {
        'access-control-allow-methods': 'GET, POST, DELETE',
        'access-control-allow-headers':
          'Authorization, X-API-Key, Content-Type, Accept, Mcp-Session-Id, Mcp-Protocol-Version, Last-Event-ID, X-MCP-Toolsets, X-MCP-Readonly, X-SDP-Client-Id, X-SDP-Client-Secret, X-SDP-Base-URL, X-SDP-Instance',
        'access-control-max-age': '600',
      })
      response.end()
      return true
    },
  }
}

/** The doors of both listeners; the names by which they are known follow from what is configured anyway. */
export function createDoors(
  config: Pick<Config, 'doors' | 'publicUrl' | 'instance' | 'runtime'>,
  log: Logger,
): { public: Door; admin: Door } {
  const { trustedProxies, hosts, origins, httpNetworks, adminNetworks } = config.doors
  const known = [new URL(config.publicUrl).hostname, config.instance.controlPlaneContainer, ...hosts]
  const common = {
    isInstance: instanceAddresses(config),
    trustedProxies,
    origins: [config.publicUrl, ...origins],
    hosts: known.filter(name => name !== undefined),
  }
  return {
    public: createDoor({ ...common, allowedNetworks: httpNetworks, cors: true }, log),
    admin: createDoor({ ...common, allowedNetworks: adminNetworks, cors: false }, log),
  }
}

/** Tells addresses of instances, and of what else is on users' networks, from all others. */
export function instanceAddresses({
  instance,
  runtime,
}: Pick<Config, 'instance' | 'runtime'>): (address: string) => boolean {
  if (runtime !== 'docker') return () => false
  return containerAddresses(parseSubnet(instance.networkPool), userPrefix(networkPeers(instance)))
}

/** @returns undefined for an empty list */
function networks(texts: readonly string[]): ((address: string) => boolean) | undefined {
  if (texts.length === 0) return undefined
  const blocks = new BlockList()
  for (const text of texts) {
    const [network, bits] = text.split('/') as [string, string]
    blocks.addSubnet(network, Number(bits), isIPv6(network) ? 'ipv6' : 'ipv4')
  }
  return address => {
    const plain = plainAddress(address)
    return plain !== undefined && blocks.check(plain, isIPv6(plain) ? 'ipv6' : 'ipv4')
  }
}

function isOwnHost(header: string | undefined, hosts: readonly string[]): boolean {
  const name = /^(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?$/i.exec(header ?? '')?.[1]?.toLowerCase()
  if (name === undefined) return false
  return name === 'localhost' || isIP(name.replace(/^\[|\]$/g, '')) > 0 || matchesHost(name, hosts)
}

function isOwnPage({ headers: { origin, host, 'sec-fetch-site': site } }: IncomingMessage): boolean {
  // the form of a page that tells nobody where it stands: the browser hides its origin, and vouches for it here,
  // in a header that no page can set
  return origin === 'null' ? site === 'same-origin' : isSameHost(origin!, host!)
}

function isSameHost(origin: string, host: string): boolean {
  return (
    URL.canParse(origin) &&
    /^https?:$/.test(new URL(origin).protocol) &&
    new URL(origin).host === withoutDefaultPort(origin, host)
  )
}

/** A browser leaves the scheme's own port away in an origin, a proxy may add it in Host. */
function withoutDefaultPort(origin: string, host: string): string {
  return host.toLowerCase().replace(origin.startsWith('https:') ? /:443$/ : /:80$/, '')
}
