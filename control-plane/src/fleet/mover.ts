import { setTimeout as delay } from 'node:timers/promises'
import type { Boot } from '@sdp-mcp/instance/contract'
import { AppError } from '../errors.ts'
import type { ReachFaultPoint } from '../fault-points.ts'
import type { Logger } from '../log.ts'
import type { InstanceRoute } from './fleet.ts'
import type { HealthChecker } from './health.ts'
import type { InstanceTable, Move, Subject } from './instance-table.ts'
import { startDeadlineMs } from './plan.ts'
import { type Limits, type ObservedInstance, type Runtime, RuntimeError } from './runtime.ts'

/**
 * Moves one user to another image without a gap: the new instance stands beside the old one until it has proved itself,
 * then new sessions go there while those of the old one end in peace.
 *
 *     nothing -> preparing (new one started, proved) -> draining (old one, no new sessions) -> nothing
 *
 * Each arrow is one transaction on table instance_moves. A move in `preparing` that is found by anybody but its maker was
 * cut short by a crash: the new instance is removed and the user stays where they are.
 */
export type Mover = ReturnType<typeof createMover>

/** `asleep`: nothing runs; `failing`: nothing works. The next start takes the image that is wanted then. */
export type MoveResult = 'moved' | 'asleep' | 'failing'

const shortestDrainLookMs = 1_000
const longestDrainLookMs = 10_000
const proofMs = 20_000

export function createMover(parts: {
  runtime: Runtime
  table: InstanceTable
  health: HealthChecker
  log: Logger
  now: () => number
  limits: Limits
  /** aborts when the fleet closes */
  signal: AbortSignal
  bootFor(userId: string, to: { generation: number; port: number }): Promise<Boot>
  prove(userId: string, instance: { address: string; generation: number }, signal: AbortSignal): Promise<void>
  withFreePort<T>(take: (port: number) => Promise<T>): Promise<T>
  /** @throws AppError `capacity-exhausted` unless one more fits beside the user's own */
  demandRoom(userId: string): Promise<void>
  /** another program holds this port */
  passOver(port: number): void
  setRoute(userId: string, to: InstanceRoute): void
  /** nobody is sent to the old instance any more */
  drained(userId: string): void
  /** stops an instance in order and removes it */
  remove(userId: string, found: ObservedInstance): Promise<void>
  look(userId: string): Promise<void>
  leading(): boolean
  /** a failure that has a code of its own */
  explain(error: unknown): AppError | undefined
  reach: ReachFaultPoint
}) {
  const { runtime, table, health, log, now, signal, reach } = parts
  const watched = new Set<string>()

  /** Under the user's lock. */
  async function moveTo(
    userId: string,
    image: string,
    drainSeconds: number,
    caller?: AbortSignal,
  ): Promise<MoveResult> {
    const stop = caller ? AbortSignal.any([signal, caller]) : signal
    stop.throwIfAborted()
    let subject = await table.read(userId)
    if (
      subject?.move?.phase === 'draining' &&
      subject.move.image === image &&
      (await moveBack(subject, subject.move, drainSeconds))
    )
      return 'moved'
    if (subject?.move && subject.wanted.state !== 'removed') {
      await end(subject, subject.move, await runtime.list(userId))
      subject = await table.read(userId)
    }
    if (subject?.wanted.state !== 'running' || !subject.row || subject.row.state === 'stopped') return 'asleep'
    if (subject.row.state === 'failed') return 'failing'
    const { username } = subject.wanted
    if (subject.row.state !== 'ready') throw changedMeanwhile(username)
    if (subject.row.image === image && subject.row.generation === subject.wanted.generation) {
      const { address, generation } = subject.row
      if (!address) throw changedMeanwhile(username)
      const proof = AbortSignal.any([stop, AbortSignal.timeout(proofMs)])
      await parts.prove(userId, { address, generation }, proof).catch(error => {
        throw notWorking(username, image, error)
      })
      return 'moved'
    }
    const old = { address: subject.row.address, generation: subject.row.generation }

    const mine = subject
    const move = await parts.withFreePort(async port => {
      await parts.demandRoom(userId)
      return table.beginMove(mine, { image, port })
    })
    if (!move) throw changedMeanwhile(username)
    reach('move.begun')
    log.info({ userId, username, image, generation: move.generation }, 'fleet.move.begun')
    try {
      const started = await startBeside(userId, move)
      reach('move.running')
      const address = await untilAnswers(userId, started, stop)
      await parts.prove(
        userId,
        { address, generation: move.generation },
        AbortSignal.any([stop, AbortSignal.timeout(proofMs)]),
      )
      reach('move.checked')
      const drainUntil = new Date(now() + drainSeconds * 1000)
      if (
        !(await table.swap(subject, move, {
          containerId: started.id,
          address,
          startedAt: started.startedAt,
          drainUntil,
        }))
      )
        throw changedMeanwhile(username)
      reach('move.swapped')
      const draining = old.address ? { address: old.address, generation: old.generation } : null
      parts.setRoute(userId, { address, generation: move.generation, draining })
      log.info({ userId, username, image, generation: move.generation }, 'fleet.move.swapped')
    } catch (error) {
      const found = await runtime.list(userId).catch(() => [])
      await end({ ...subject, move }, move, found).catch(leftover =>
        log.warn({ error: leftover, userId }, 'fleet.move.leftover'),
      )
      throw parts.explain(error) ?? notWorking(username, image, error)
    }
    const moved = await table.read(userId)
    if (moved) watchDrain(moved)
    return 'moved'
  }

  /** The way back is short while the old instance is still there: its sessions never left it. */
  async function moveBack(subject: Subject, move: Move, drainSeconds: number): Promise<boolean> {
    const { row, wanted } = subject
    const { address, containerId, generation } = move
    if (!address || !containerId || row?.state !== 'ready' || wanted.state !== 'running') return false
    if (!(await health.ask(wanted.userId, { address, generation }, signal))) return false
    const drainUntil = new Date(now() + drainSeconds * 1000)
    if (!(await table.swap(subject, move, { containerId, address, startedAt: null, drainUntil }))) return false
    const draining = row.address ? { address: row.address, generation: row.generation } : null
    parts.setRoute(wanted.userId, { address, generation, draining })
    log.info({ userId: wanted.userId, image: move.image, generation }, 'fleet.move.swapped-back')
    const moved = await table.read(wanted.userId)
    if (moved) watchDrain(moved)
    return true
  }

  async function startBeside(userId: string, move: Move): Promise<ObservedInstance> {
    for (let attempt = 1; ; attempt++) {
      const boot = await parts.bootFor(userId, { generation: move.generation, port: move.port })
      try {
        return await runtime.start({ boot, image: move.image, limits: parts.limits })
      } catch (error) {
        if (!(error instanceof RuntimeError && error.kind === 'port-taken') || attempt >= 20) throw error
        parts.passOver(move.port)
        await parts.withFreePort(async port => {
          await table.setMovePort(userId, port)
          move.port = port
        })
      }
    }
  }

  async function untilAnswers(
    userId: string,
    { id, address, generation }: ObservedInstance,
    stop: AbortSignal,
  ): Promise<string> {
    const deadline = now() + startDeadlineMs
    for (let pauseMs = 10; ; pauseMs = Math.min(200, pauseMs * 1.4)) {
      if (address && (await health.ask(userId, { address, generation }, stop))) return address
      stop.throwIfAborted()
      const found = (await runtime.list(userId)).find(one => one.id === id)
      if (!found?.running)
        throw new Error(found?.exit?.outOfMemory ? 'it ran out of memory' : `it ended (exit code ${found?.exit?.code})`)
      if (now() > deadline) throw new Error(`it did not answer within ${startDeadlineMs / 1000} s`)
      await delay(pauseMs, undefined, { signal: stop }).catch(() => {})
    }
  }

  /** Removes the second instance and forgets it. */
  async function end({ wanted }: Subject, move: Move, observed: ObservedInstance[]): Promise<void> {
    const { userId } = wanted
    if (move.phase === 'draining') parts.drained(userId)
    for (const found of observed)
      if (found.generation === move.generation)
        await parts.remove(userId, move.phase === 'draining' ? found : still(found))
    reach('move.drained')
    await table.endMove(userId, move)
    parts.drained(userId)
    log.info({ userId, phase: move.phase, generation: move.generation }, 'fleet.move.ended')
  }

  /** One that nobody ever reached has nothing to tell. */
  const still = (found: ObservedInstance): ObservedInstance => ({ ...found, address: null })

  /** Sessions that are in use, as far as the instance can tell them from those that were left; null when it is silent. */
  async function sessionsAt(userId: string, at: { address: string; generation: number }): Promise<number | null> {
    const answer = await health.ask(userId, at, signal)
    return answer && (answer.inUse ?? answer.sessions)
  }

  async function isDrained(userId: string, move: Move, found: ObservedInstance | undefined): Promise<boolean> {
    if (!found?.running || !found.address) return true
    if ((move.drainUntil?.getTime() ?? 0) <= now()) return true
    return (await sessionsAt(userId, { address: found.address, generation: move.generation })) === 0
  }

  /**
   * Looks, under the user's lock, whether a move is over.
   * @returns whether something changed
   */
  async function settle(subject: Subject, observed: ObservedInstance[]): Promise<boolean> {
    const { move, wanted } = subject
    if (!move) return false
    const found = observed.find(({ generation }) => generation === move.generation)
    // after a way back the next generation may be that of the instance that drains
    const clash = move.generation === wanted.generation && move.generation !== subject.row?.generation
    // the user was changed since: what drains would go on with the settings of before
    const outdated = move.phase === 'draining' && move.swappedTo !== null && move.swappedTo !== wanted.generation
    const over =
      clash ||
      outdated ||
      move.phase === 'preparing' ||
      wanted.state !== 'running' ||
      (await isDrained(wanted.userId, move, found))
    if (over) await end(subject, move, observed)
    else watchDrain(subject)
    return over
  }

  /**
   * Follows a drain to its end, once for each user. Only the old instance itself is asked, ever more seldom: clients may
   * hold on to it for minutes. The leader's sweep begins this again where it ended too early.
   */
  function watchDrain({ wanted: { userId }, move }: Subject): void {
    if (move?.phase !== 'draining' || watched.has(userId)) return
    watched.add(userId)
    void (async () => {
      for (let pauseMs = shortestDrainLookMs; !signal.aborted; pauseMs = Math.min(pauseMs * 1.2, longestDrainLookMs)) {
        await delay(pauseMs, undefined, { signal, ref: false }).catch(() => {})
        // read anew: a way back makes the other one drain
        const current = await table.read(userId).then(
          subject => subject?.move ?? null,
          () => undefined,
        )
        if (current === undefined) continue
        if (current?.phase !== 'draining') break
        if (await holds(userId, current)) continue
        await parts.look(userId)
        if (!parts.leading()) break
      }
      watched.delete(userId)
    })()
  }

  /** Whether the old instance says that somebody is still there, and it still may be. */
  async function holds(userId: string, { address, generation, drainUntil }: Move): Promise<boolean> {
    if (!address || (drainUntil?.getTime() ?? 0) <= now()) return false
    return ((await sessionsAt(userId, { address, generation })) ?? 0) > 0
  }

  return { moveTo, settle, watchDrain }
}

const notWorking = (username: string, image: string, error: unknown) =>
  new AppError(
    'instance-failed',
    `The instance of "${username}" with the image ${image} does not work: ${(error as Error).message}. The user keeps the image of before.`,
    { cause: error },
  )

const changedMeanwhile = (username: string) =>
  new AppError('instance-starting', `"${username}" is just being started or changed. The move is tried again.`, {
    retryAfterSeconds: 1,
  })
