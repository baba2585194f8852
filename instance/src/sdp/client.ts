import { BulkheadPolicy, DelegateBackoff, handleWhen, type IRetryBackoffContext, retry, wrap } from 'cockatiel'
import type { FormData } from 'undici'
import type { InstanceContext } from '../context.ts'
import { AnswerTooLargeError, type HttpAnswer, type HttpCall } from '../http-client.ts'
import { failure, isSuccess, messages, sentence } from './envelope.ts'
import { isSdpError, SdpError, type SdpErrorDetails } from './errors.ts'
import { at, flag, isObject, type Json, parseLossless, rows, text } from './json.ts'
import type { ListInfo } from './list-info.ts'
import { child, encodeStrictly, type SdpPath } from './path.ts'

export type SdpRequest = {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  path: SdpPath
  /** becomes `input_data`: in the query of a GET, in the form body of a write (docs/sdp-api.md 1.4) */
  input?: unknown
  query?: Record<string, string>
  /** an upload, in place of `input` */
  form?: FormData
  /** May be sent twice without harm. Default: GET and PUT of fields yes, POST and DELETE no. */
  repeatable?: boolean
  /** Without `/app/<portal>`: only the list of portals lives there. */
  outsidePortal?: boolean
  /** A probe that may be refused: a 401 is not answered with a token refresh. */
  probe?: boolean
  timeoutMs?: number
}

export type SdpAnswer = { body: Json; httpStatus: number; messages: string[] }
export type SdpPage = { rows: Json[]; hasMore: boolean; total: number | undefined; startIndex: number }
export type Download = { bytes: Uint8Array; contentType: string }

/** The API as one tool call sees it: every request ends when `signal` aborts, and is counted. */
export interface Sdp {
  readonly signal: AbortSignal
  request(request: SdpRequest): Promise<SdpAnswer>
  get(path: SdpPath, input?: unknown): Promise<Json>
  /** One page. The rows stand under the plural of the entity, whose spelling varies by site (docs/sdp-api.md 17.2). */
  list(path: SdpPath, info?: ListInfo, options?: { probe?: boolean }): Promise<SdpPage>
  post(path: SdpPath, input?: unknown): Promise<Json>
  put(path: SdpPath, input?: unknown): Promise<Json>
  remove(path: SdpPath, input?: unknown): Promise<Json>
  /** `PUT <parent>/_name`, or the older `PUT <parent>/name` where the site does not know the first (docs/sdp-api.md 6). */
  operate(parent: SdpPath, name: string, input?: unknown, options?: Partial<SdpRequest>): Promise<SdpAnswer>
  /** Bytes of an attachment; `url` is its `content_url` and must be on the SDP site itself. */
  download(url: string, maxBytes: number): Promise<Download>
}

export type SdpClient = {
  bind(options: { signal: AbortSignal; onRequest?: () => void }): Sdp
  /** How much this person asks of the site, and whether it said "too much" in the last five minutes. */
  load(): { callsLastMinute: number; limitedAt: number | undefined }
}

const acceptType = 'application/vnd.manageengine.sdp.v3+json'
const readTimeoutMs = 20_000
const writeTimeoutMs = 30_000
const downloadTimeoutMs = 60_000
/** A wait longer than this is the caller's business: the error tells the number of seconds. */
const longestWaitSeconds = 15
const longestUrl = 8_000
const longestJsonBytes = 8 * 1024 * 1024
/** A path refused with a fresh token is not worth another refresh for a while (docs/sdp-api.md 18.16). */
const refusedForMs = 5 * 60_000
const simultaneous = 6
/** how long SDP usually locks after 4015 (docs/sdp-api.md 4.5) */
const lockMs = 300_000

/**
 * Builds the one way to the SDP Cloud API v3 for this user.
 *
 * Retries: reads and repeatable PUTs after 429, 4015, 5xx and lost connections, at most twice, honouring Retry-After;
 * a site that asks for a long wait is not asked again.
 * A 401 is answered with at most one token refresh and one replay. A write that timed out is never repeated: it ends
 * as `indeterminate`. Redirects are not followed: they lead to a login page (docs/sdp-api.md 4.4).
 */
export function createSdpClient(context: Pick<InstanceContext, 'http' | 'tokens' | 'sdp' | 'log' | 'now'>): SdpClient {
  const origin = new URL(context.sdp.baseUrl).origin
  const root = `${origin}/app/${encodeStrictly(context.sdp.portal)}/api/v3`
  const refused = new Map<string, number>()
  /** operations that this site knows only without the underscore */
  const plainOperations = new Set<string>()
  let sentAt: number[] = []
  let limitedAt: number | undefined
  const lanes = new BulkheadPolicy(simultaneous, 1_000)
  const again = retry(
    handleWhen(error => error instanceof Repeatable),
    {
      maxAttempts: 2,
      backoff: new DelegateBackoff<IRetryBackoffContext<unknown>>(({ attempt, result }) => {
        const asked = 'error' in result ? (result.error as Repeatable).error.details.retryAfterSeconds : undefined
        return asked === undefined ? 400 * 3 ** (attempt - 1) * (0.75 + Math.random() / 2) : asked * 1000
      }),
    },
  )
  const policy = wrap(again, lanes)

  async function send(request: SdpRequest, signal: AbortSignal, onRequest: () => void): Promise<SdpAnswer> {
    const repeatable = request.repeatable ?? (request.method === 'GET' || request.method === 'PUT')
    let unsure: SdpError | undefined
    try {
      const work = policy.execute(async () => {
        signal.throwIfAborted()
        try {
          const key = `${request.method} ${request.path.template}`
          return await authorized(token => exchange(request, token, signal, onRequest), key, signal, request.probe)
        } catch (error) {
          if (isSdpError(error, 'indeterminate') && request.method !== 'GET') unsure = error
          throw worthRepeating(error, repeatable) ? new Repeatable(error) : error
        }
      }, signal)
      return await abortable(work, signal)
    } catch (error) {
      const cause = error instanceof Repeatable ? error.error : error
      // that a repeated write was refused does not tell whether the one before was done
      if (unsure && isSdpError(cause, 'down', 'limited')) throw unsure
      if (cause instanceof SdpError) throw cause
      if (signal.aborted) throw cancelled(request, cause)
      throw cause
    }
  }

  /** One attempt; after a 401 one refresh and one replay. */
  async function authorized<T>(
    attempt: (token: string) => Promise<T>,
    key: string,
    signal: AbortSignal,
    probe = false,
  ): Promise<T> {
    const token = await context.tokens.accessToken(signal)
    try {
      return await attempt(token)
    } catch (error) {
      if (!isSdpError(error, 'missing-scope') || probe) throw error
      if ((refused.get(key) ?? 0) > context.now()) throw error
      await context.tokens.invalidate(token)
      const fresh = await context.tokens.accessToken(signal)
      if (fresh === token) throw error
      try {
        return await attempt(fresh)
      } catch (second) {
        if (isSdpError(second, 'missing-scope')) {
          if (refused.size > 500) refused.clear()
          refused.set(key, context.now() + refusedForMs)
        }
        throw second
      }
    }
  }

  async function exchange(
    request: SdpRequest,
    token: string,
    signal: AbortSignal,
    onRequest: () => void,
  ): Promise<SdpAnswer> {
    const call = `${request.method} ${request.path.template}`
    const answer = await callOnce(
      { url: urlOf(request), ...content(request, token), maxBytes: longestJsonBytes },
      request,
      signal,
      onRequest,
    )
    const { status } = answer
    const raw = answer.bytes.toString('utf8')
    const body = parseBody(raw)
    const details: SdpErrorDetails = { call, retryAfterSeconds: retryAfter(answer, context.now()) }
    context.log.debug({ call, httpStatus: status }, 'sdp.call.answered')
    if (status >= 300 && status < 400) throw failure(status, undefined, details)
    if (answer.ok && raw.trim() === '' && request.method !== 'GET') return empty(answer)
    if (body === undefined || !answer.ok || !isSuccess(body)) {
      const error = refine(failure(status, body, details), request)
      if (error.kind === 'limited') limitedAt = context.now()
      throw error
    }
    return { body, httpStatus: status, messages: messages(body) }
  }

  async function callOnce(
    call: Pick<HttpCall, 'url' | 'headers' | 'body' | 'maxBytes' | 'maxErrorBytes'>,
    request: Pick<SdpRequest, 'method' | 'path' | 'timeoutMs'>,
    signal: AbortSignal,
    onRequest: () => void,
  ): Promise<HttpAnswer> {
    const timeoutMs = request.timeoutMs ?? (request.method === 'GET' ? readTimeoutMs : writeTimeoutMs)
    onRequest()
    sentAt.push(context.now())
    // counts a thousand and more as that: looking through all of them with each call would cost more than the call
    if (sentAt.length > 2_000) sentAt = recent().slice(-1_000)
    try {
      return await context.http({ ...call, method: request.method, signal, timeoutMs })
    } catch (cause) {
      throw cause instanceof AnswerTooLargeError ? tooLarge(cause) : lostConnection(cause, request, signal)
    }
  }

  function urlOf(request: SdpRequest): string {
    const query = Object.entries(request.query ?? {}).map(([key, value]) => `${key}=${encodeStrictly(value)}`)
    if (request.method === 'GET' && request.input !== undefined) query.push(inputData(request.input))
    const base = request.outsidePortal ? `${origin}/api/v3` : root
    const url = `${base}${request.path.path}${query.length > 0 ? `?${query.join('&')}` : ''}`
    if (url.length > longestUrl) {
      throw new SdpError('invalid-value', 'The filter is too long for one call.', {
        call: `${request.method} ${request.path.template}`,
        nextStep: 'Use fewer values or a shorter text in the filter.',
      })
    }
    return url
  }

  function bind({ signal, onRequest = () => {} }: { signal: AbortSignal; onRequest?: () => void }): Sdp {
    const request = (options: SdpRequest) => send(options, signal, onRequest)
    const sdp: Sdp = {
      signal,
      request,
      get: async (path, input) => (await request({ method: 'GET', path, input })).body,
      post: async (path, input) => (await request({ method: 'POST', path, input })).body,
      put: async (path, input) => (await request({ method: 'PUT', path, input })).body,
      remove: async (path, input) => (await request({ method: 'DELETE', path, input })).body,
      async list(path, info, options) {
        const input = info && { list_info: info }
        const { body } = await request({ method: 'GET', path, input, probe: options?.probe })
        return page(body, path, info)
      },
      async operate(parent, name, input, options) {
        const key = `${parent.template}/${name}`
        const base: SdpRequest = { method: 'PUT', path: child(parent, `_${name}`), input, ...options }
        if (!plainOperations.has(key)) {
          try {
            return await request(base)
          } catch (error) {
            if (!isSdpError(error, 'not-found')) throw error
            const answer = await request({ ...base, path: child(parent, name) }).catch(second => {
              // the first error names the documented form; anything else the second try ended in is what happened
              throw isNoSuchPath(second) ? error : second
            })
            plainOperations.add(key)
            return answer
          }
        }
        return request({ ...base, path: child(parent, name) })
      },
      async download(url, maxBytes) {
        const target = new URL(url, origin)
        if (target.origin !== origin) {
          throw new SdpError('drift', 'The attachment lies on another host; the token is not sent there.', {
            call: 'GET attachment',
          })
        }
        const request = {
          method: 'GET' as const,
          path: { path: target.pathname, template: '/attachment' },
          timeoutMs: downloadTimeoutMs,
        }
        return authorized(
          async token => {
            const headers = { Authorization: `Zoho-oauthtoken ${token}`, Accept: '*/*' }
            const call = { url: target.href, headers, maxBytes, maxErrorBytes: longestJsonBytes }
            const answer = await callOnce(call, request, signal, onRequest)
            const { bytes } = answer
            if (!answer.ok) throw failure(answer.status, parseBody(bytes.toString('utf8')), { call: 'GET /attachment' })
            return { bytes, contentType: answer.header('content-type') ?? 'application/octet-stream' }
          },
          'GET /attachment',
          signal,
        )
      },
    }
    return sdp
  }

  const recent = () => sentAt.filter(at => at > context.now() - 60_000)

  return {
    bind,
    load() {
      sentAt = recent()
      const isRecent = limitedAt !== undefined && limitedAt > context.now() - lockMs
      return { callsLastMinute: sentAt.length, limitedAt: isRecent ? limitedAt : undefined }
    },
  }
}

/** Marks an error that the retry policy may answer with another try. */
class Repeatable extends Error {
  readonly error: SdpError
  constructor(error: SdpError) {
    super(error.message)
    this.error = error
  }
}

/** A call refused by a limit that says when to come back was not carried out: even a POST may be sent again then. */
function worthRepeating(error: unknown, repeatable: boolean): error is SdpError {
  if (!isSdpError(error, 'limited', 'down', 'indeterminate')) return false
  const seconds = error.details.retryAfterSeconds
  if (seconds !== undefined && seconds > longestWaitSeconds) return false
  return repeatable || (error.kind === 'limited' && seconds !== undefined)
}

/** Whether the site has no such path: some say it with 401, 405 or a redirect, and none of these does anything. */
function isNoSuchPath(error: unknown): boolean {
  if (isSdpError(error, 'not-found', 'missing-scope')) return true
  const { httpStatus = 0 } = isSdpError(error) ? error.details : {}
  return httpStatus === 405 || (httpStatus >= 300 && httpStatus < 400)
}

function inputData(input: unknown): string {
  return `input_data=${encodeStrictly(JSON.stringify(input))}`
}

function content(request: SdpRequest, token: string): Pick<HttpCall, 'headers' | 'body'> {
  const headers: Record<string, string> = { Authorization: `Zoho-oauthtoken ${token}`, Accept: acceptType }
  if (request.form) return { headers, body: request.form }
  if (request.method === 'GET' || request.input === undefined) return { headers }
  headers['Content-Type'] = 'application/x-www-form-urlencoded'
  return { headers, body: inputData(request.input) }
}

function parseBody(raw: string): Json | undefined {
  try {
    const parsed = parseLossless(raw)
    return isObject(parsed) ? parsed : undefined
  } catch {
    return undefined
  }
}

function empty(answer: HttpAnswer): SdpAnswer {
  return { body: {}, httpStatus: answer.status, messages: [] }
}

function tooLarge({ maxBytes }: AnswerTooLargeError): SdpError {
  return new SdpError('drift', `The answer is larger than ${maxBytes} bytes.`, {
    nextStep: 'Ask for fewer rows or fields, or raise max_bytes for an attachment.',
  })
}

/** Codes of errors raised before a byte of the request left: the write certainly did not happen. */
const neverSent = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
  'CERT_HAS_EXPIRED',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'ERR_UPSTREAM_REFUSED',
])

function lostConnection(cause: unknown, request: Pick<SdpRequest, 'method' | 'path'>, signal: AbortSignal): SdpError {
  if (signal.aborted) return cancelled(request, cause)
  const reported = at(cause, 'code')
  const code = typeof reported === 'string' ? reported : ''
  const kind = request.method === 'GET' || neverSent.has(code) ? 'down' : 'indeterminate'
  const details: SdpErrorDetails = {
    call: `${request.method} ${request.path.template}`,
    said: code || undefined,
    cause,
  }
  if (code === 'ERR_UPSTREAM_REFUSED') details.nextStep = `${text(at(cause, 'message'))}.`
  if (at(cause, 'name') === 'TimeoutError') return new SdpError(kind, tooLate[kind], details)
  return new SdpError(kind, sentence(kind, details), details)
}

const tooLate = {
  down: 'ServiceDesk Plus did not answer in time.',
  indeterminate: 'ServiceDesk Plus did not answer in time; whether the change was made is not known.',
}

function cancelled(request: Pick<SdpRequest, 'method' | 'path'>, cause: unknown): SdpError {
  const details = { call: `${request.method} ${request.path.template}`, cause }
  return new SdpError('cancelled', sentence('cancelled', details), details)
}

/** What the envelope alone cannot know: a gateway that gave up on a write says nothing about the write. */
function refine(error: SdpError, request: SdpRequest): SdpError {
  const { details } = error
  const isWrite = request.method !== 'GET'
  if (isWrite && (details.httpStatus === 502 || details.httpStatus === 504)) {
    const nextStep = details.retryAfterSeconds === undefined ? undefined : lookAfter(details.retryAfterSeconds)
    return new SdpError('indeterminate', sentence('indeterminate', {}), { ...details, nextStep })
  }
  if (error.kind !== 'down' || details.retryAfterSeconds === undefined) return error
  const nextStep = `${isWrite ? 'The change was not made. ' : ''}${waitFor(details.retryAfterSeconds)}`
  return new SdpError('down', error.message, { ...details, nextStep })
}

const waitFor = (seconds: number) => `The site asks to wait ${seconds} seconds before the next call.`
const lookAfter = (seconds: number) =>
  `${waitFor(seconds)} Do not repeat it blindly: read the record first; repeat only if the change is not there.`

function retryAfter(answer: HttpAnswer, now: number): number | undefined {
  const header = answer.header('retry-after')
  if (!header) return undefined
  const seconds = /^\d+$/.test(header) ? Number(header) : Math.ceil((Date.parse(header) - now) / 1000)
  return Number.isFinite(seconds) && seconds >= 0 ? seconds : undefined
}

/** Rejects when the signal aborts, even in the middle of a back-off pause. */
function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) {
    work.catch(() => {})
    return Promise.reject(signal.reason)
  }
  return new Promise((done, failed) => {
    const onAbort = () => failed(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    work.then(done, failed).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

function page(body: Json, path: SdpPath, info: ListInfo | undefined): SdpPage {
  const found = listedRows(body)
  if (found === undefined) {
    throw new SdpError('drift', 'A list was expected, the answer holds none.', { call: `GET ${path.template}` })
  }
  const total = Number(text(at(body, 'list_info.total_count')))
  return {
    rows: found,
    // a page without rows is the last one, whatever the flag says (docs/sdp-api.md 3.2)
    hasMore: found.length > 0 && flag(at(body, 'list_info.has_more_rows')) === true,
    total: Number.isInteger(total) ? total : undefined,
    startIndex: info?.start_index ?? 1,
  }
}

function listedRows(body: Json): Json[] | undefined {
  const arrays = Object.entries(body).filter(([key, value]) => key !== 'response_status' && Array.isArray(value))
  if (arrays.length > 0) return rows(arrays[0]?.[1])
  // an empty list may come without its key
  return isObject(body.list_info) ? [] : undefined
}
