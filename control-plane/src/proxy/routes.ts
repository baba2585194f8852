import { createUpstream, type Upstream } from './upstream.ts'

/** Where a user's instance is, and the connections to it. */
export type Route = {
  userId: string
  address: string
  generation: number
  upstream: Upstream
}

/**
 * The route table: user -> instance. Fed by the fleet alone, which asks the runtime; no address ever comes from a request.
 */
export interface Routes {
  get(userId: string): Route | undefined
  /** Points a user to another instance, or nowhere. Exchanges under way on the old one are left to end. */
  set(userId: string, to: { address: string; generation: number } | null): void
  all(): Route[]
  close(): Promise<void>
}

const sweepMs = 5_000

export function createRoutes(): Routes {
  const routes = new Map<string, Route>()
  const sweeper = setInterval(() => {
    for (const route of routes.values()) route.upstream.sweep()
  }, sweepMs)
  sweeper.unref()
  return {
    get: userId => routes.get(userId),
    set(userId, to) {
      const current = routes.get(userId)
      if (current && to && current.address === to.address && current.generation === to.generation) return
      if (to) routes.set(userId, { userId, ...to, upstream: createUpstream(to.address) })
      else routes.delete(userId)
      current?.upstream.retire()
    },
    all: () => [...routes.values()],
    async close() {
      clearInterval(sweeper)
      for (const route of routes.values()) route.upstream.destroy()
      routes.clear()
    },
  }
}
