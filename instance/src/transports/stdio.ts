import { Console } from 'node:console'
import type { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js'

/**
 * Serves one client on standard input and output, on which nothing but MCP may be written.
 * @returns when the client has closed its end, or is gone
 */
export async function serveStdio(server: McpServer): Promise<void> {
  // a stray console.log of any library would corrupt the protocol
  globalThis.console = new Console(process.stderr)
  const transport = new StdioServerTransport()
  const ended = new Promise<void>(done => {
    process.stdin.once('end', done).once('close', done)
    process.stdout.once('error', () => done())
    transport.onclose = done
  })
  await server.connect(transport)
  await ended
  await server.close()
}
