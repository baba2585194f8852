import type { IncomingMessage, ServerResponse } from 'node:http'
import { jsonRpcCodes, refuse } from './answers.ts'

/** @returns undefined when it has answered already */
export async function readJson(
  request: IncomingMessage,
  response: ServerResponse,
  bodyLimitBytes: number,
): Promise<{ value: unknown; bytes: number } | undefined> {
  const type = request.headers['content-type'] ?? ''
  if (!/^application\/json\s*(;|$)/i.test(type)) {
    request.resume()
    return void refuse(response, 415, jsonRpcCodes.generic, 'The Content-Type must be application/json.')
  }
  const text = await readBody(request, bodyLimitBytes)
  if (text === undefined) {
    response.setHeader('connection', 'close')
    return void refuse(
      response,
      413,
      jsonRpcCodes.generic,
      `A message may have at most ${bodyLimitBytes / 1024 / 1024} MiB. Send less at once.`,
    )
  }
  try {
    return { value: JSON.parse(text), bytes: Buffer.byteLength(text) }
  } catch {
    return void refuse(response, 400, jsonRpcCodes.parse, 'The body is not valid JSON.')
  }
}

/** @returns undefined when it is longer than the limit */
async function readBody(request: IncomingMessage, limitBytes: number): Promise<string | undefined> {
  if (Number(request.headers['content-length'] ?? 0) > limitBytes) return undefined
  const cut = () => new Error('the connection was closed in the middle of a message')
  if (request.destroyed) throw cut()
  const chunks: Buffer[] = []
  let bytes = 0
  // by events: an iterator over a stream costs several times as much as a body of one piece
  return new Promise((done, failed) => {
    request.on('data', (chunk: Buffer) => {
      bytes += chunk.length
      chunks.push(chunk)
      if (bytes <= limitBytes) return
      // nothing more is read, and the connection stays for the answer that says so
      request.pause()
      request.removeAllListeners('data')
      done(undefined)
    })
    request.once('end', () =>
      done((chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks)).toString('utf8')),
    )
    request.once('error', failed)
    request.once('close', () => {
      if (!request.readableEnded) failed(cut())
    })
  })
}
