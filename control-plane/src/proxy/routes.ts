import { createUpstream, type Upstream } from './upstream.ts'

type Target = { address: string; generation: number }

/** Where a user's instance is, and the connections to it. */
export type Route = Target & {
  userId: string
  upstream: Upstream
  /** the instance before a move, for the sessions that began there */
  draining: DrainingRoute | null
}

export type DrainingRoute = Target & {
  upstream: Upstream
  /** sessions that are known to be there, and those that are known not to be */
  sessions: Set<string>
  elsewhere: Set<string>
  /** what is being asked just now */
  asking: Promise<SessionsSeen> | null
}

/** Sessions of an instance that drains, or, should it not answer, of the one in its place; null: no answer. */
export type SessionsSeen = { draining: readonly string[] | null; current: readonly string[] | null }

/**
 * The route table: user -> instance. Fed by the fleet alone, which asks the runtime; no address ever comes from a request.
 */
export interface Routes {
  get(userId: string): Route | undefined
  /** Points a user to another instance, or nowhere. Exchanges under way on the old one are left to end. */
  set(userId: string, to: (Target & { draining?: Target | null }) | null): void
  all(): Route[]
  close(): Promise<void>
}

const sweepMs = 5_000

const same = (one: Target | null | undefined, other: Target | null | undefined) =>
  one?.address === other?.address && one?.generation === other?.generation

const bothOf = (route: Route): (Route | DrainingRoute)[] => (route.draining ? [route, route.draining] : [route])

export function createRoutes(): Routes {
  const routes = new Map<string, Route>()
  const sweeper = setInterval(() => {
    for (const route of routes.values()) for (const { upstream } of bothOf(route)) upstream.sweep()
  }, sweepMs)
  sweeper.unref()

  function drain(to: Target, before: DrainingRoute | null, upstream: Upstream): DrainingRoute {
    if (before && same(before, to)) return before
    const { address, generation } = to
    return { address, generation, upstream, sessions: new Set(), elsewhere: new Set(), asking: null }
  }

  return {
    get: userId => routes.get(userId),
    set(userId, to) {
      const current = routes.get(userId)
      const draining = to?.draining ?? null
      if (current && to && same(current, to) && same(current.draining, draining)) return
      const before = current ? bothOf(current) : []
      // an instance keeps its connections when it goes from one role to the other
      const upstreamOf = (target: Target) =>
        before.find(one => same(one, target))?.upstream ?? createUpstream(target.address)
      if (to)
        routes.set(userId, {
          userId,
          address: to.address,
          generation: to.generation,
          upstream: upstreamOf(to),
          draining: draining && drain(draining, current?.draining ?? null, upstreamOf(draining)),
        })
      else routes.delete(userId)
      for (const one of before) if (!same(one, to) && !same(one, draining)) one.upstream.retire()
    },
    all: () => [...routes.values()],
    async close() {
      clearInterval(sweeper)
      for (const route of routes.values()) for (const { upstream } of bothOf(route)) upstream.destroy()
      routes.clear()
    },
  }
}
