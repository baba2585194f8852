import cluster from 'node:cluster'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Server } from 'node:net'
import type { FastifyListenOptions } from 'fastify'
import type { App } from './server.ts'

/**
 * Several listeners on one port, for clients that come all at once, as they do after a restart: libuv takes in one connection
 * for each listener in a turn of the event loop (uv__server_io), so the last of sixty-four that come to a busy server waits
 * for sixty-four turns with the work of all those before it: 100 to 150 ms. The kernel spreads connections over the listeners
 * of a port (SO_REUSEPORT, socket(7)).
 *
 * A worker needs none: its connections come from the primary process, which does nothing else. Elsewhere than on Linux a
 * port is not shared like this, and there is one listener.
 */
const listeners = 8

type Place = { host: string; port: number }

/** @throws Error with code EADDRINUSE when the port is taken, by another process of ours, too */
export async function listenManifold(app: App, { host, port }: Place): Promise<void> {
  if (process.platform !== 'linux' || cluster.isWorker) {
    await app.listen({ host, port })
    return
  }
  // two processes of one user could share the port by mistake, and each would get some of the clients
  if (port !== 0) await mustBeFree({ host, port })
  const others: Server[] = []
  const closed: Promise<unknown>[] = []
  app.addHook('preClose', async () => {
    for (const other of others) closed.push(new Promise(done => other.close(done)))
  })
  // what they took in ends as the app's own connections do
  app.addHook('onClose', async () => void (await Promise.all(closed)))
  await app.listen({ host, port, reusePort: true } as FastifyListenOptions)
  const { address, port: taken } = app.server.address() as AddressInfo
  while (others.length < listeners - 1) {
    // as node:http makes its own
    const other = createServer({ allowHalfOpen: true, noDelay: true })
    other.on('connection', socket => app.server.emit('connection', socket))
    other.listen({ host: address, port: taken, reusePort: true })
    await once(other, 'listening')
    others.push(other)
  }
}

async function mustBeFree(place: Place): Promise<void> {
  const probe = createServer().listen(place)
  await once(probe, 'listening')
  await new Promise(done => probe.close(done))
}
