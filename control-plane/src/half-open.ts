import { open } from 'node:fs/promises'
import type { Server, Socket } from 'node:net'
import { endianness } from 'node:os'
import { ipv6Groups, plainAddress } from '@sdp-mcp/instance/contract'
import type { Logger } from './log.ts'

/**
 * Ends connections whose other end went away without a word: a laptop that is closed, a cable that is pulled, a firewall
 * that forgets. Silent ones the kernel probes by itself (TCP keep-alive). But an event stream is hardly ever silent, and
 * while written bytes wait for their acknowledgement there are no probes: the kernel sends them again for a quarter of an
 * hour. TCP_USER_TIMEOUT, which would shorten that, Node does not offer. So the kernel's own table is read, which tells how
 * often it has sent the oldest bytes again.
 *
 * @see proc(5) /proc/net/tcp, RFC 5482, RFC 6298
 */

const everyMs = 10_000
/** 25 s or more after the first try, because each pause is twice as long as the one before, and the first at least 0.2 s */
const mostRetransmits = 7
const probeAfterMs = 20_000
const probeEveryMs = 10_000
const probes = 3
const tables = ['/proc/net/tcp', '/proc/net/tcp6']

/** Watches the connections of a server until it closes. Linux only; elsewhere nothing but the probes are at work. */
export function watchHalfOpen(server: Server, log: Logger): void {
  const sockets = new Set<Socket>()
  // one function for all: thousands of streams are held
  function forget(this: Socket) {
    sockets.delete(this)
  }
  server.on('connection', socket => {
    socket.setKeepAlive({ enable: true, initialDelay: probeAfterMs, interval: probeEveryMs, count: probes })
    sockets.add(socket)
    socket.on('close', forget)
  })
  let looking = false
  const timer = setInterval(async () => {
    if (looking || sockets.size === 0) return
    looking = true
    for (const table of tables) await endUnanswered(table).catch(() => {})
    looking = false
  }, everyMs)
  timer.unref()
  server.once('close', () => clearInterval(timer))

  async function endUnanswered(table: string): Promise<void> {
    const found = new Set<string>()
    await readLines(table, lines => {
      for (const peer of unanswered(lines, mostRetransmits)) found.add(peer)
    })
    if (found.size === 0) return
    for (const socket of sockets) {
      if (!found.has(peerOf(socket))) continue
      log.info({ address: socket.remoteAddress }, 'client.vanished')
      socket.resetAndDestroy()
    }
  }
}

function peerOf({ localPort, remoteAddress = '', remotePort }: Socket): string {
  return `${localPort} ${plain(remoteAddress)} ${remotePort}`
}

/** One spelling for each address. */
function plain(address: string): string {
  const known = plainAddress(address) ?? address
  return known.includes(':') ? spelled(ipv6Groups(known)) : known
}

/**
 * Established connections of a kernel table whose oldest bytes were sent again that often.
 * @returns `<own port> <address> <port>` of each
 */
export function unanswered(lines: string, retransmits: number): string[] {
  const peers: string[] = []
  // own address, the other's, state 01 (established), queues, timer 01 (retransmission), how often
  for (const [, own, address, port, times] of lines.matchAll(
    /: [0-9A-F]+:([0-9A-F]{4}) ([0-9A-F]+):([0-9A-F]{4}) 01 \S+ 01:\S+ ([0-9A-F]{8}) /g,
  ))
    if (Number.parseInt(times!, 16) >= retransmits)
      peers.push(`${Number.parseInt(own!, 16)} ${plain(decode(address!))} ${Number.parseInt(port!, 16)}`)
  return peers
}

/** The kernel prints an address as numbers of 32 bits in its own order of bytes. */
function decode(hex: string): string {
  const bytes = Buffer.from(hex, 'hex')
  if (endianness() === 'LE') bytes.swap32()
  if (bytes.length === 4) return bytes.join('.')
  return spelled(Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2)))
}

const spelled = (groups: number[]) => groups.map(group => group.toString(16)).join(':')

/** Reads piece by piece, because ten thousand connections are a megabyte and a half. */
async function readLines(path: string, take: (lines: string) => void): Promise<void> {
  await using file = await open(path, 'r')
  const buffer = Buffer.alloc(64 * 1024)
  let rest = ''
  for (;;) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, null)
    const text = rest + buffer.toString('latin1', 0, bytesRead)
    const end = bytesRead === 0 ? text.length : text.lastIndexOf('\n') + 1
    take(text.slice(0, end))
    rest = text.slice(end)
    if (bytesRead === 0) return
  }
}
