import { brotliDecompressSync, constants, gunzipSync, inflateRawSync, inflateSync } from 'node:zlib'
import type { Dispatcher } from 'undici'
import { AnswerTooLargeError, type HttpAnswer, type HttpCall } from './http-client.ts'

/**
 * Makes one call over undici's connections. In place of its fetch, whose streams, requests and responses are made anew for each
 * call and cost as much as the call itself.
 *
 * @throws see {@link HttpClient}
 */
export function exchange(dispatcher: Dispatcher, call: HttpCall): Promise<HttpAnswer> {
  return new Promise((done, failed) => {
    const { signal } = call
    if (signal?.aborted) return failed(signal.reason)
    const { origin, pathname, search } = new URL(call.url)
    const handler = new Gathering(call, done, failed)
    const request = {
      origin,
      path: pathname + search,
      method: call.method,
      headers: { 'user-agent': 'undici', 'accept-encoding': 'gzip, deflate, br', ...call.headers },
      body: call.body ?? null,
    }
    try {
      dispatcher.dispatch(request, handler)
    } catch (reason) {
      handler.onResponseError(null, reason)
    }
  })
}

type Headers = Record<string, string | string[] | undefined>

/** Gathers an answer, and settles once: with it, or with what came in between. */
class Gathering implements Dispatcher.DispatchHandler {
  readonly #call: HttpCall
  readonly #done: (answer: HttpAnswer) => void
  readonly #failed: (reason: unknown) => void
  readonly #timer: NodeJS.Timeout
  readonly #onAbort: (() => void) | undefined
  #controller: Dispatcher.DispatchController | undefined
  /** why it ended before its time */
  #ended: { reason: unknown } | undefined
  #status = 0
  #headers: Headers = {}
  #maxBytes = 0
  #chunks: Buffer[] = []
  #size = 0

  constructor(call: HttpCall, done: (answer: HttpAnswer) => void, failed: (reason: unknown) => void) {
    this.#call = call
    this.#done = done
    this.#failed = failed
    const { signal, timeoutMs } = call
    this.#timer = setTimeout(
      () => this.#end(new DOMException(`There was no whole answer within ${timeoutMs} ms.`, 'TimeoutError')),
      timeoutMs,
    )
    this.#timer.unref()
    if (signal) {
      this.#onAbort = () => this.#end(signal.reason)
      signal.addEventListener('abort', this.#onAbort)
    }
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    // it waited for a connection, and nobody waits for it any more
    if (this.#ended) controller.abort(this.#ended.reason as Error)
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number, headers: Headers): void {
    // 1xx: the answer is still to come
    if (status < 200) return
    const { maxBytes, maxErrorBytes = maxBytes, onStatus } = this.#call
    this.#status = status
    this.#headers = headers
    this.#maxBytes = status >= 300 ? maxErrorBytes : maxBytes
    onStatus?.(status)
    if (Number(this.#header('content-length')) > this.#maxBytes) this.#end(new AnswerTooLargeError(this.#maxBytes))
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#chunks.push(chunk)
    this.#size += chunk.length
    if (this.#size > this.#maxBytes) this.#end(new AnswerTooLargeError(this.#maxBytes))
  }

  onResponseEnd(): void {
    if (this.#ended) return
    this.#settle()
    const [first] = this.#chunks
    const body = first && this.#chunks.length === 1 ? first : Buffer.concat(this.#chunks, this.#size)
    try {
      const status = this.#status
      this.#done({
        status,
        ok: status >= 200 && status < 300,
        bytes: unpacked(body, this.#header('content-encoding'), this.#maxBytes),
        header: name => this.#header(name),
      })
    } catch (reason) {
      this.#failed(reason)
    }
  }

  onResponseError(_controller: Dispatcher.DispatchController | null, reason: unknown): void {
    if (this.#ended) return
    this.#settle()
    this.#failed(reason)
  }

  #end(reason: unknown): void {
    if (this.#ended) return
    this.#ended = { reason }
    this.#chunks = []
    this.#settle()
    this.#failed(reason)
    // what comes of it is no news any more; the connection is not used again
    this.#controller?.abort(reason as Error)
  }

  #settle(): void {
    clearTimeout(this.#timer)
    if (this.#onAbort) this.#call.signal?.removeEventListener('abort', this.#onAbort)
  }

  #header(name: string): string | undefined {
    const value = this.#headers[name]
    return Array.isArray(value) ? value.join(', ') : value
  }
}

/** More than one is already unusual; each may make its input a thousand times as long. */
const mostCodings = 5

// servers that end a packed body a little early are understood by browsers and curl, too
const lenient = { finishFlush: constants.Z_SYNC_FLUSH }
const lenientBrotli = { finishFlush: constants.BROTLI_OPERATION_FLUSH }

/**
 * A body as it was before the codings of its `content-encoding`; as it came if one of them was not asked for.
 * In one go: what is read of an answer is bounded, and its JSON takes longer.
 */
function unpacked(body: Buffer, contentEncoding: string | undefined, maxBytes: number): Buffer {
  if (contentEncoding === undefined || body.length === 0) return body
  const codings = contentEncoding.toLowerCase().split(',').reverse()
  if (codings.length > mostCodings) throw new Error('the answer is packed too many times')
  let bytes = body
  try {
    for (const coding of codings) {
      switch (coding.trim()) {
        case 'gzip':
        case 'x-gzip':
          bytes = gunzipSync(bytes, { ...lenient, maxOutputLength: maxBytes })
          break
        case 'deflate':
          // with the header of zlib, as the standard says, or without, as some servers do
          bytes =
            ((bytes[0] ?? 0) & 0x0f) === 8
              ? inflateSync(bytes, { ...lenient, maxOutputLength: maxBytes })
              : inflateRawSync(bytes, { ...lenient, maxOutputLength: maxBytes })
          break
        case 'br':
          bytes = brotliDecompressSync(bytes, { ...lenientBrotli, maxOutputLength: maxBytes })
          break
        default:
          return body
      }
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') throw new AnswerTooLargeError(maxBytes)
    throw error
  }
  return bytes
}
