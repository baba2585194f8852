import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'

/** A client that does not read for this long is gone. */
export const stalledMs = 60_000

/**
 * Writes a web response to the wire, event by event and under back pressure.
 * @returns false when the client left before the end
 */
export async function pump(
  from: Response,
  to: ServerResponse,
  headers: OutgoingHttpHeaders,
  headersWithinMs: number,
  endAfterEvents: number | undefined,
  sent: (chunk: Uint8Array) => void,
): Promise<boolean> {
  const reader = (from.body as ReadableStream<Uint8Array>).getReader()
  let gone = to.destroyed
  const onClose = () => {
    gone = true
    reader.cancel().catch(() => {})
  }
  if (gone) {
    await reader.cancel()
    return false
  }
  to.once('close', onClose)
  to.writeHead(from.status, { ...Object.fromEntries(from.headers), ...headers })
  // a quick answer leaves in one write, which is most of what it costs; the headers of a slow one leave before it
  const flush = setTimeout(() => to.flushHeaders(), headersWithinMs)
  let left = endAfterEvents ?? Number.POSITIVE_INFINITY
  try {
    while (left-- > 0) {
      const { done, value } = await reader.read()
      if (done || gone) break
      sent(value)
      // the last event and the end of the answer follow each other at once: they leave, and are taken in, in one piece
      const { socket } = to
      socket?.cork()
      process.nextTick(() => socket?.uncork())
      if (!to.write(value) && !(await drained(to))) {
        to.destroy()
        gone = true
        break
      }
    }
  } finally {
    clearTimeout(flush)
    to.off('close', onClose)
  }
  if (gone) return false
  reader.cancel().catch(() => {})
  to.end()
  return true
}

/** @returns false when the client left, or has read nothing for a minute */
function drained(response: ServerResponse): Promise<boolean> {
  return new Promise(done => {
    const settle = (result: boolean) => () => {
      clearTimeout(timer)
      response.off('drain', onDrain).off('close', onClose)
      done(result)
    }
    const onDrain = settle(true)
    const onClose = settle(false)
    const timer = setTimeout(onClose, stalledMs)
    response.once('drain', onDrain).once('close', onClose)
  })
}
