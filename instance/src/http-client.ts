import type { FormData } from 'undici'

/** One call of an HTTP API. Redirects are never followed: they would carry a token to wherever they point. */
export type HttpCall = {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  url: string
  headers: Readonly<Record<string, string>>
  /** a form that undici made brings its own content type */
  body?: string | FormData | undefined
  /** from the call to the last byte of its answer */
  timeoutMs: number
  signal?: AbortSignal
  /** how much is read of an answer, after it was unpacked */
  maxBytes: number
  /** the same for an answer that is none: a redirect or a failure (300 and above); default `maxBytes` */
  maxErrorBytes?: number
  /** told as soon as the head of the answer is there */
  onStatus?: (status: number) => void
}

export type HttpAnswer = {
  status: number
  /** 200 to 299 */
  ok: boolean
  /** what the body said before it was packed (gzip and others) */
  bytes: Buffer
  /** @param name - in small letters */
  header(name: string): string | undefined
}

/**
 * @throws AnswerTooLargeError
 * @throws DOMException `TimeoutError`
 * @throws the signal's reason
 * @throws Error with the `code` of undici or Node.js when there was no connection, or it was lost
 */
export type HttpClient = (call: HttpCall) => Promise<HttpAnswer>

/** The answer is longer than its caller wants to hold. Never a silent cut. */
export class AnswerTooLargeError extends Error {
  readonly maxBytes: number
  constructor(maxBytes: number) {
    super(`the answer is too long, more than ${maxBytes} bytes`)
    this.name = 'AnswerTooLargeError'
    this.maxBytes = maxBytes
  }
}
