import { Cache } from '../sdp/cache.ts'
import { at, type Json } from '../sdp/json.ts'

/** What a ticket held before the last change made through this server. */
export type Remembered = { fields: string[]; before: Json; at: number }

/** Keeps the last change of each ticket for an hour, so that it can be taken back. */
export interface Undo {
  remember(requestId: string, before: Json, fields: string[]): void
  last(requestId: string): Remembered | undefined
  forget(requestId: string): void
}

export function createUndo(options: { now: () => number }): Undo {
  const changes = new Cache<Remembered>({ size: 200, maxAgeMs: 3_600_000, now: options.now })
  return {
    remember(requestId, before, fields) {
      // only the fields concerned: a ticket may be large
      const kept = Object.fromEntries(fields.map(field => [field, at(before, field) ?? null]))
      changes.set(requestId, { fields, before: kept, at: options.now() })
    },
    last: requestId => changes.get(requestId),
    forget: requestId => changes.delete(requestId),
  }
}
