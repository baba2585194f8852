import { Agent } from 'node:http'
import type { Duplex } from 'node:stream'
import { inspect } from 'node:util'
import Docker from 'dockerode'
import { type EngineRequest, isGone, toRuntimeError } from './docker-errors.ts'
import { createGate } from './gate.ts'

/** The only importer of dockerode. */
export type { Docker }

/** The API of one Docker engine: calls that are bounded in number and time, and fail as RuntimeError (runtime.ts). */
export interface DockerEngine {
  readonly docker: Docker
  /** One call; what changes something by default, and so may wait for the disk. */
  ask<T>(
    request: Pick<EngineRequest, 'doing' | 'image' | 'port'> & { timeoutMs?: number },
    call: (abortSignal: AbortSignal) => Promise<T>,
  ): Promise<T>
  /** Opens a stream within the time limit; afterwards it lives until `signal` aborts, or the engine is left. */
  open<T>(doing: string, signal: AbortSignal, call: (signal: AbortSignal) => Promise<T>): Promise<T>
  /** Writes to a stream and ends it. */
  write(doing: string, stream: Duplex, text: string): Promise<void>
  /** @returns null when there is none */
  inspectContainer(id: string): Promise<Docker.ContainerInspectInfo | null>
  /** aborts when the engine is left */
  readonly closing: AbortSignal
  close(): void
}

const defaultAddress = 'unix:///var/run/docker.sock'
// the engine answers a reading call in milliseconds; what changes something may wait for the disk
export const readTimeoutMs = 10_000
export const changeTimeoutMs = 30_000
const concurrentCalls = 8

/** @param engine - where it listens: `unix:///var/run/docker.sock`, a plain path, or `tcp://host:port` */
export function createDockerEngine(engine: string = defaultAddress): DockerEngine {
  // dockerode describes everything it sends, for a log that is off: the agent with all its sockets took a millisecond a call
  const agent = Object.assign(new Agent({ keepAlive: true }), { [inspect.custom]: () => 'Agent' })
  const docker = new Docker({ ...engineAddress(engine), agent } as Docker.DockerOptions)
  const gate = createGate(concurrentCalls)
  const closing = new AbortController()

  const ask: DockerEngine['ask'] = (request, call) => {
    const timeoutMs = request.timeoutMs ?? changeTimeoutMs
    return gate.run(async () => {
      const signal = AbortSignal.timeout(timeoutMs)
      try {
        // the race: a client that forgets to settle its promise must not hang the fleet
        return await Promise.race([call(signal), whenAborted(signal)])
      } catch (error) {
        throw toRuntimeError(error, { ...request, engine, timeoutMs })
      }
    })
  }

  return {
    docker,
    ask,
    async open(doing, signal, call) {
      const opening = new AbortController()
      const timer = setTimeout(() => opening.abort(new DOMException('timed out', 'TimeoutError')), readTimeoutMs)
      const either = AbortSignal.any([signal, closing.signal, opening.signal])
      try {
        return await Promise.race([call(either), whenAborted(either)])
      } catch (error) {
        throw toRuntimeError(error, { doing, engine, timeoutMs: readTimeoutMs })
      } finally {
        clearTimeout(timer)
      }
    },
    async write(doing, stream, text) {
      const signal = AbortSignal.timeout(readTimeoutMs)
      try {
        await Promise.race([
          whenAborted(signal),
          new Promise<void>((done, failed) => {
            stream.once('error', failed)
            // Handed to the engine's socket, which delivers it even if we leave now. The engine keeps its side open for
            // as long as the container runs, so there is no later sign to wait for.
            stream.once('finish', done)
            stream.end(text)
          }),
        ])
      } catch (error) {
        throw toRuntimeError(error, { doing, engine, timeoutMs: readTimeoutMs })
      }
    },
    async inspectContainer(id) {
      try {
        return await ask({ doing: `looking at the container ${id}`, timeoutMs: readTimeoutMs }, abortSignal =>
          docker.getContainer(id).inspect({ abortSignal } as Docker.ContainerInspectOptions),
        )
      } catch (error) {
        if (isGone(error)) return null
        throw error
      }
    },
    closing: closing.signal,
    close() {
      closing.abort()
      agent.destroy()
    },
  }
}

function engineAddress(engine: string): Record<string, unknown> {
  if (engine.startsWith('/')) return { socketPath: engine, host: undefined, protocol: 'http' }
  const url = new URL(engine)
  if (url.protocol === 'unix:') return { socketPath: url.pathname, host: undefined, protocol: 'http' }
  // the library fills what we leave out from its own reading of the environment: leave nothing out
  return {
    socketPath: undefined,
    host: url.hostname,
    port: Number(url.port || 2375),
    protocol: url.protocol === 'https:' ? 'https' : 'http',
  }
}

function whenAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, failed) => {
    if (signal.aborted) failed(signal.reason)
    else signal.addEventListener('abort', () => failed(signal.reason), { once: true })
  })
}
