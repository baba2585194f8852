import type { IncomingMessage } from 'node:http'
import { AppError } from '../errors.ts'

/**
 * The whole body of a request. It is small by nature, so it is held instead of streamed: then an instance that cannot be
 * reached costs a retry and not the request, and a slow sender occupies nobody's instance.
 *
 * @returns null when it has none, or when the client went away
 * @throws AppError `body-too-large` as soon as that is known
 */
export async function readBody(request: IncomingMessage, limitBytes: number): Promise<Buffer | null> {
  const announced = request.headers['content-length']
  if (Number(announced ?? 0) > limitBytes) throw tooLarge(limitBytes)
  if (announced === '0' || (announced === undefined && request.headers['transfer-encoding'] === undefined)) return null
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let bytes = 0
    const onData = (chunk: Buffer) => {
      bytes += chunk.length
      if (bytes > limitBytes) end(() => reject(tooLarge(limitBytes)))
      else chunks.push(chunk)
    }
    const onEnd = () => end(() => resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)))
    const onClose = () => end(() => resolve(null))
    const end = (settle: () => void) => {
      request.off('data', onData).off('end', onEnd).off('close', onClose)
      settle()
    }
    request.on('data', onData).on('end', onEnd).on('close', onClose)
    // a client that goes away is told by "close"
    request.on('error', () => {})
  })
}

const lingerMs = 5_000

/**
 * After an answer that did not wait for the whole body: throws the rest away, because it would be taken for the next
 * request, and loses patience with who goes on sending. Cutting at once could cost the client the answer.
 */
export function discardRest(request: IncomingMessage): void {
  if (request.complete || request.destroyed) return
  const { socket } = request
  const timer = setTimeout(() => socket.destroy(), lingerMs)
  request.once('end', () => clearTimeout(timer)).once('close', () => clearTimeout(timer))
  request.resume()
}

function tooLarge(limitBytes: number): AppError {
  return new AppError(
    'body-too-large',
    `A message may have at most ${limitBytes / 1024 / 1024} MiB. Send less at once, for example attachments one by one.`,
  )
}
