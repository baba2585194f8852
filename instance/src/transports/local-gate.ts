import { hash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Gate } from './http.ts'

/**
 * Guards an instance that runs without a control plane: an API key where one is set, and for a loopback address the
 * check that no web page reaches it through a name of its own (DNS rebinding).
 */
export function localGate(options: { apiKey: string | undefined; loopback: boolean }): Gate {
  const wanted = options.apiKey === undefined ? undefined : digest(options.apiKey)
  return async (request: IncomingMessage) => {
    // clients look here for an OAuth server; there is none, so they get a plain 404
    if (/^\/(\.well-known\/|register\b|authorize\b|token\b)/.test(request.url ?? '')) return { purpose: 'nothing' }
    const { host, origin } = request.headers
    if (options.loopback && !isLoopbackHost(host))
      return {
        status: 403,
        code: 'host-refused',
        message: `The Host header names "${String(host).slice(0, 100)}". Use http://127.0.0.1 or http://localhost.`,
      }
    if (origin !== undefined && !(URL.canParse(origin) && isOwnOrigin(new URL(origin).host, host)))
      return { status: 403, code: 'origin-refused', message: 'Requests of web pages from elsewhere are refused.' }
    if (wanted && !matches(givenKey(request), wanted))
      return {
        status: 401,
        code: 'api-key-required',
        message: 'Send the SDP_API_KEY of this instance as "Authorization: Bearer <key>".',
        headers: { 'www-authenticate': 'Bearer realm="sdp-mcp"' },
      }
    return { purpose: 'mcp' }
  }
}

function givenKey(request: IncomingMessage): string | undefined {
  const bearer = /^Bearer (\S+)$/i.exec(request.headers.authorization ?? '')?.[1]
  const header = request.headers['x-api-key']
  return bearer ?? (typeof header === 'string' ? header : undefined)
}

const digest = (text: string) => hash('sha256', text, 'buffer')

function matches(given: string | undefined, wanted: Buffer): boolean {
  return given !== undefined && timingSafeEqual(digest(given), wanted)
}

function isOwnOrigin(originHost: string, host: string | undefined): boolean {
  return originHost === host || isLoopbackHost(originHost)
}

function isLoopbackHost(host: string | undefined): boolean {
  return /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i.test(host ?? '')
}
