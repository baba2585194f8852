import { fork } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'
import { request as ask } from 'undici'

/**
 * ServiceDesk Plus without latency, in a process of its own: what the simulator has answered once to a read is answered again
 * from memory; everything else goes on to the simulator. So neither the simulator's work nor its place in the client's
 * process is part of what is measured.
 */
export type InstantDesk = {
  url: string
  /** Says where the simulator is; before it nothing is answered. */
  passTo(origin: string): void
  /** Connections so far, and paths with queries since the last look. */
  seen(): Promise<{ connections: number; urls: string[] }>
  close(): Promise<void>
}

type Order = { host: string } | { origin: string } | 'seen'

/** @param host - address to listen at */
export async function startInstantDesk(host: string): Promise<InstantDesk> {
  const child = fork(import.meta.filename, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const gone = once(child, 'exit')
  const answerTo = async (order: Order) => {
    child.send(order)
    const ended = gone.then(([code]) => {
      throw new Error(`The process that stands for ServiceDesk Plus ended with ${code}; what it said stands above.`)
    })
    return (await Promise.race([once(child, 'message'), ended]))[0]
  }
  return {
    url: `http://${host}:${await answerTo({ host })}`,
    passTo: origin => void child.send({ origin } satisfies Order),
    seen: () => answerTo('seen'),
    async close() {
      if (child.connected) child.disconnect()
      await gone
    },
  }
}

type Kept = { headers: IncomingHttpHeaders; body: Buffer }

async function serve(host: string) {
  const kept = new Map<string, Kept>()
  let origin = ''
  let connections = 0
  let urls: string[] = []

  async function pass(request: IncomingMessage, response: ServerResponse, key: string): Promise<void> {
    const { method = 'GET', url, headers } = request
    const sent = await buffer(request)
    const answer = await ask(`${origin}${url}`, {
      method: method as 'GET',
      headers: without(headers, ['host', 'connection', 'transfer-encoding', 'content-length']),
      body: sent.length > 0 ? sent : null,
    })
    const body = Buffer.from(await answer.body.arrayBuffer())
    const told = without(answer.headers, ['connection', 'keep-alive', 'transfer-encoding'])
    const whole = { headers: { ...told, 'content-length': String(body.length) }, body }
    if (method === 'GET' && answer.statusCode === 200) kept.set(key, whole)
    response.writeHead(answer.statusCode, whole.headers).end(body)
  }

  const server = createServer({ keepAliveTimeout: 75_000 }, (request, response) => {
    const { method, url = '', headers } = request
    urls.push(url)
    const key = `${method} ${url} ${headers.authorization}`
    const known = kept.get(key)
    if (known) response.writeHead(200, known.headers).end(known.body)
    else pass(request, response, key).catch(() => response.destroy())
  })
  server.on('connection', () => connections++)
  server.listen(0, host)
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    passTo(simulator: string) {
      origin = simulator
    },
    seen() {
      const seen = { connections, urls }
      urls = []
      return seen
    },
  }
}

function without(headers: IncomingHttpHeaders, names: string[]): IncomingHttpHeaders {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !names.includes(name)))
}

if (import.meta.main && process.send) {
  let desk: Awaited<ReturnType<typeof serve>> | undefined
  process.on('message', async (order: Order) => {
    if (order === 'seen') process.send?.(desk?.seen())
    else if ('origin' in order) desk?.passTo(order.origin)
    else {
      desk = await serve(order.host)
      process.send?.(desk.port)
    }
  })
  // nobody is left to serve
  process.on('disconnect', () => process.exit())
}
