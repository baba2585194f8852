import { createServer } from 'node:http'

// The floor: answers every POST as if it were an initialize, and knows nothing else.
createServer(async (request, response) => {
  let body = ''
  for await (const chunk of request) body += chunk
  const result = { protocolVersion: '2025-06-18', capabilities: {}, serverInfo: { name: 'bare', version: '1.0.0' } }
  response.writeHead(200, { 'content-type': 'application/json' })
  response.end(JSON.stringify({ jsonrpc: '2.0', id: body === '' ? null : JSON.parse(body).id, result }))
}).listen(Number(process.argv[2]), '0.0.0.0')
