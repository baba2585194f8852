import { type LookupAddress, type LookupOptions, lookup as systemLookup } from 'node:dns'
import { isIP, type LookupFunction } from 'node:net'
import { buildConnector } from 'undici'
import { mayCall, plainAddress } from './addresses.ts'

/** The address of an upstream is one that must not be called. Nothing was sent. */
export class UpstreamRefusedError extends Error {
  readonly code = 'ERR_UPSTREAM_REFUSED'
  constructor(host: string, address: string) {
    super(
      `${host} leads to ${address}, which is not a public address. If it is your own installation, the operator adds ${host} to SDP_ALLOWED_UPSTREAM_HOSTS`,
    )
    this.name = 'UpstreamRefusedError'
  }
}

type Lookup = (
  host: string,
  options: LookupOptions & { all: true },
  callback: (error: NodeJS.ErrnoException | null, found: LookupAddress[]) => void,
) => void

export type GuardOptions = {
  /** see `mayCall` */
  allowedHosts: readonly string[]
  connectTimeoutMs: number
  lookup?: Lookup
  /** what connects once an address has passed; takes undici's options */
  build?: (options: buildConnector.BuildOptions) => buildConnector.connector
}

/**
 * A connector for undici that looks at the very address it is about to connect to, so that a name which meant a
 * public server when an admin typed it cannot lead a token into the own network later (DNS rebinding).
 * A name with one forbidden address among its addresses is refused as a whole.
 */
export function guardedConnector(options: GuardOptions): buildConnector.connector {
  const { allowedHosts, connectTimeoutMs, lookup = systemLookup as Lookup, build = buildConnector } = options
  const checkedLookup: LookupFunction = (host, wanted, callback) => {
    lookup(host, { ...wanted, all: true }, (error, found) => {
      if (error) return callback(error, '')
      const refused = found.find(({ address }) => !mayCall(host, address, allowedHosts))
      if (refused) return callback(new UpstreamRefusedError(host, refused.address), '')
      if (wanted.all) callback(null, found)
      else callback(null, found[0]!.address, found[0]!.family)
    })
  }
  const connect = build({
    timeout: connectTimeoutMs,
    allowH2: false,
    lookup: checkedLookup,
  } as buildConnector.BuildOptions)
  return (target, callback) => {
    // what is an address already is never looked up
    const address = isIP(target.hostname.replace(/^\[|\]$/g, '')) ? plainAddress(target.hostname) : undefined
    if (address !== undefined && !mayCall(address, address, allowedHosts))
      return callback(new UpstreamRefusedError(address, address), null)
    connect(target, callback)
  }
}

/**
 * The same for calls that go through an HTTP proxy, which resolves names itself: an address in the URL is checked here,
 * names are the proxy's to judge.
 * @throws UpstreamRefusedError
 */
export function checkLiteralHost(url: URL, allowedHosts: readonly string[]): void {
  const address = plainAddress(url.hostname)
  if (address !== undefined && !mayCall(address, address, allowedHosts))
    throw new UpstreamRefusedError(address, address)
}
