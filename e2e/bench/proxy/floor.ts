import { Agent, createServer, request as send } from 'node:http'

// The least a proxy on node:http can do: no authentication, no route, no check, no log. Usage: node floor.ts <port> <upstream port>
const [listen, upstream] = process.argv.slice(2).map(Number)
const agent = new Agent({ keepAlive: true })
createServer((request, response) => {
  const { method, url: path, headers } = request
  const onward = send({ agent, host: '127.0.0.1', port: upstream, method, path, headers }, answer => {
    response.writeHead(answer.statusCode ?? 502, answer.headers)
    response.flushHeaders()
    answer.pipe(response)
  })
  onward.on('error', () => response.destroy())
  response.on('close', () => onward.destroy())
  request.pipe(onward)
}).listen(listen, '127.0.0.1', 16_384)
