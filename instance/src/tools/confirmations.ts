import { createHash, randomBytes } from 'node:crypto'
import { Cache } from '../sdp/cache.ts'
import type { Json } from '../sdp/json.ts'

/**
 * Tokens that tie an execution to its preview: valid once, for ten minutes, for the same tool and the same input.
 * They live in memory; after a restart the preview is asked for again.
 */
export interface Confirmations {
  issue(tool: string, input: Json): string
  /** Uses the token up. */
  redeem(token: string, tool: string, input: Json): boolean
}

const maxAgeMs = 10 * 60_000

export function createConfirmations(options: { now: () => number }): Confirmations {
  const open = new Cache<string>({ size: 200, maxAgeMs, now: options.now })
  return {
    issue(tool, input) {
      const token = randomBytes(9).toString('base64url')
      open.set(token, digest(tool, input))
      return token
    },
    redeem(token, tool, input) {
      const expected = open.get(token)
      if (expected === undefined || expected !== digest(tool, input)) return false
      open.delete(token)
      return true
    },
  }
}

/** Key order and absent keys do not matter. */
function digest(tool: string, input: Json): string {
  const entries = Object.entries(input)
    .filter(([, value]) => value !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
  return createHash('sha256')
    .update(JSON.stringify([tool, entries]))
    .digest('base64')
}
