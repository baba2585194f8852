import type { IncomingMessage } from 'node:http'
import { type Toolset, toolsets } from '../contract.ts'

/** What a session narrows by itself; it never widens. */
export type SessionWish = { toolsets?: Toolset[]; readOnly?: boolean }

export function header(request: IncomingMessage, name: string): string | undefined {
  const value = request.headers[name]
  return Array.isArray(value) ? value.join(', ') : value
}

export function plainHeaders(request: IncomingMessage): Record<string, string> {
  const plain: Record<string, string> = {}
  // the statement is for this server's gate, not for the tools
  for (const [name, value] of Object.entries(request.headers))
    if (value !== undefined && name !== 'authorization') plain[name] = Array.isArray(value) ? value.join(', ') : value
  return plain
}

export function forwardedPrefix(request: IncomingMessage): string {
  const prefix = header(request, 'x-forwarded-prefix') ?? ''
  return /^(\/[a-z0-9-]+)*$/.test(prefix) ? prefix : ''
}

/** `X-MCP-Toolsets: core,approvals` and `X-MCP-Readonly: true`, or `toolsets=` and `readonly=` in the URL. */
export function readWish(request: IncomingMessage, url: URL): SessionWish | { problem: string } {
  const wish: SessionWish = {}
  const names = header(request, 'x-mcp-toolsets') ?? url.searchParams.get('toolsets') ?? undefined
  if (names !== undefined) {
    const asked = names
      .split(',')
      .map(name => name.trim())
      .filter(Boolean)
    const unknown = asked.filter(name => !toolsets.includes(name as Toolset))
    if (unknown.length > 0)
      return {
        problem: `There is no toolset ${unknown.map(name => `"${name.slice(0, 40)}"`).join(', ')}. Toolsets: ${toolsets.join(', ')}.`,
      }
    wish.toolsets = asked as Toolset[]
  }
  const readOnly = header(request, 'x-mcp-readonly') ?? url.searchParams.get('readonly') ?? undefined
  if (readOnly !== undefined) {
    if (!/^(true|false|1|0)$/i.test(readOnly.trim())) return { problem: 'X-MCP-Readonly is either true or false.' }
    wish.readOnly = /^(true|1)$/i.test(readOnly.trim())
  }
  return wish
}
