import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import type { ClientCapabilities } from '@modelcontextprotocol/sdk/types.js'

/** The official SDK client, connected with an API key. */
export async function connect(
  kind: 'sse' | 'mcp',
  url: string,
  key: string,
  capabilities: ClientCapabilities = {},
): Promise<Client & AsyncDisposable> {
  const headers = { authorization: `Bearer ${key}` }
  const transport =
    kind === 'sse'
      ? new SSEClientTransport(new URL(url), {
          requestInit: { headers },
          // the event stream is opened by another client library, which takes headers this way only
          eventSourceInit: {
            fetch: (input, init) =>
              fetch(input, { ...init, headers: { ...(init?.headers as Record<string, string>), ...headers } }),
          },
        })
      : new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } })
  const client = new Client({ name: 'sdp-mcp-tests', version: '1.0.0' }, { capabilities })
  try {
    await client.connect(transport)
  } catch (error) {
    // the client library hides what the server said
    const said = await fetch(url, {
      headers: { ...headers, accept: 'text/event-stream' },
      signal: AbortSignal.timeout(1_000),
    })
      .then(async response => `${response.status} ${response.ok ? '' : await response.text()}`)
      .catch(String)
    throw new Error(`${url} could not be connected; asked again it said: ${said}`, { cause: error })
  }
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.close() })
}

/** Calls a tool and returns its structured result; a tool error fails the test with the tool's words. */
// biome-ignore lint/suspicious/noExplicitAny: results are read by field
export async function callTool(client: Client, name: string, input: Record<string, unknown> = {}): Promise<any> {
  const result = await client.callTool({ name, arguments: input })
  if (result.isError) throw new Error(`${name} answered: ${JSON.stringify(result.content)}`)
  return result.structuredContent
}
