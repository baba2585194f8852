import type { Situation } from './plan.ts'

type Asked = Situation['asked']
type Look = { begun: boolean; asked: Asked; done: Promise<void>; next: Look | null }

/**
 * Looks at users, one look at a time for each. Calls for one user share one look; a call during a look causes one more
 * after it, because what the caller changed may have been missed by the look under way.
 *
 * @param look - looks at one user and does what is to do; calls `begin` before it reads, which tells who asked by then
 */
export function createLooks({ look }: { look(userId: string, begin: () => Asked): Promise<void> }) {
  const looks = new Map<string, Look>()

  async function run(userId: string, current: Look): Promise<void> {
    looks.set(userId, current)
    try {
      await look(userId, () => {
        current.begun = true
        return current.asked
      })
    } finally {
      if (!current.next) looks.delete(userId)
    }
  }

  function begin(userId: string, asked: Asked, after?: Look): Look {
    const look: Look = { begun: false, asked, done: Promise.resolve(), next: null }
    look.done = after ? after.done.catch(() => {}).then(() => run(userId, look)) : run(userId, look)
    // whoever waits hears of a failure; nobody may be waiting
    look.done.catch(() => {})
    return look
  }

  return {
    /** @returns when a look that began after this call is over */
    at(userId: string, asked: Asked): Promise<void> {
      const current = looks.get(userId)
      if (!current) return begin(userId, asked).done
      const joined = current.begun ? current.next : current
      if (joined) {
        joined.asked = stronger(joined.asked, asked)
        return joined.done
      }
      current.next = begin(userId, asked, current)
      return current.next.done
    },
    underWay: (userId: string) => looks.has(userId),
    all: () => [...looks.values()].map(({ done }) => done),
  }
}

function stronger(a: Asked, b: Asked): Asked {
  return a === 'admin' || b === 'admin' ? 'admin' : (a ?? b)
}
