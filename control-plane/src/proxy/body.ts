import type { IncomingMessage, ServerResponse } from 'node:http'
import { AppError } from '../errors.ts'

/**
 * The whole body of a request. It is small by nature, so it is held instead of streamed: then an instance that cannot be
 * reached costs a retry and not the request, and a slow sender occupies nobody's instance.
 *
 * @param grown - told how large it is by now; see {@link createBodyRoom}
 * @returns null when it has none, or when the client went away
 * @throws AppError `body-too-large` as soon as that is known, and what `grown` throws
 */
export async function readBody(
  request: IncomingMessage,
  limitBytes: number,
  grown?: (bytes: number) => void,
): Promise<Buffer | null> {
  const announced = request.headers['content-length']
  if (Number(announced ?? 0) > limitBytes) throw tooLarge(limitBytes)
  if (announced === '0' || (announced === undefined && request.headers['transfer-encoding'] === undefined)) return null
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let bytes = 0
    const onData = (chunk: Buffer) => {
      bytes += chunk.length
      if (bytes > limitBytes) return end(() => reject(tooLarge(limitBytes)))
      try {
        grown?.(bytes)
      } catch (error) {
        return end(() => reject(error))
      }
      chunks.push(chunk)
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

/** not counted: as many of these as a user may have open are no burden */
const smallBodyBytes = 64 * 1024
const mostHeldBytes = 32 * 1024 * 1024

/**
 * Counts the large bodies that the requests of a user hold until they are answered. Each is bounded and so is their number,
 * but not what both come to.
 * @returns for each request: what is told of its growth; it throws AppError `concurrency-limit-exceeded`
 */
export function createBodyRoom(mostBytes = mostHeldBytes) {
  const held = new Map<string, number>()
  return (
    userId: string,
    request: IncomingMessage,
    response: ServerResponse,
  ): ((bytes: number) => void) | undefined => {
    if (Number(request.headers['content-length'] ?? Number.POSITIVE_INFINITY) <= smallBodyBytes) return undefined
    let mine = 0
    const release = () => {
      const left = (held.get(userId) ?? 0) - mine
      if (left > 0) held.set(userId, left)
      else held.delete(userId)
    }
    return bytes => {
      if (bytes <= smallBodyBytes || response.destroyed) return
      const others = (held.get(userId) ?? 0) - mine
      if (others + bytes > mostBytes)
        throw new AppError(
          'concurrency-limit-exceeded',
          `Your calls under way hold ${mostBytes / 1024 / 1024} MiB of messages, which is the limit. Send large ones one after another.`,
          { retryAfterSeconds: 5 },
        )
      if (mine === 0) response.once('close', release)
      held.set(userId, others + bytes)
      mine = bytes
    }
  }
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
