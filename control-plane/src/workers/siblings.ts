import type { Logger } from '../log.ts'

/**
 * The other workers of this control plane, for what must be true in all of them before an answer is given, and for what is
 * counted together. All messages go through the primary (supervisor.ts). What must also reach control planes elsewhere goes
 * through the database instead.
 */
export interface Siblings {
  /** workers of this control plane, this one included */
  readonly count: number
  /**
   * Asks every other worker that listens, and waits for at most two seconds: a worker that hangs or ends answers nothing.
   * @returns one answer for each that gave one
   * @throws Error what another worker failed with
   */
  ask<Answer = void>(question: string, detail?: unknown): Promise<Answer[]>
  /** Tells every other worker, without waiting. */
  tell(question: string, detail?: unknown): void
  /** What this worker does when it is asked or told. @param by - number of the worker that asks */
  // biome-ignore lint/suspicious/noExplicitAny: both ends are of the same version, and each question has one asker
  on(question: string, answer: (detail: any, by: number) => unknown): void
  /** A worker has ended, and what it held is gone. */
  onEnded(handler: (number: number) => void): void
}

/** What worker and primary send each other. */
export type Message =
  | { sdp: 'ask'; id: number; question: string; detail: unknown }
  | { sdp: 'tell'; question: string; detail: unknown }
  | { sdp: 'asked'; id: number | null; by: number; question: string; detail: unknown }
  | { sdp: 'answer'; id: number; answer?: unknown; error?: string }
  | { sdp: 'answers'; id: number; answers: unknown[]; errors: string[] }
  | { sdp: 'ended'; number: number }

export function isMessage(value: unknown): value is Message {
  return typeof value === 'object' && value !== null && 'sdp' in value
}

/** A control plane of one process. */
export const noSiblings: Siblings = { count: 1, ask: async () => [], tell() {}, on() {}, onEnded() {} }

/** The part of `process` that a worker needs. */
export type Channel = {
  connected: boolean
  send?(message: Message): unknown
  on(event: 'message', listener: (message: unknown) => void): unknown
}

/** For a worker: speaks with the primary over the channel that `fork` opened. */
export function connectSiblings({ channel, count, log }: { channel: Channel; count: number; log: Logger }): Siblings {
  const handlers = new Map<string, (detail: unknown, by: number) => unknown>()
  const endings: ((number: number) => void)[] = []
  const waiting = new Map<number, (found: { answers: unknown[]; errors: string[] }) => void>()
  let lastId = 0

  const send = (message: Message) => {
    // a primary that is gone takes us along at once
    if (channel.connected) channel.send?.(message)
  }

  async function asked({ id, by, question, detail }: Message & { sdp: 'asked' }): Promise<void> {
    try {
      const answer = await handlers.get(question)?.(detail, by)
      if (id !== null) send({ sdp: 'answer', id, answer })
    } catch (error) {
      log.warn({ error, question }, 'worker.question.failed')
      if (id !== null) send({ sdp: 'answer', id, error: error instanceof Error ? error.message : String(error) })
    }
  }

  channel.on('message', message => {
    if (!isMessage(message)) return
    if (message.sdp === 'asked') void asked(message)
    else if (message.sdp === 'answers') {
      waiting.get(message.id)?.(message)
      waiting.delete(message.id)
    } else if (message.sdp === 'ended') for (const handler of endings) handler(message.number)
  })

  return {
    count,
    async ask<Answer>(question: string, detail?: unknown) {
      const id = ++lastId
      const { answers, errors } = await new Promise<{ answers: unknown[]; errors: string[] }>(done => {
        waiting.set(id, done)
        send({ sdp: 'ask', id, question, detail })
      })
      if (errors.length > 0) throw new Error(errors[0])
      return answers as Answer[]
    },
    tell: (question, detail) => send({ sdp: 'tell', question, detail }),
    on: (question, answer) => void handlers.set(question, answer),
    onEnded: handler => void endings.push(handler),
  }
}
