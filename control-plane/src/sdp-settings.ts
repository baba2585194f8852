import { promises as dns } from 'node:dns'
import { setTimeout as delay } from 'node:timers/promises'
import {
  addressKind,
  type DataCenter,
  dataCenterHosts,
  matchesHost,
  mayCall,
  plainAddress,
  type SdpSettings,
} from '@sdp-mcp/instance/contract'
import type { Config } from './config.ts'
import { AppError, type InvalidPart } from './errors.ts'

/** What a user's row says; null means: the control plane's default of the moment. */
export type StoredSdpSettings = {
  dataCenter: DataCenter | null
  portal: string | null
  baseUrl: string | null
  accountsUrl: string | null
}

export type SdpConfig = Pick<Config, 'sdpDefaults' | 'allowInsecureUpstream' | 'allowedUpstreamHosts'>

/** Addresses of a name; empty when they cannot be told at the moment. */
export type Resolve = (host: string) => Promise<string[]>

const resolveTimeoutMs = 3_000

/** Asks the system's resolver. What cannot be told in time is looked at when the instance connects. */
export const resolveHost: Resolve = async host => {
  const asked = dns.lookup(host, { all: true }).catch(() => [])
  const found = await Promise.race([asked, delay(resolveTimeoutMs, [], { ref: false })])
  return found.map(({ address }) => address)
}

/**
 * The settings an instance works with. The user's own come first, then the control plane's; hosts that nobody gave
 * follow from the data center, never from one another (docs/sdp-api.md 1.1).
 */
export function effectiveSdpSettings(
  stored: StoredSdpSettings,
  { sdpDefaults }: SdpConfig,
): Omit<SdpSettings, 'portal'> & { portal: string | null } {
  const dataCenter = stored.dataCenter ?? sdpDefaults.dataCenter
  const hosts = dataCenterHosts[dataCenter]
  return {
    dataCenter,
    portal: stored.portal ?? sdpDefaults.portal,
    baseUrl: stored.baseUrl ?? (sdpDefaults.baseUrlGiven || !stored.dataCenter ? sdpDefaults.baseUrl : hosts.api),
    accountsUrl:
      stored.accountsUrl ??
      (sdpDefaults.accountsUrlGiven || !stored.dataCenter ? sdpDefaults.accountsUrl : hosts.accounts),
  }
}

/**
 * The origin of a URL that an admin typed; a path such as `/app/itdesk` is dropped (docs/sdp-api.md 1.2).
 *
 * The instance looks at the address again with every connection it makes, so that a name that cannot be resolved here
 * and now, or leads elsewhere later, opens nothing.
 * @throws AppError `sdp-settings-refused` unless it is https without credentials and leads to public addresses, or to
 *   private ones of a host in SDP_ALLOWED_UPSTREAM_HOSTS
 */
export async function upstreamOrigin(
  field: 'baseUrl' | 'accountsUrl',
  text: string,
  { allowInsecureUpstream, allowedUpstreamHosts }: SdpConfig,
  resolve: Resolve = async () => [],
): Promise<string> {
  const url = new URL(text)
  const refuse = (detail: string) => {
    const invalid: InvalidPart[] = [{ pointer: `#/sdp/${field}`, detail }]
    return new AppError('sdp-settings-refused', `sdp.${field} ${detail}`, { invalid })
  }
  if (url.username || url.password) throw refuse('must not contain a user name or password. Give only the address.')
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && allowInsecureUpstream))
    throw refuse('must be an https address, for example https://helpdesk.example.com.')
  if (allowInsecureUpstream) return url.origin
  const literal = plainAddress(url.hostname)
  if (literal === undefined && isLocalName(url.hostname) && !matchesHost(url.hostname, allowedUpstreamHosts))
    throw refuse(notPublic(url.hostname))
  const addresses = literal === undefined ? await resolve(url.hostname) : [literal]
  if (!addresses.every(address => mayCall(url.hostname, address, allowedUpstreamHosts)))
    throw refuse(
      addresses.some(address => addressKind(address) === 'never')
        ? 'leads to an address that is never a server, such as link-local or metadata. Give the public address of ServiceDesk Plus.'
        : notPublic(url.hostname),
    )
  return url.origin
}

/** Names that mean this machine or its neighbours, whatever a resolver says of them (RFC 6761, RFC 6762). */
function isLocalName(host: string): boolean {
  return /(^|\.)localhost\.?$|\.(local|internal)\.?$|^[^.]+\.?$/i.test(host)
}

function notPublic(host: string): string {
  return `leads to a private address. Give the public address of ServiceDesk Plus; if it is your own installation, the operator adds ${host} to SDP_ALLOWED_UPSTREAM_HOSTS.`
}
