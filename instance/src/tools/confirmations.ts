import { createHash, randomBytes } from 'node:crypto'
import { Cache } from '../sdp/cache.ts'
import type { Json } from '../sdp/json.ts'

/**
 * Tokens that tie an execution to its preview: valid once, for ten minutes, for the same tool and the same input. Each
 * keeps what the preview was made of, so that what is carried out is what was shown, without reading it again.
 * They live in memory; after a restart the preview is asked for again.
 */
export interface Confirmations {
  issue(tool: string, input: Json, plan?: unknown): string
  /** Uses the token up. @returns the plan it was issued with; undefined when it does not fit */
  redeem(token: string, tool: string, input: Json): { plan: unknown } | undefined
}

const maxAgeMs = 10 * 60_000

export function createConfirmations(options: { now: () => number }): Confirmations {
  const open = new Cache<{ digest: string; plan: unknown }>({ size: 200, maxAgeMs, now: options.now })
  return {
    issue(tool, input, plan) {
      const token = randomBytes(9).toString('base64url')
      open.set(token, { digest: digest(tool, input), plan })
      return token
    },
    redeem(token, tool, input) {
      const known = open.get(token)
      if (known === undefined || known.digest !== digest(tool, input)) return undefined
      open.delete(token)
      return { plan: known.plan }
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
