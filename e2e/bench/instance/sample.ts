import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { z } from 'zod'

// The SDK's server as its documentation shows it: one tool, a transport for each session.
const sessions = new Map<string, StreamableHTTPServerTransport>()

function buildServer(): McpServer {
  const server = new McpServer({ name: 'sample', version: '1.0.0' })
  server.registerTool(
    'greet',
    { title: 'Greet', description: 'Greets somebody.', inputSchema: { name: z.string() } },
    ({ name }) => ({ content: [{ type: 'text', text: `Hello, ${name}!` }] }),
  )
  return server
}

createServer(async (request, response) => {
  const known = sessions.get(String(request.headers['mcp-session-id']))
  if (known) return void known.handleRequest(request, response)
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: id => void sessions.set(id, transport),
  })
  await buildServer().connect(transport as Parameters<McpServer['connect']>[0])
  await transport.handleRequest(request, response)
}).listen(Number(process.argv[2]), '0.0.0.0')
