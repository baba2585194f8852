import type { Boot } from '@sdp-mcp/instance/contract'

/** What the fleet asks of whatever starts instances. Every verb can be repeated: "already stopped" and "already gone" are success. */
export interface Runtime {
  readonly kind: 'docker' | 'process'

  /** Throws {@link RuntimeError} `unreachable` when the engine does not answer within 3 s. */
  ping(): Promise<{ version: string }>

  /** Memory of the machine that instances run on, in MiB. */
  hostMemoryMb(): Promise<number>

  /** Whether instances can be started from this image. */
  hasImage(image: string): Promise<boolean>

  /**
   * All instances this installation owns, running or not; recognised by label, never remembered.
   * @param userId - only those of one user, with every detail
   */
  list(userId?: string): Promise<ObservedInstance[]>

  /**
   * Creates and starts one instance, hands it its boot material, and returns as soon as the process runs
   * (not when it is healthy). An older instance of the same user is left alone; the fleet removes it. One of the
   * same generation is returned when it runs, and used again when it is stopped and still defined the same way.
   * `boot.listen.host` is the runtime's to choose. Leaves nothing behind when it fails.
   */
  start(spec: InstanceSpec): Promise<ObservedInstance>

  /** Ends the process within `graceSeconds` (SIGTERM, then SIGKILL); a container is kept for its logs until removed. */
  stop(id: string, graceSeconds: number): Promise<void>

  /** Ends and removes the instance and what belongs to it alone (its network). */
  remove(id: string): Promise<void>

  /** Removes what belongs to no instance any more, and mends what instances need around them (e.g. network peers). */
  tidy(): Promise<void>

  /** Plain text, oldest first. `follow` goes on until the signal aborts or the instance ends. */
  logs(id: string, options: { tail: number; follow: boolean; signal: AbortSignal }): Promise<AsyncIterable<Uint8Array>>

  /**
   * Calls back when instances may have changed; says only that it is worth looking again.
   * A lost event stream is reopened by itself. Ends when the signal aborts.
   */
  watch(changed: (userId: string | null) => void, signal: AbortSignal): void

  close(): Promise<void>
}

/** what calls under way get to end before an instance is killed */
export const stopGraceSeconds = 10

export type InstanceSpec = {
  boot: Boot
  image: string
  limits: Limits
}

/** `restricted`: the instance reaches its peers, and the world through the control plane's egress proxy only */
export type Limits = { memoryMb: number; cpus: number; pids: number; egress?: 'open' | 'restricted' }

/** Limits in a form that can be compared, e.g. `256m 1cpu 128p`. */
export function limitsKey({ memoryMb, cpus, pids, egress }: Limits): string {
  return `${memoryMb}m ${cpus}cpu ${pids}p${egress === 'restricted' ? ' restricted' : ''}`
}

export type ObservedInstance = {
  /** container id, or process id of a process runtime */
  id: string
  userId: string
  generation: number
  image: string
  /** {@link limitsKey} of what it was started with; null when that is not known */
  limits: string | null
  running: boolean
  /** where the control plane reaches it, e.g. `http://127.0.0.1:42000`; null unless running */
  address: string | null
  /** set once it has ended; an instance that neither runs nor has ended was never started */
  exit: { code: number; outOfMemory: boolean; at: Date | null } | null
  /** null when it never ran; a list of everybody may leave it out */
  startedAt: Date | null
}

/**
 * Why a runtime could not do it:
 * `unreachable` the engine does not answer · `image-missing` · `port-taken` another program holds the port ·
 * `no-space` disk full · `network-exhausted` no free subnet · `refused` anything else the engine said
 */
export type RuntimeErrorKind =
  | 'unreachable'
  | 'image-missing'
  | 'port-taken'
  | 'no-space'
  | 'network-exhausted'
  | 'refused'

export class RuntimeError extends Error {
  readonly kind: RuntimeErrorKind
  /** @param message - what happened and what to do next, fit for an admin */
  constructor(kind: RuntimeErrorKind, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.name = 'RuntimeError'
    this.kind = kind
  }
}
