import { request } from 'undici'

/**
 * Whether an instance serves MCP: `initialize`, `tools/list`, end of session. Its health request says only that the process
 * runs; an image that cannot do its work must be found out before anybody's sessions go there.
 *
 * @param statement - lets us in like a client of the user
 * @throws Error that names the step and what came instead
 */
export async function selfCheck(address: string, statement: string, signal: AbortSignal): Promise<void> {
  let session: string | undefined
  const send = async (method: 'POST' | 'DELETE', body?: object) => {
    const answer = await request(`${address}/mcp`, {
      method,
      signal,
      headersTimeout: 10_000,
      bodyTimeout: 10_000,
      headers: {
        authorization: `Bearer ${statement}`,
        accept: 'application/json, text/event-stream',
        'content-type': 'application/json',
        'mcp-protocol-version': protocolVersion,
        ...(session === undefined ? {} : { 'mcp-session-id': session }),
      },
      ...(body ? { body: JSON.stringify({ jsonrpc: '2.0', ...body }) } : {}),
    })
    const text = await answer.body.text()
    return { ...answer, text }
  }
  const ask = async (id: number, method: string, params: object) => {
    const { statusCode, headers, text } = await send('POST', { id, method, params })
    if (statusCode !== 200) throw new Error(`${method} was answered with HTTP ${statusCode}: ${text.slice(0, 200)}`)
    const answer = resultIn(text, id)
    if (!answer?.result) throw new Error(`${method} was answered without a result: ${text.slice(0, 200)}`)
    return { result: answer.result, headers }
  }
  const clientInfo = { name: 'sdp-mcp-control-plane', version: '1' }
  const begun = await ask(1, 'initialize', { protocolVersion, capabilities: {}, clientInfo })
  session = [begun.headers['mcp-session-id']].flat()[0]
  try {
    await send('POST', { method: 'notifications/initialized' })
    const { result } = await ask(2, 'tools/list', {})
    if (!Array.isArray(result.tools)) throw new Error('tools/list was answered without a list of tools')
  } finally {
    if (session !== undefined) await send('DELETE').catch(() => {})
  }
}

const protocolVersion = '2025-06-18'

type Answer = { id?: unknown; result?: Record<string, unknown> }

/** The answer with that id, from plain JSON or from the events of a stream. */
function resultIn(text: string, id: number): Answer | undefined {
  const parts = text.startsWith('{') ? [text] : [...text.matchAll(/^data: ?(.+)$/gm)].map(([, data]) => data ?? '')
  for (const part of parts) {
    try {
      const answer = JSON.parse(part) as Answer
      if (answer.id === id) return answer
    } catch {
      // a comment or an event of something else
    }
  }
  return undefined
}
