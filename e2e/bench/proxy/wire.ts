import { connect, type Socket } from 'node:net'

/** HTTP/1.1 as bytes on a socket: a client that costs little and hides nothing. */

export type Where = { port: number; prefix: string; key: string }

/** Microseconds of the monotonic clock, which all processes of a machine share. */
export const nowMicros = () => Number(process.hrtime.bigint() / 1000n)

export const message = JSON.stringify({
  jsonrpc: '2.0',
  id: 1,
  method: 'tools/call',
  params: {
    name: 'get_request',
    arguments: { request: '4711', fields: ['subject', 'status', 'description'] },
    _meta: { progressToken: 1 },
  },
})

/** What an MCP client sends along with each message. */
export const clientHeaders = (key: string): Record<string, string> => ({
  authorization: `Bearer ${key}`,
  accept: 'application/json, text/event-stream',
  'content-type': 'application/json',
  'mcp-protocol-version': '2025-06-18',
  'mcp-session-id': '1f3d5c8e-6f0a-4b7e-9a51-3c1f3a1de9aa',
  'user-agent': 'claude-code/2.1.330',
})

export function requestBytes({ port, prefix, key }: Where, method: string, path: string, body = ''): string {
  const headers = Object.entries(clientHeaders(key)).map(([name, value]) => `${name}: ${value}\r\n`)
  const length = method === 'POST' ? `content-length: ${Buffer.byteLength(body)}\r\n` : ''
  return `${method} ${prefix}${path} HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\n${headers.join('')}${length}\r\n${body}`
}

/** Sends one request on a connection of its own; resolves when `until` has arrived in the answer, or fails after `withinMs`. */
export function open(where: Where, method: string, path: string, until: string, withinMs = 30_000): Promise<Socket> {
  return new Promise((done, failed) => {
    const socket = connect({ port: where.port, host: '127.0.0.1', noDelay: true })
    let text = ''
    const onData = (chunk: Buffer) => {
      text += chunk.toString('latin1')
      if (!text.startsWith('HTTP/1.1 2'.slice(0, text.length)))
        return fail(new Error(`it answered: ${text.slice(0, 300)}`))
      if (!text.includes(until)) return
      settle()
      // an error is followed by "close", which is what a caller listens for
      socket.on('error', () => {})
      done(socket)
    }
    const fail = (error: Error) => {
      settle()
      socket.on('error', () => {})
      socket.destroy()
      failed(error)
    }
    const onClose = () => fail(new Error(`the connection was closed after: ${text.slice(0, 300)}`))
    const settle = () => {
      clearTimeout(patience)
      socket.off('data', onData).off('error', fail).off('close', onClose)
    }
    const patience = setTimeout(() => fail(new Error(`no more came than: ${text.slice(0, 300)}`)), withinMs)
    socket.on('data', onData).on('error', fail).on('close', onClose)
    socket.write(requestBytes(where, method, path, method === 'POST' ? message : ''), 'latin1')
  })
}

/** Sends a request and waits for nothing. */
export function begin(where: Where, method: string, path: string): Promise<Socket> {
  return new Promise((done, failed) => {
    const socket = connect({ port: where.port, host: '127.0.0.1', noDelay: true })
    socket.once('error', failed)
    socket.once('connect', () => {
      socket.off('error', failed).on('error', () => {})
      socket.write(requestBytes(where, method, path, message), 'latin1', () => done(socket))
    })
  })
}

/** The body of a small answer. */
export async function ask({ port, prefix, key }: Where, path: string): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${port}${prefix}${path}`, { headers: clientHeaders(key) })
  return response.text()
}

/** A stream that has had its first event. */
export const openStream = (where: Where, query = '') => open(where, 'GET', `/sse${query}`, 'data:')

/** Opens many streams, a few at a time. */
export async function openStreams(where: Where, count: number): Promise<Socket[]> {
  const sockets: Socket[] = []
  while (sockets.length < count) {
    const batch = Math.min(50, count - sockets.length)
    sockets.push(...(await Promise.all(Array.from({ length: batch }, () => openStream(where)))))
  }
  for (const socket of sockets) socket.on('data', () => {})
  return sockets
}

/**
 * Sends requests one after the other on one connection and measures each, in microseconds.
 * @param from - `connect`: the first one is measured from the beginning of its connection
 */
export async function roundTrips(
  where: Where,
  method: string,
  path: string,
  count: number,
  pauseMs = 0,
  from: 'request' | 'connect' = 'request',
): Promise<number[]> {
  const beganAt = nowMicros()
  const socket = connect({ port: where.port, host: '127.0.0.1', noDelay: true })
  const bytes = requestBytes(where, method, path, method === 'POST' ? message : '')
  const times: number[] = []
  await new Promise<void>((done, failed) => {
    let sentAt = 0
    let text = ''
    const send = () => {
      text = ''
      sentAt = from === 'connect' && times.length === 0 ? beganAt : nowMicros()
      socket.write(bytes, 'latin1')
    }
    socket.on('data', chunk => {
      text += chunk.toString('latin1')
      const head = text.indexOf('\r\n\r\n')
      const length = /content-length: (\d+)/i.exec(text)?.[1]
      const complete = length === undefined ? text.endsWith('0\r\n\r\n') : text.length === head + 4 + Number(length)
      if (head === -1 || !complete) return
      times.push(nowMicros() - sentAt)
      if (times.length === count) done()
      else if (pauseMs > 0) setTimeout(send, pauseMs)
      else send()
    })
    socket.on('error', failed).on('close', () => failed(new Error('the connection was closed')))
    socket.once('connect', send)
  })
  socket.destroy()
  return times
}
