import { Agent, createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'

/** Where it listens, and the address of the endpoint behind it as a client of it writes it. */
export type KeyAdder = AsyncDisposable & { port: number; url: string }

/**
 * A relay that adds an API key to each request, for programs that cannot send one.
 *
 * Host and Origin go on as they came, except for their port, which is the relay's where it should be the target's: what
 * becomes of a foreign name is for the target to say, and a page of the relay must look like a page of the target.
 *
 * @param target - address of the endpoint
 * @param options.port - the port that Host and Origin name to the target; default that of `target`
 */
export async function startKeyAdder(target: string, key: string, options: { port?: number } = {}): Promise<KeyAdder> {
  const { pathname, hostname, port } = new URL(target)
  const named = String(options.port ?? port)
  // a program under test may hold many streams open beside its calls
  const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY })
  const relay = createServer((incoming, outgoing) => {
    const headers = { ...incoming.headers, authorization: `Bearer ${key}` }
    for (const name of ['host', 'origin'] as const) headers[name] &&= headers[name].replace(/:\d+$/, `:${named}`)
    const { method, url: path } = incoming
    const onward = request({ agent, host: hostname, port, method, path, headers }, answer => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.headers)
      outgoing.flushHeaders()
      answer.pipe(outgoing)
      answer.on('error', () => outgoing.destroy())
    })
    onward.on('error', () => outgoing.destroy())
    outgoing.on('close', () => onward.destroy())
    incoming.pipe(onward)
  })
  await new Promise<void>(listening => relay.listen(0, '127.0.0.1', listening))
  const own = (relay.address() as AddressInfo).port
  return {
    port: own,
    url: `http://127.0.0.1:${own}${pathname}`,
    async [Symbol.asyncDispose]() {
      relay.closeAllConnections()
      await new Promise(closed => relay.close(closed))
      agent.destroy()
    },
  }
}
