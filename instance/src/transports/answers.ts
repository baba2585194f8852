import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'

/** Answers that need no session: refusals in JSON-RPC, and bodies of JSON. */

export const jsonRpcCodes = { parse: -32700, invalid: -32600, generic: -32000, noSession: -32001 }

export const notFound = { error: 'not-found', message: 'There is nothing here. MCP is served at /mcp and /sse.' }

export function answer(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: OutgoingHttpHeaders = {},
): void {
  const text = JSON.stringify(body)
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(text),
    'cache-control': 'no-store',
    ...headers,
  })
  response.end(text)
}

export function refuse(response: ServerResponse, status: number, code: number, message: string): void {
  answer(response, status, { jsonrpc: '2.0', error: { code, message }, id: null })
}

export function noSession(response: ServerResponse): void {
  refuse(response, 404, jsonRpcCodes.noSession, 'Session not found. It has ended; begin a new one with initialize.')
}

export function idInUse(response: ServerResponse): void {
  refuse(response, 400, jsonRpcCodes.invalid, 'A request with this id is still being answered. Use another id.')
}

export function unavailable(response: ServerResponse, message: string, retryAfterSeconds: number): void {
  response.setHeader('retry-after', retryAfterSeconds)
  refuse(response, 503, jsonRpcCodes.generic, message)
}

export function stoppingNow(response: ServerResponse): void {
  response.setHeader('connection', 'close')
  unavailable(response, 'This instance is being stopped. Connect again in some seconds.', 2)
}

export function allows(request: IncomingMessage, response: ServerResponse, methods: string[]): boolean {
  if (methods.includes(request.method ?? '')) return true
  request.resume()
  response.setHeader('allow', methods.join(', '))
  refuse(response, 405, jsonRpcCodes.generic, `Use ${methods.join(', ')} on this path.`)
  return false
}
