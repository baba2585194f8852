import type { FastifyRequest } from 'fastify'

/** What becomes known about a request while it is served; the request log is written from it. */
export interface ExchangeNotes {
  startedAt: number
  user: string | null
  input?: unknown
  grantType?: string
  /** Set by the faults `drop-after` and `drop-midway`: what to do with the finished answer. */
  cut?: 'before-answer' | 'midway'
  logged: boolean
}

const notes = new WeakMap<FastifyRequest, ExchangeNotes>()

export function beginExchange(request: FastifyRequest, startedAt: number): ExchangeNotes {
  const fresh: ExchangeNotes = { startedAt, user: null, logged: false }
  notes.set(request, fresh)
  return fresh
}

export function exchangeOf(request: FastifyRequest): ExchangeNotes {
  const known = notes.get(request)
  if (!known) throw new Error('exchange not begun')
  return known
}
