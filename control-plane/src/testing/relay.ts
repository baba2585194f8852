import { createServer, connect as netConnect, type Server, type Socket } from 'node:net'

/** A TCP relay in front of a server, to be cut, shut and frozen by tests. */
export type Relay = {
  port: number
  /** Drops every connection; new ones are taken. */
  cut(): void
  /** Refuses new connections and drops the old ones. */
  shut(): Promise<void>
  /** Takes connections again. */
  reopen(): Promise<void>
  /** Bytes no longer pass, and nobody is told: a network that swallows everything. */
  freeze(): void
  [Symbol.asyncDispose](): Promise<void>
}

export async function openRelay(to: { host: string; port: number }): Promise<Relay> {
  const sockets = new Set<Socket>()
  let server: Server
  let frozen = false
  const listen = (port: number) =>
    new Promise<number>((done, failed) => {
      server = createServer(near => {
        const far = netConnect(to.port, to.host)
        for (const [one, other] of [
          [near, far],
          [far, near],
        ] as const) {
          sockets.add(one)
          one.on('data', chunk => {
            if (!frozen) other.write(chunk)
          })
          one.on('error', () => {})
          one.on('close', () => {
            sockets.delete(one)
            other.destroy()
          })
        }
      })
      server.once('error', failed)
      server.listen(port, '127.0.0.1', () => done((server.address() as { port: number }).port))
    })
  const port = await listen(0)
  const relay: Relay = {
    port,
    cut() {
      for (const socket of sockets) socket.destroy()
    },
    async shut() {
      const closed = new Promise(done => server.close(done))
      relay.cut()
      await closed
    },
    async reopen() {
      frozen = false
      if (!server.listening) await listen(port)
    },
    freeze() {
      frozen = true
    },
    [Symbol.asyncDispose]: () => relay.shut(),
  }
  return relay
}
