import { startSimulator } from './simulator.ts'

// SDP_SIMULATOR_HOST          address to listen on (127.0.0.1)
// SDP_SIMULATOR_PORT          port (3460)
// SDP_SIMULATOR_PUBLIC_HOST   host name clients use, when it is another
// SDP_SIMULATOR_STATE_FILE    JSON file that keeps the state between runs
// SDP_SIMULATOR_REDIRECT_URIS comma-separated redirect URIs of the organisation's server client
const { env } = process

const simulator = await startSimulator({
  host: env.SDP_SIMULATOR_HOST || '127.0.0.1',
  port: Number(env.SDP_SIMULATOR_PORT || 3460),
  publicHost: env.SDP_SIMULATOR_PUBLIC_HOST || undefined,
  stateFile: env.SDP_SIMULATOR_STATE_FILE || undefined,
  redirectUris: env.SDP_SIMULATOR_REDIRECT_URIS?.split(',')
    .map(uri => uri.trim())
    .filter(Boolean),
})
process.stdout.write(`simulator listening on ${simulator.url}\n`)
// a parent that waits over IPC is told, and takes us along when it ends
process.send?.('listening')

for (const signal of ['SIGINT', 'SIGTERM', 'disconnect'] as const) {
  process.once(signal, () => {
    void simulator.close().then(() => process.exit(0))
  })
}
