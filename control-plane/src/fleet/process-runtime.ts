import { type ChildProcess, spawn } from 'node:child_process'
import { createServer } from 'node:net'
import { totalmem } from 'node:os'
import { bootVariable, exitCodes } from '@sdp-mcp/instance/contract'
import type { Logger } from '../log.ts'
import { limitsKey, type ObservedInstance, type Runtime, RuntimeError } from './runtime.ts'

/**
 * Instances as child processes, for evaluation on one machine. There is NO isolation: every instance runs as the
 * user of the control plane and can read what that user can read. Instances end with the control plane.
 */

export type ProcessRuntimeOptions = {
  /** the instance's script */
  entry: string
  log: Logger
  /** passed on to instances beside the boot variable, e.g. `NODE_EXTRA_CA_CERTS`; nothing else of our environment is */
  environment?: Record<string, string>
}

const keptLogLines = 1_000
const closeGraceSeconds = 5

// Runs in the child before its script. The channel to the parent closes when the parent is gone, however it went.
const lifeline = `data:text/javascript,${encodeURIComponent(`
process.once('disconnect', () => {
  setTimeout(() => process.exit(143), 5000).unref()
  process.kill(process.pid, 'SIGTERM')
})
process.channel?.unref()
`)}`

type Child = {
  process: ChildProcess
  observed: ObservedInstance
  log: string[]
  /** called with each new line, and with null at the end */
  followers: Set<(line: string | null) => void>
  ended: Promise<void>
}

export function createProcessRuntime({ entry, log, environment = {} }: ProcessRuntimeOptions): Runtime {
  const children = new Map<string, Child>()
  const watchers = new Set<(userId: string | null) => void>()
  // the channel ends them too; this is sooner
  const killAll = () => {
    for (const child of children.values()) if (child.observed.running) child.process.kill('SIGKILL')
  }
  process.once('exit', killAll)
  log.warn('fleet.process-runtime.no-isolation: instances share the user of the control plane. For evaluation only.')

  async function stop(id: string, graceSeconds: number): Promise<void> {
    const child = children.get(id)
    if (!child?.observed.running) return
    child.process.kill('SIGTERM')
    const timer = setTimeout(() => child.process.kill('SIGKILL'), graceSeconds * 1000)
    await child.ended
    clearTimeout(timer)
  }

  return {
    kind: 'process',

    async ping() {
      return { version: process.version }
    },

    async hostMemoryMb() {
      return Math.floor(totalmem() / 1_048_576)
    },

    // the name is kept, but every instance runs the same program
    async hasImage() {
      return true
    },

    async list(userId) {
      return [...children.values()]
        .map(child => ({ ...child.observed }))
        .filter(observed => userId === undefined || observed.userId === userId)
    },

    async start({ boot, image, limits }) {
      for (const [id, { observed }] of children) {
        if (observed.userId !== boot.user.id || observed.generation !== boot.generation) continue
        if (observed.running) return { ...observed }
        children.delete(id)
      }
      const { port } = boot.listen
      if (!(await isFree(port)))
        throw new RuntimeError(
          'port-taken',
          `Another program on this machine holds port ${port} of 127.0.0.1. The next free port of SDP_INSTANCE_PORT_RANGE is used instead.`,
        )
      const heapMb = Math.max(48, Math.floor(limits.memoryMb * 0.75))
      const child = spawn(process.execPath, [`--max-old-space-size=${heapMb}`, `--import=${lifeline}`, entry], {
        env: { ...environment, [bootVariable]: 'stdin' },
        stdio: ['pipe', 'pipe', 'pipe', 'ipc'],
      })
      try {
        await new Promise<void>((done, failed) => {
          child.once('spawn', done)
          child.once('error', failed)
        })
      } catch (cause) {
        throw new RuntimeError(
          'refused',
          `The instance of ${boot.user.username} could not be started: ${(cause as Error).message}`,
          { cause },
        )
      }
      const id = String(child.pid)
      const kept: Child = {
        process: child,
        observed: {
          id,
          userId: boot.user.id,
          generation: boot.generation,
          image,
          limits: limitsKey(limits),
          running: true,
          address: `http://127.0.0.1:${port}`,
          exit: null,
          startedAt: new Date(),
        },
        log: [],
        followers: new Set(),
        ended: new Promise(done =>
          // "close" comes when the last output is read
          child.once('close', (code, signal) => {
            const heapFull = kept.log.some(line => line.includes('JavaScript heap out of memory'))
            kept.observed.running = false
            kept.observed.address = null
            kept.observed.exit = {
              code: code ?? (signal === 'SIGKILL' ? 137 : signal === 'SIGTERM' ? 143 : exitCodes.internal),
              outOfMemory: heapFull,
              at: new Date(),
            }
            for (const follower of kept.followers) follower(null)
            done()
            for (const changed of watchers) changed(boot.user.id)
          }),
        ),
      }
      const note = (line: string) => {
        kept.log.push(line)
        if (kept.log.length > keptLogLines) kept.log.shift()
        for (const follower of kept.followers) follower(line)
      }
      eachLine(child.stdout!, note)
      eachLine(child.stderr!, note)
      child.on('error', error => log.warn({ error, username: boot.user.username }, 'fleet.process.error'))
      children.set(id, kept)
      // an instance that dies at once closes its input; its exit tells more than this error
      child.stdin!.on('error', () => {})
      child.stdin!.end(`${JSON.stringify({ ...boot, listen: { port, host: '127.0.0.1' } })}\n`)
      return { ...kept.observed }
    },

    stop,

    async remove(id) {
      await stop(id, 0)
      children.delete(id)
    },

    async tidy() {},

    async logs(id, { tail, follow, signal }) {
      const child = children.get(id)
      return follow && child?.observed.running ? followLog(child, tail, signal) : pastLog(child?.log.slice(-tail) ?? [])
    },

    watch(changed, signal) {
      watchers.add(changed)
      signal.addEventListener('abort', () => watchers.delete(changed), { once: true })
    },

    async close() {
      await Promise.all([...children.keys()].map(id => stop(id, closeGraceSeconds)))
      process.removeListener('exit', killAll)
    },
  }
}

/** Asked before the start, because a child's complaint would come too late to be an answer to it. */
function isFree(port: number): Promise<boolean> {
  return new Promise(done => {
    const probe = createServer()
    probe.once('error', () => done(false))
    probe.listen(port, '127.0.0.1', () => probe.close(() => done(true)))
  })
}

async function* pastLog(lines: string[]): AsyncGenerator<Uint8Array> {
  for (const line of lines) yield Buffer.from(`${line}\n`)
}

async function* followLog(child: Child, tail: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const waiting: (string | null)[] = child.log.slice(-tail)
  let wake = () => {}
  const follower = (line: string | null) => {
    waiting.push(line)
    wake()
  }
  const stop = () => wake()
  child.followers.add(follower)
  signal.addEventListener('abort', stop, { once: true })
  try {
    while (!signal.aborted) {
      const line = waiting.shift()
      if (line === null) return
      if (line !== undefined) yield Buffer.from(`${line}\n`)
      else
        await new Promise<void>(done => {
          wake = done
        })
    }
  } finally {
    child.followers.delete(follower)
    signal.removeEventListener('abort', stop)
  }
}

function eachLine(stream: NodeJS.ReadableStream, note: (line: string) => void): void {
  let rest = ''
  stream.setEncoding('utf8').on('data', (chunk: string) => {
    const parts = (rest + chunk).split('\n')
    // a line without end must not fill the memory
    rest = (parts.pop() ?? '').slice(0, 64 * 1024)
    for (const part of parts) note(part)
  })
  stream.on('end', () => {
    if (rest) note(rest)
  })
}
