import { promises as dns } from 'node:dns'
import { createServer, type IncomingMessage } from 'node:http'
import { connect, isIP, type LookupFunction, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { mayCall, plainAddress } from '@sdp-mcp/instance/contract'
import { AppError } from '../errors.ts'
import type { Logger } from '../log.ts'
import { mayReach, parseTarget, type Reach, type Target } from './rules.ts'

/**
 * The only way out for instances on internal networks: an HTTP proxy that makes tunnels (CONNECT) to the hosts of the
 * instance's own user, and to nothing else. It resolves names itself, and connects to an address that it has looked at.
 */
export type Egress = {
  listen(at: { host: string; port: number }): Promise<{ port: number }>
  close(): Promise<void>
}

export type Holder = { userId: string; generation: number }

export type EgressOptions = {
  /** who holds this token; undefined: nobody */
  holderOf(token: string): Promise<Holder | undefined>
  /**
   * Where that instance may go; undefined: it is none of ours any more.
   * @throws AppError `database-unavailable`
   */
  reachOf(holder: Holder): Promise<(Reach & { username: string }) | undefined>
  /** whether an address is that of an instance; nobody else has business here */
  isInstance(address: string): boolean
  /** see `mayCall`; `any`: every address may be called (evaluation and tests) */
  privateHosts: readonly string[] | 'any'
  resolve?: (host: string) => Promise<string[]>
  /** told of each attempt; `target` as far as it could be read */
  done(outcome: EgressOutcome, holder: Holder | undefined, target: Target | undefined): void
  log: Logger
}

export type EgressOutcome = 'opened' | 'unauthorized' | 'malformed' | 'refused' | 'limited' | 'unreachable' | 'failed'

/** An instance keeps up to sixteen connections to each of its two hosts. */
const mostTunnels = 64
const connectTimeoutMs = 8_000
const resolveTimeoutMs = 5_000
const idleTimeoutMs = 10 * 60_000

export function createEgress(options: EgressOptions): Egress {
  const { holderOf, reachOf, isInstance, privateHosts, resolve = systemResolve, done, log } = options
  const sockets = new Set<Duplex>()
  const tunnels = new Map<string, number>()

  const server = createServer({ maxHeaderSize: 8 * 1024, connectionsCheckingInterval: 2_000 }, (_request, response) => {
    response.writeHead(405, { allow: 'CONNECT', connection: 'close' }).end('Only tunnels (CONNECT) are made here.\n')
  })
  server.headersTimeout = 10_000
  server.requestTimeout = 10_000
  server.prependListener('connection', (socket: Socket) => {
    if (!isInstance(plainAddress(socket.remoteAddress ?? '') ?? '')) return void socket.destroy()
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  server.on('connect', (request, client, head) => {
    client.on('error', () => client.destroy())
    tunnel(request, client, head).catch(error => {
      log.warn({ error }, 'egress.failed')
      done('failed', undefined, undefined)
      refuse(client, error instanceof AppError ? error.status : 500, 'The tunnel could not be made. Try again.')
    })
  })

  async function tunnel(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void> {
    const target = parseTarget(request.url ?? '')
    const token = /^Bearer (\S{1,2000})$/.exec(request.headers['proxy-authorization'] ?? '')?.[1]
    const holder = token === undefined ? undefined : await holderOf(token)
    const reach = holder && (await reachOf(holder))
    const end = (outcome: EgressOutcome, status: number, why: string) => {
      done(outcome, holder, target)
      refuse(client, status, why)
    }
    if (!holder || !reach) return end('unauthorized', 407, 'Only running instances of this installation come through.')
    if (!target) return end('malformed', 400, 'Name a host and a port.')
    if (!mayReach(target, reach))
      return end(
        'refused',
        403,
        'This host is none of the user’s. An operator adds hosts with SDP_EGRESS_ALLOWED_HOSTS.',
      )
    const addresses = await within(resolveTimeoutMs, isIP(target.host) ? [target.host] : resolve(target.host))
    if (!addresses || addresses.length === 0) return end('unreachable', 502, 'The name of the host cannot be resolved.')
    if (privateHosts !== 'any' && !addresses.every(address => mayCall(target.host, address, privateHosts)))
      return end('refused', 403, 'The host leads to an address that is not public.')
    const open = tunnels.get(holder.userId) ?? 0
    if (open >= mostTunnels) return end('limited', 429, 'Too many tunnels are open. Try again later.')
    if (client.destroyed) return
    tunnels.set(holder.userId, open + 1)
    const upstream = connect({ ...target, lookup: only(addresses), timeout: connectTimeoutMs })
    sockets.add(upstream)
    upstream.once('close', () => {
      sockets.delete(upstream)
      client.destroy()
      const left = (tunnels.get(holder.userId) ?? 1) - 1
      if (left > 0) tunnels.set(holder.userId, left)
      else tunnels.delete(holder.userId)
    })
    client.once('close', () => upstream.destroy())
    const failed = () => {
      end('unreachable', 502, 'The host does not answer.')
      upstream.destroy()
    }
    upstream.once('error', failed).once('timeout', failed)
    upstream.once('connect', () => {
      upstream.off('error', failed).off('timeout', failed)
      upstream.on('error', () => upstream.destroy())
      for (const socket of [upstream, client as Socket]) socket.setTimeout(idleTimeoutMs, () => socket.destroy())
      done('opened', holder, target)
      client.write('HTTP/1.1 200 Connection established\r\n\r\n')
      if (head.length > 0) upstream.write(head)
      upstream.pipe(client)
      client.pipe(upstream)
    })
  }

  return {
    listen: at =>
      new Promise((ready, failed) => {
        server.once('error', failed)
        server.listen(at, () => ready({ port: (server.address() as { port: number }).port }))
      }),
    async close() {
      const closed = new Promise<void>(done => server.close(() => done()))
      for (const socket of sockets) socket.destroy()
      await closed
    },
  }
}

function refuse(client: Duplex, status: number, why: string): void {
  if (client.destroyed) return
  const extra = status === 407 ? 'proxy-authenticate: Bearer\r\n' : ''
  client.end(
    `HTTP/1.1 ${status} ${status === 403 ? 'Forbidden' : 'Refused'}\r\n${extra}content-type: text/plain; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(why)}\r\nconnection: close\r\n\r\n${why}`,
  )
}

/** A look-up that finds these addresses and no others, whatever the resolver says a moment later. */
function only(addresses: readonly string[]): LookupFunction {
  const found = addresses.map(address => ({ address, family: isIP(address) }))
  return (_host, wanted, callback) => {
    if (wanted.all) callback(null, found)
    else callback(null, found[0]!.address, found[0]!.family)
  }
}

async function systemResolve(host: string): Promise<string[]> {
  return (await dns.lookup(host, { all: true }).catch(() => [])).map(({ address }) => address)
}

/** @returns undefined when it takes too long */
function within<T>(timeoutMs: number, value: T | Promise<T>): Promise<T | undefined> {
  return new Promise((done, failed) => {
    const timer = setTimeout(done, timeoutMs, undefined)
    Promise.resolve(value)
      .then(done, failed)
      .finally(() => clearTimeout(timer))
  })
}
