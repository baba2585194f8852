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

/** An exchange under way, in the ring of those of its user. */
type Open = {
  keyId: string
  isStream: boolean
  exchange: Exchange | undefined
  cutBecause: Revocation['reason'] | 'shutdown' | undefined
  before: Open
  after: Open
}

/**
 * The exchanges of one user: a ring that begins and ends with `anchor`, which is none of them. What is taken out points at
 * nothing any more. A set that grows and shrinks with each request leaves its earlier tables behind; V8 counts those as
 * alive until the next full collection once they are old, with all the dead requests that they name, which was a fifth of
 * the CPU time.
 */
type OfUser = { anchor: Open; count: number }

const endedBy = {
  done: 'ended',
  aborted: 'client',
  unreachable: 'instance',
  stranger: 'instance',
  broken: 'instance',
} as const

export function createExchanges({ metrics, now }: { metrics: ProxyMetrics; now: () => number }): Exchanges {
  const exchanges = new Map<string, OfUser>()

  function begin(
    request: IncomingMessage,
    response: ServerResponse,
    { userId, keyId }: Identity,
    target: Target & { meter: Meter },
  ): Promise<Outcome> {
    let ofUser = exchanges.get(userId)
    if (!ofUser) {
      ofUser = { anchor: alone(), count: 0 }
      exchanges.set(userId, ofUser)
    }
    const { meter, body } = target
    const isStream = request.method === 'GET'
    const { anchor } = ofUser
    const open: Open = {
      keyId,
      isStream,
      exchange: undefined,
      cutBecause: undefined,
      before: anchor.before,
      after: anchor,
    }
    open.before.after = open
    anchor.before = open
    ofUser.count++
    meter.activeAt = now()
    if (body) meter.bytesIn += body.length
    if (isStream) meter.streams++
    else meter.calls++
    const { promise, resolve } = Promise.withResolvers<Outcome>()
    const finished = isStream
      ? streamFinished(open, ofUser, meter, resolve)
      : callFinished(open, ofUser, meter, resolve, request.method === 'DELETE' ? 'end' : 'call')
    const exchange = pump(request, response, target, finished)
    // it may have ended within the call
    if (open.after !== open) open.exchange = exchange
    return promise
  }

  // Made apart from what begins an exchange: a function keeps everything alive that is in reach where it is made, which for
  // a held stream would be the head that was sent, statement included.
  function streamFinished(open: Open, ofUser: OfUser, meter: Meter, resolve: (outcome: Outcome) => void) {
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
    ofUser: OfUser,
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

  function takeOut(open: Open, ofUser: OfUser): void {
    open.before.after = open.after
    open.after.before = open.before
    open.before = open
    open.after = open
    open.exchange = undefined
    ofUser.count--
  }

  return {
    begin,

    cut({ userId, keyIds, reason }) {
      const revoked = new Set(keyIds)
      let count = 0
      for (const open of listed(exchanges.get(userId))) {
        if (reason === 'key-revoked' && !revoked.has(open.keyId)) continue
        open.cutBecause = reason
        open.exchange?.cut()
        count++
      }
      if (reason === 'user-removed') exchanges.delete(userId)
      return count
    },

    open: () =>
      new Map([...exchanges].map(([userId, { count }]) => [userId, count] as const).filter(([, count]) => count > 0)),

    async close(graceMs) {
      const all = () => [...exchanges.values()].flatMap(listed)
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

/** A ring of nothing but its anchor. */
function alone(): Open {
  const anchor = { keyId: '', isStream: false, exchange: undefined, cutBecause: undefined } as unknown as Open
  anchor.before = anchor
  anchor.after = anchor
  return anchor
}

/** As they are now; ending one of them changes the ring. */
function listed(ofUser: OfUser | undefined): Open[] {
  const list: Open[] = []
  if (ofUser) for (let open = ofUser.anchor.after; open !== ofUser.anchor; open = open.after) list.push(open)
  return list
}
