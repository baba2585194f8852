import { createPublicKey, type JsonWebKey, type KeyObject, verify } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createInterface } from 'node:readline'

/** The door of an instance, for what stands in its place: the boot line, and the signed statement that each request needs. */

export type Boot = {
  user: { id: string; username: string }
  generation: number
  listen: { host: string; port: number }
  statementKeys: (JsonWebKey & { kid: string })[]
}

export type Door = {
  host: string
  port: number
  /** Answers what the control plane asks of any instance: `GET /healthz` and `POST /control/*`. @returns false: it was not that */
  answers(request: IncomingMessage, response: ServerResponse): boolean
  /** Checks the statement as a real instance does: once in full, then by a look-up while it lasts. */
  admits(request: IncomingMessage): boolean
}

/** @param port - where to listen, and that everybody may come in, when the process was started without a boot line */
export async function openDoor(port: number): Promise<Door> {
  if (process.env.SDP_BOOT !== 'stdin') return { host: '127.0.0.1', port, answers: () => false, admits: () => true }
  const boot = JSON.parse(await firstLine()) as Boot
  const audience = `instance:${boot.user.id}:${boot.generation}`
  const keys = new Map<string, KeyObject>(
    boot.statementKeys.map(jwk => [jwk.kid, createPublicKey({ key: jwk, format: 'jwk' })]),
  )
  const verifiedUntil = new Map<string, number>()
  const health = { status: 'ok', audience, version: 'bench', uptimeSeconds: 1, sessions: 0 }
  const reports: Record<string, unknown> = {
    '/control/sessions': { sessions: [] },
    '/control/usage': { epoch: boot.user.id, tools: [] },
  }
  const connection = { state: 'connected', scopes: [], reasonCode: null, reason: null }
  return {
    ...boot.listen,
    answers({ url }, response) {
      const body = url === '/healthz' ? health : url?.startsWith('/control/') ? (reports[url] ?? connection) : undefined
      if (body) response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body))
      return body !== undefined
    },
    admits({ headers }) {
      const statement = headers.authorization?.slice('Bearer '.length) ?? ''
      const until = verifiedUntil.get(statement)
      if (until !== undefined) return until > Date.now()
      const [head = '', payload = '', signature = ''] = statement.split('.')
      const { kid } = parse(head) as { kid?: string }
      const claims = parse(payload) as { aud?: string; exp?: number }
      const key = keys.get(kid ?? '')
      if (!key || claims.aud !== audience) return false
      if (!verify(null, Buffer.from(`${head}.${payload}`), key, Buffer.from(signature, 'base64url'))) return false
      verifiedUntil.set(statement, (claims.exp ?? 0) * 1000)
      return true
    },
  }
}

function parse(part: string): unknown {
  try {
    return JSON.parse(Buffer.from(part, 'base64url').toString())
  } catch {
    return {}
  }
}

async function firstLine(): Promise<string> {
  for await (const line of createInterface({ input: process.stdin })) return line
  throw new Error('no boot line came')
}
