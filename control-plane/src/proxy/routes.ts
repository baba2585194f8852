import { Pool } from 'undici'

/** Where a user's instance is, and the connections to it. */
export type Route = {
  userId: string
  address: string
  generation: number
  pool: Pool
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

export function createRoutes(): Routes {
  const routes = new Map<string, Route>()
  const retire = (route: Route) => void route.pool.close().catch(() => {})
  return {
    get: userId => routes.get(userId),
    set(userId, to) {
      const current = routes.get(userId)
      if (current && to && current.address === to.address && current.generation === to.generation) return
      if (to)
        routes.set(userId, {
          userId,
          ...to,
          // each held stream occupies a connection, so their number is not limited here
          pool: new Pool(to.address, {
            connections: null,
            pipelining: 1,
            keepAliveTimeout: 30_000,
            connect: { timeout: 2_000 },
          }),
        })
      else routes.delete(userId)
      if (current) retire(current)
    },
    all: () => [...routes.values()],
    async close() {
      const open = [...routes.values()]
      routes.clear()
      await Promise.all(open.map(route => route.pool.destroy().catch(() => {})))
    },
  }
}
