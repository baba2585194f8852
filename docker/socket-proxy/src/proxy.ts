import { once } from 'node:events'
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import type { Duplex } from 'node:stream'
import { carriesOurLabel, judge, type Policy, type Verdict } from './rules.ts'

const bodyLimitBytes = 256 * 1024

/**
 * Stands between the control plane and the Docker socket, and lets through what the rules allow. What is allowed is told
 * to the engine anew, from what was understood: a body that two programs could read in two ways reaches it in one.
 *
 * @param engine - path of the engine's socket
 * @param log - told of each refusal, a line
 */
export function createSocketProxy(options: { engine: string; policy: Policy; log: (line: string) => void }): Server {
  const { engine, policy, log } = options

  async function decide(incoming: IncomingMessage): Promise<Verdict & { target: string }> {
    const url = URL.parse(incoming.url ?? '/', 'http://engine')
    const raw = (incoming.url ?? '').split('?')[0]!
    // what the parser would tidy up is refused instead
    if (!url || url.pathname !== raw) return { allow: false, why: 'the path is odd', target: '' }
    const text = await readBody(incoming)
    let body: unknown
    try {
      body = text === undefined || text === '' ? undefined : JSON.parse(text)
    } catch {
      return { allow: false, why: 'the body is not JSON', target: '' }
    }
    const target = `${url.pathname}${url.search}`
    const verdict = judge(policy, {
      method: incoming.method ?? '',
      path: url.pathname,
      query: url.searchParams,
      body,
    })
    if (!verdict.allow || !verdict.ours) return { ...verdict, target }
    const { kind, id } = verdict.ours
    const inspected = await ask(kind === 'containers' ? `/containers/${id}/json` : `/networks/${id}`)
    // what does not exist is answered by the engine itself, with its own 404
    if (inspected !== undefined && !carriesOurLabel(policy, inspected))
      return { allow: false, why: 'it belongs to somebody else', target }
    return { ...verdict, target }
  }

  /** @returns undefined when there is no such thing */
  function ask(path: string): Promise<unknown> {
    return new Promise((done, failed) => {
      request({ socketPath: engine, path }, response => {
        const chunks: Buffer[] = []
        response.on('data', chunk => chunks.push(chunk))
        response.on('end', () => {
          if (response.statusCode === 404) return done(undefined)
          try {
            done(JSON.parse(Buffer.concat(chunks).toString('utf8')))
          } catch (error) {
            failed(error)
          }
        })
        response.on('error', failed)
      })
        .on('error', failed)
        .end()
    })
  }

  function refuse(incoming: IncomingMessage, why: string): string {
    log(`refused ${incoming.method} ${(incoming.url ?? '').split('?')[0]!.slice(0, 200)}: ${why}`)
    return JSON.stringify({ message: `sdp-mcp socket proxy: ${why}` })
  }

  async function handle(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const verdict = await decide(incoming)
    if (!verdict.allow) {
      outgoing.writeHead(403, { 'content-type': 'application/json', connection: 'close' })
      outgoing.end(refuse(incoming, verdict.why))
      return
    }
    const body = verdict.body === undefined ? undefined : JSON.stringify(verdict.body)
    const onward = request(
      {
        socketPath: engine,
        method: incoming.method,
        path: verdict.target,
        headers: body ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) } : {},
      },
      response => {
        outgoing.writeHead(response.statusCode ?? 502, response.headers)
        outgoing.flushHeaders()
        response.pipe(outgoing)
        response.on('error', () => outgoing.destroy())
      },
    )
    onward.on('error', () => {
      if (outgoing.headersSent) outgoing.destroy()
      else outgoing.writeHead(502).end(JSON.stringify({ message: 'sdp-mcp socket proxy: the engine does not answer' }))
    })
    outgoing.on('close', () => onward.destroy())
    onward.end(body)
  }

  /** Attaching to a container's standard input leaves HTTP behind. */
  async function hijack(incoming: IncomingMessage, client: Duplex, head: Buffer): Promise<void> {
    client.on('error', () => client.destroy())
    const verdict = await decide(incoming)
    if (!verdict.allow || !/\/attach$/.test(verdict.target.split('?')[0]!)) {
      const body = refuse(incoming, verdict.allow ? 'only attaching leaves HTTP' : verdict.why)
      client.end(
        `HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
      )
      return
    }
    // the client repeats its parameters as a body, which must not be taken for the container's input
    const rest = await withoutBody(client, head, Number(incoming.headers['content-length'] ?? 0))
    const onward = connect(engine)
    onward.on('error', () => client.destroy())
    onward.on('close', () => client.destroy())
    client.on('close', () => onward.destroy())
    onward.write(
      `POST ${verdict.target} HTTP/1.1\r\nhost: engine\r\nconnection: Upgrade\r\nupgrade: tcp\r\ncontent-length: 0\r\n\r\n`,
    )
    onward.write(rest)
    onward.pipe(client)
    client.pipe(onward)
  }

  const failed = (close: () => void) => (error: unknown) => {
    log(`failed: ${error instanceof Error ? error.message : String(error)}`)
    close()
  }
  const server = createServer({ requestTimeout: 60_000 }, (incoming, outgoing) => {
    handle(incoming, outgoing).catch(failed(() => outgoing.destroy()))
  })
  server.on('upgrade', (incoming, client, head) => {
    hijack(incoming, client, head).catch(failed(() => client.destroy()))
  })
  // following logs and events takes as long as it takes
  server.timeout = 0
  return server
}

/** @returns undefined when there is none */
async function readBody(incoming: IncomingMessage): Promise<string | undefined> {
  if (incoming.headers.upgrade) return undefined
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of incoming) {
    bytes += (chunk as Buffer).length
    if (bytes > bodyLimitBytes) throw new Error('a body is too long')
    chunks.push(chunk as Buffer)
  }
  return Buffer.concat(chunks).toString('utf8')
}

/** Drops the body of a request that asked to leave HTTP. @returns what already came after it */
async function withoutBody(client: Duplex, head: Buffer, bodyBytes: number): Promise<Buffer> {
  if (!(bodyBytes >= 0 && bodyBytes <= bodyLimitBytes)) throw new Error('a body is too long')
  let got = head
  while (got.length < bodyBytes) {
    const chunk: Buffer | null = client.read()
    if (chunk) got = Buffer.concat([got, chunk])
    else if (client.readableEnded || client.destroyed) throw new Error('a client left in the middle of its request')
    else await once(client, 'readable')
  }
  return got.subarray(bodyBytes)
}
