import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { exchangeOf } from './exchange.ts'

/** Carries out the faults `drop-after` and `drop-midway` on a finished answer. */
export function cutAnswer(request: FastifyRequest, reply: FastifyReply, payload: unknown): unknown {
  const { cut } = exchangeOf(request)
  const { socket } = request.raw
  if (cut === 'before-answer') socket.destroy()
  if (cut !== 'midway') return payload
  const whole = Buffer.isBuffer(payload) ? payload : Buffer.from(String(payload ?? ''))
  reply.header('content-length', whole.length)
  return Readable.from(
    (async function* half() {
      yield whole.subarray(0, Math.floor(whole.length / 2))
      // Let the first half leave before the line goes dead.
      await new Promise(resolve => setTimeout(resolve, 20))
      socket.destroy()
    })(),
  )
}
