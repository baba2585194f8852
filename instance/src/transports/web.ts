import type { IncomingMessage } from 'node:http'

/**
 * The little of the Fetch standard that the SDK's Streamable HTTP transport needs. The real classes come with a whole
 * HTTP client inside Node.js, which costs 5 MB and 60 ms of work in each process that touches one of them.
 */

/** Header names are not case-sensitive; values are single. */
class Fields {
  readonly #fields = new Map<string, string>()
  constructor(fields: Record<string, string> = {}) {
    for (const [name, value] of Object.entries(fields)) this.#fields.set(name.toLowerCase(), value)
  }
  get(name: string): string | null {
    return this.#fields.get(name.toLowerCase()) ?? null
  }
  entries(): IterableIterator<[string, string]> {
    return this.#fields.entries()
  }
  [Symbol.iterator](): IterableIterator<[string, string]> {
    return this.entries()
  }
}

/** A request whose body has been read already and is handed over beside it. */
export function webRequest(request: IncomingMessage, url: URL, headers: Record<string, string>): Request {
  return { method: request.method, url: url.href, headers: new Fields(headers) } as unknown as Request
}

/** Stands in for the global `Response` in the SDK's transport; docker/lean-instance.ts puts it there. */
export class WebResponse {
  readonly body: ReadableStream<Uint8Array> | string | null
  readonly status: number
  readonly headers: Fields
  constructor(
    body: ReadableStream<Uint8Array> | string | null,
    { status = 200, headers }: { status?: number; headers?: Record<string, string> } = {},
  ) {
    this.body = body
    this.status = status
    this.headers = new Fields(headers)
  }
  /** @throws Error for a stream, which is read piece by piece */
  async text(): Promise<string> {
    if (this.body === null || typeof this.body === 'string') return this.body ?? ''
    throw new Error('an event stream is not read as a whole')
  }
}
