import { type ClientRequest, Agent as HttpAgent, type IncomingMessage, request } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'

/** How an exchange ended that should not have; `what` tells kinds apart when they are counted. */
export class SoakError extends Error {
  readonly what: string
  constructor(what: string, message: string) {
    super(`${what}: ${message}`)
    this.what = what
  }
}

const agent = new HttpAgent({ keepAlive: true, maxSockets: 64 })

/**
 * One client of the legacy transport by hand: an event stream that stays open, and messages beside it. Hundreds of them fit
 * into one process, and nothing of a client library hides what happened.
 */
export type StreamClient = {
  readonly isOpen: boolean
  /** @throws SoakError when no answer comes, or an error */
  ask(method: string, params?: Record<string, unknown>): Promise<unknown>
  close(): void
}

const answerMs = 30_000

/**
 * Opens a stream and introduces itself.
 * @param onEnd - the stream ended although nobody closed it
 * @throws SoakError
 */
export async function openStream(url: string, key: string, onEnd: () => void): Promise<StreamClient> {
  const headers = { authorization: `Bearer ${key}` }
  const waiting = new Map<number, { answered(result: unknown): void; failed(error: Error): void }>()
  let isOpen = true
  let id = 0
  let endpoint: string | undefined
  let opened = () => {}
  const hasEndpoint = new Promise<void>(done => {
    opened = done
  })

  const { stream, call } = await openEvents(url, headers)
  let text = ''
  stream.setEncoding('utf8')
  stream.on('data', (chunk: string) => {
    text += chunk
    for (let end = text.indexOf('\n\n'); end !== -1; end = text.indexOf('\n\n')) {
      const event = text.slice(0, end)
      text = text.slice(end + 2)
      const data = /^data: (.*)$/m.exec(event)?.[1]
      if (data === undefined) continue
      if (/^event: endpoint$/m.test(event)) {
        endpoint = data
        opened()
      } else heard(data)
    }
  })
  stream.once('close', () => end(new SoakError('stream-ended', 'the event stream ended while a call was under way')))
  stream.on('error', () => {})

  function heard(data: string): void {
    const message = JSON.parse(data) as { id?: number; result?: unknown; error?: { message: string } }
    const found = message.id === undefined ? undefined : waiting.get(message.id)
    if (!found || message.id === undefined) return
    waiting.delete(message.id)
    if (message.error) found.failed(new SoakError('answered-with-error', message.error.message))
    else found.answered(message.result)
  }
  function end(error: Error): void {
    if (!isOpen) return
    isOpen = false
    for (const one of waiting.values()) one.failed(error)
    waiting.clear()
    onEnd()
  }

  async function send(message: Record<string, unknown>): Promise<void> {
    const { status, body } = await post(new URL(endpoint as string, url), headers, { jsonrpc: '2.0', ...message })
    if (status !== 202) throw new SoakError(`refused-${status}`, body.slice(0, 300))
  }
  async function ask(method: string, params: Record<string, unknown> = {}): Promise<unknown> {
    if (!isOpen) throw new SoakError('stream-ended', 'the event stream had ended before the call')
    const own = ++id
    let timer: NodeJS.Timeout | undefined
    const answer = new Promise((answered, failed) => {
      waiting.set(own, { answered, failed })
      timer = setTimeout(
        () => failed(new SoakError('no-answer', `${method} had no answer in ${answerMs} ms`)),
        answerMs,
      )
    })
    answer.catch(() => {})
    try {
      await send({ id: own, method, params })
      return await answer
    } finally {
      clearTimeout(timer)
      waiting.delete(own)
    }
  }
  function close(): void {
    isOpen = false
    for (const one of waiting.values()) one.failed(new SoakError('closed', 'the client left'))
    call.destroy()
  }

  try {
    await Promise.race([
      hasEndpoint,
      delay(answerMs, undefined, { ref: false }).then(() => {
        throw new SoakError('no-endpoint', `no endpoint event in ${answerMs} ms`)
      }),
    ])
    const clientInfo = { name: 'sdp-mcp-soak', version: '1.0.0' }
    await ask('initialize', { protocolVersion: '2025-06-18', capabilities: {}, clientInfo })
    await send({ method: 'notifications/initialized' })
  } catch (error) {
    close()
    throw error
  }
  return {
    get isOpen() {
      return isOpen
    },
    ask,
    close,
  }
}

function openEvents(
  url: string,
  headers: Record<string, string>,
): Promise<{ stream: IncomingMessage; call: ClientRequest }> {
  return new Promise((done, failed) => {
    const call = request(url, { headers: { ...headers, accept: 'text/event-stream' }, agent: false })
    call.once('error', error => failed(new SoakError('unreachable', error.message)))
    call.once('response', stream => {
      if (stream.statusCode === 200) return done({ stream, call })
      read(stream).then(body => failed(new SoakError(`refused-${stream.statusCode}`, body.slice(0, 300))), failed)
    })
    call.end()
  })
}

function post(url: URL, headers: Record<string, string>, message: unknown): Promise<{ status: number; body: string }> {
  return new Promise((done, failed) => {
    const call = request(url, { method: 'POST', agent, headers: { ...headers, 'content-type': 'application/json' } })
    call.setTimeout(60_000, () => call.destroy(new Error('no answer in 60 s')))
    call.once('error', error => failed(new SoakError('unreachable', error.message)))
    call.once('response', response => {
      read(response).then(body => done({ status: response.statusCode ?? 0, body }), failed)
    })
    call.end(JSON.stringify(message))
  })
}

async function read(response: IncomingMessage): Promise<string> {
  let text = ''
  try {
    for await (const chunk of response.setEncoding('utf8')) text += chunk
  } catch (error) {
    throw new SoakError('unreachable', (error as Error).message)
  }
  return text
}
