import { createServer } from 'node:http'
import { createInterface } from 'node:readline'

// In the place of an instance of the process runtime: a GET is a stream without end, a POST is answered after a second.

const boot = await (async () => {
  for await (const line of createInterface({ input: process.stdin })) return JSON.parse(line)
})()
const server = createServer((request, response) => {
  if (request.url === '/healthz')
    response.writeHead(200, { 'content-type': 'application/json' }).end(
      JSON.stringify({
        status: 'ok',
        audience: `instance:${boot.user.id}:${boot.generation}`,
        version: 'test',
        uptimeSeconds: 1,
        sessions: 1,
      }),
    )
  else if (request.method === 'GET')
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: hello\n\n')
  else setTimeout(() => response.end('finished'), 1_000)
})
server.listen(boot.listen.port, boot.listen.host)
process.on('SIGTERM', () => process.exit(0))
