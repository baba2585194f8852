import { chmodSync, rmSync } from 'node:fs'
import { createSocketProxy } from './proxy.ts'

/**
 * A filter in front of the Docker socket; see docker/README.md. Environment:
 *   SDP_PROXY_ENGINE          the engine's socket (default /var/run/docker.sock)
 *   SDP_PROXY_LISTEN          the socket to offer (default /run/sdp-mcp/docker.sock)
 *   SDP_INSTALLATION          name of the installation whose things may be touched (default main)
 *   SDP_PROXY_IMAGES          images of instances, whatever their tag, separated by commas (default sdp-mcp/instance)
 *   SDP_PROXY_PEERS           containers that join the users' networks, separated by commas
 */

const list = (text: string) =>
  text
    .split(',')
    .map(part => part.trim())
    .filter(Boolean)
const { env } = process
const listen = env.SDP_PROXY_LISTEN || '/run/sdp-mcp/docker.sock'

const server = createSocketProxy({
  engine: env.SDP_PROXY_ENGINE || '/var/run/docker.sock',
  policy: {
    installation: env.SDP_INSTALLATION || 'main',
    repositories: list(env.SDP_PROXY_IMAGES || 'sdp-mcp/instance'),
    peers: list(env.SDP_PROXY_PEERS || ''),
  },
  log: line => void process.stderr.write(`${new Date().toISOString()} socket-proxy: ${line}\n`),
})
rmSync(listen, { force: true })
server.listen(listen, () => {
  // the folder is shared with the control plane alone, which runs as another user
  chmodSync(listen, 0o666)
  process.stderr.write(`${new Date().toISOString()} socket-proxy: listening at ${listen}\n`)
})
for (const signal of ['SIGTERM', 'SIGINT'] as const)
  process.once(signal, () => {
    server.close()
    server.closeAllConnections()
    process.exit(0)
  })
