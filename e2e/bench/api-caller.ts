import { fork } from 'node:child_process'
import { once } from 'node:events'
import { Agent, request } from 'undici'

/** Calls of the API of ServiceDesk Plus as a bare client makes them: sent, read whole, parsed, nothing else. */
export type ApiCalls = { origin: string; token: string; urls: string[] }

export type ApiCaller = {
  /** Makes the calls `count` times, one after another. @returns milliseconds of each time */
  times(calls: ApiCalls, count: number): Promise<number[]>
  close(): Promise<void>
}

/** Calls from this process. */
export function callFromHere(): ApiCaller {
  const dispatcher = new Agent({ keepAliveTimeout: 60_000 })
  return {
    async times({ origin, token, urls }, count) {
      const headers = { authorization: `Zoho-oauthtoken ${token}`, accept: 'application/vnd.manageengine.sdp.v3+json' }
      const times: number[] = []
      for (let at = 0; at < count; at++) {
        const startedAt = performance.now()
        for (const url of urls) {
          const { statusCode, body } = await request(`${origin}${url}`, { dispatcher, headers })
          const text = await body.text()
          if (statusCode !== 200) throw new Error(`${url} was answered with ${statusCode}: ${text}`)
          JSON.parse(text)
        }
        times.push(performance.now() - startedAt)
      }
      return times
    },
    close: () => dispatcher.close(),
  }
}

/**
 * Calls from a process of its own, as an instance makes them: client and server in one process spare each other the way
 * through the scheduler, which no call of ServiceDesk Plus is spared.
 */
export function callFromOwnProcess(): ApiCaller {
  const child = fork(import.meta.filename, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const gone = once(child, 'exit')
  return {
    async times(calls, count) {
      child.send({ calls, count })
      const [answer] = (await Promise.race([
        once(child, 'message'),
        gone.then(([code]) => {
          throw new Error(`The process that calls the API ended with ${code}; what it said stands above.`)
        }),
      ])) as [number[]]
      return answer
    },
    async close() {
      if (child.connected) child.disconnect()
      await gone
    },
  }
}

if (import.meta.main && process.send) {
  const caller = callFromHere()
  process.on('message', async ({ calls, count }: { calls: ApiCalls; count: number }) => {
    process.send?.(await caller.times(calls, count))
  })
  process.on('disconnect', () => caller.close())
}
