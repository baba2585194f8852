import type { InstanceContext } from './context.ts'

/** The granted Zoho scopes, as far as known without waiting; tells when they change. */
export interface Grants {
  /** Empty while unknown. Reads the keeper at most every 30 seconds, and never waits longer than a moment. */
  scopes(): Promise<readonly string[]>
  /** @returns ends the subscription */
  onChange(listener: () => void): () => void
}

const freshMs = 30_000
const patienceMs = 250

export function createGrants(context: Pick<InstanceContext, 'tokens' | 'now' | 'log'>): Grants {
  const listeners = new Set<() => void>()
  let known: readonly string[] = []
  let readAt = Number.NEGATIVE_INFINITY
  let reading: Promise<void> | undefined

  async function read(): Promise<void> {
    try {
      const { scopes } = await context.tokens.status()
      readAt = context.now()
      const isChanged = scopes.join(' ') !== known.join(' ')
      known = scopes
      if (isChanged) for (const listener of listeners) listener()
    } catch (error) {
      context.log.warn({ err: error }, 'grants.unreadable')
    }
  }

  return {
    async scopes() {
      if (context.now() - readAt > freshMs) {
        reading ??= read().finally(() => {
          reading = undefined
        })
        await Promise.race([reading, new Promise(done => setTimeout(done, patienceMs).unref())])
      }
      return known
    },
    onChange(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
}
