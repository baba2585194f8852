import { createServer } from 'node:net'

/**
 * Whether nobody listens on a port of this machine's loopback address. Only a hint: by the time of its use it may be
 * taken again, which the engine then says.
 */
export function isPortFree(port: number): Promise<boolean> {
  return new Promise(done => {
    const probe = createServer()
    probe.once('error', () => done(false))
    probe.listen({ port, host: '127.0.0.1', exclusive: true }, () => probe.close(() => done(true)))
  })
}
