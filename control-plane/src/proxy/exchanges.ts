import type { IncomingMessage, ServerResponse } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import type { Meter } from '../activity.ts'
import type { Identity, Revocation } from '../directory.ts'
import type { ProxyMetrics } from '../metrics.ts'
import { type Exchange, type Outcome, pump, type Target } from './pump.ts'

/** Exchanges under way, by user: begun, counted, and ended before their time. */
export interface Exchanges {
  /** Carries a request to an instance. @returns how it ended; never rejects */
  begin(
    request: IncomingMessage,
    response: ServerResponse,
    identity: Identity,
    target: Target & { meter: Meter },
  ): Promise<Outcome>
  /** Ends those that a revocation concerns. @returns how many */
  cut(revocation: Revocation): number
  /** How many of each user. */
  open(): ReadonlyMap<string, number>
  /** Ends the streams, and calls after `graceMs`. */
  close(graceMs: number): Promise<void>
}

/** An exchange under way; `at` is its place among those of its user. */
type Open = {
  keyId: string
  isStream: boolean
  at: number
  exchange: Exchange | undefined
  cutBecause: Revocation['reason'] | 'shutdown' | undefined
}

const endedBy = {
  done: 'ended',
  aborted: 'client',
  unreachable: 'instance',
  stranger: 'instance',
  broken: 'instance',
} as const

export function createExchanges({ metrics, now }: { metrics: ProxyMetrics; now: () => number }): Exchanges {
  // Lists, not sets: a set that grows and shrinks with each request leaves tables behind that keep dead requests alive
  // until the next full collection, which made up a fifth of the CPU time and the worst of the latencies.
  const exchanges = new Map<string, Open[]>()

  function begin(
    request: IncomingMessage,
    response: ServerResponse,
    { userId, keyId }: Identity,
    target: Target & { meter: Meter },
  ): Promise<Outcome> {
    const ofUser = exchanges.get(userId) ?? []
    if (ofUser.length === 0) exchanges.set(userId, ofUser)
    const { meter, body } = target
    const isStream = request.method === 'GET'
    const open: Open = { keyId, isStream, at: ofUser.length, exchange: undefined, cutBecause: undefined }
    ofUser.push(open)
    meter.activeAt = now()
    if (body) meter.bytesIn += body.length
    if (isStream) meter.streams++
    else meter.calls++
    const { promise, resolve } = Promise.withResolvers<Outcome>()
    const finished = isStream
      ? streamFinished(open, ofUser, meter, resolve)
      : callFinished(open, ofUser, meter, resolve, request.method === 'DELETE' ? 'end' : 'call')
    open.exchange = pump(request, response, target, finished)
    return promise
  }

  // Made apart from what begins an exchange: a function keeps everything alive that is in reach where it is made, which for
  // a held stream would be the head that was sent, statement included.
  function streamFinished(open: Open, ofUser: Open[], meter: Meter, resolve: (outcome: Outcome) => void) {
    return (outcome: Outcome) => {
      takeOut(open, ofUser)
      meter.streams--
      metrics.streamClosed(open.cutBecause ?? endedBy[outcome.kind])
      meter.activeAt = now()
      resolve(outcome)
    }
  }

  function callFinished(
    open: Open,
    ofUser: Open[],
    meter: Meter,
    resolve: (outcome: Outcome) => void,
    kind: 'call' | 'end',
  ) {
    const beganAt = performance.now()
    return (outcome: Outcome) => {
      takeOut(open, ofUser)
      meter.calls--
      metrics.callDone(kind, outcome, performance.now() - beganAt)
      meter.activeAt = now()
      resolve(outcome)
    }
  }

  function takeOut(open: Open, ofUser: Open[]): void {
    const last = ofUser.pop()!
    if (last === open) return
    ofUser[open.at] = last
    last.at = open.at
  }

  return {
    begin,

    cut({ userId, keyIds, reason }) {
      const revoked = new Set(keyIds)
      let count = 0
      for (const open of [...(exchanges.get(userId) ?? [])]) {
        if (reason === 'key-revoked' && !revoked.has(open.keyId)) continue
        open.cutBecause = reason
        open.exchange?.cut()
        count++
      }
      if (reason === 'user-removed') exchanges.delete(userId)
      return count
    },

    open: () =>
      new Map([...exchanges].map(([userId, list]) => [userId, list.length] as const).filter(([, count]) => count > 0)),

    async close(graceMs) {
      const all = () => [...exchanges.values()].flat()
      const end = (open: Open) => {
        open.cutBecause = 'shutdown'
        open.exchange?.cut()
      }
      for (const open of all()) if (open.isStream) end(open)
      for (const deadline = now() + graceMs; all().length > 0 && now() < deadline; ) await delay(20)
      for (const open of all()) end(open)
    },
  }
}
