import { matchesHost } from '@sdp-mcp/instance/contract'

/** Where a tunnel leads. */
export type Target = { host: string; port: number }

/** What an instance may reach: the origins of its user's ServiceDesk Plus and accounts server, and what the operator added. */
export type Reach = {
  origins: readonly string[]
  /** host names for HTTPS; `*.` patterns allowed */
  hosts: readonly string[]
}

/**
 * The authority of a CONNECT (RFC 9110, 9.3.6): host and port, nothing else.
 * @returns undefined for what is none; names in lower case, IPv6 addresses without brackets
 */
export function parseTarget(authority: string): Target | undefined {
  const match = /^(\[[0-9a-f:.]{2,45}\]|[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?):(\d{1,5})$/i.exec(authority)
  const port = Number(match?.[3])
  if (!match || port < 1 || port > 65535) return undefined
  return { host: match[1]!.toLowerCase().replace(/^\[|\]$/g, ''), port }
}

export function mayReach({ host, port }: Target, { origins, hosts }: Reach): boolean {
  return origins.some(origin => isAt(origin, host, port)) || (port === 443 && matchesHost(host, hosts))
}

function isAt(origin: string, host: string, port: number): boolean {
  const url = new URL(origin)
  const usual = url.protocol === 'https:' ? 443 : 80
  return url.hostname.replace(/^\[|\]$/g, '') === host && Number(url.port || usual) === port
}
