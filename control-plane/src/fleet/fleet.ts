import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { type Boot, statementAudience } from '@sdp-mcp/instance/contract'
import type { Activity, Seen } from '../activity.ts'
import { type Db, type Leadership, sqlState } from '../db.ts'
import { AppError, catalogue, type ErrorCode } from '../errors.ts'
import type { ReachFaultPoint } from '../fault-points.ts'
import type { Logger } from '../log.ts'
import { type CapacityLimits, createCapacity } from './capacity.ts'
import { createGate } from './gate.ts'
import { createHealthChecker } from './health.ts'
import { type IdleLimits, isIdle } from './idle.ts'
import { createInstanceTable, type InstanceRow, instanceChannel, nothingKnown, type Subject } from './instance-table.ts'
import { createMover } from './mover.ts'
import { type Action, fail, type InstanceState, plan, type Situation, startDeadlineMs } from './plan.ts'
import { isPortFree } from './port-probe.ts'
import {
  type InstanceSpec,
  limitsKey,
  type ObservedInstance,
  type Runtime,
  RuntimeError,
  type RuntimeErrorKind,
} from './runtime.ts'

/**
 * Makes the runtime match what table users wants, and owns table instances, where it writes what it observes.
 *
 * Each user is looked at alone, under a lock that all control planes of a database share: read what is wanted and known,
 * ask the runtime what there is, plan (plan.ts), act. It may crash at any line; the next look finishes the job.
 * Looking is triggered by whoever changed something, by the runtime's events, and by a slow sweep over everybody. Sweep and
 * events are the leader's business; any control plane looks at a user on request.
 */
export interface Fleet {
  /** Takes over what already runs, without disturbing it, and begins to look after everything. */
  start(): Promise<void>
  /** Stops looking. Instances are left as they are, for the next start to adopt. */
  close(): Promise<void>
  /**
   * Looks at one user and does what is to do; returns when that is done, which for a start means that the instance was
   * started, not that it answers. Calls for one user share one look; a call during a look causes one more after it.
   *
   * @param options.asked - `admin`: wakes an idle instance and does not wait for the next try of a failed one
   * @throws AppError `engine-unreachable`, `database-unavailable`; the sweep goes on trying
   */
  reconcile(userId: string, options?: { asked?: 'client' | 'admin' }): Promise<void>
  /** Looks at everybody. */
  reconcileAll(): Promise<void>
  /**
   * Waits until the user's instance answers, waking or starting it where needed. Many callers cause one start.
   *
   * @param options.signal - aborts this caller's wait; the start that others may wait for goes on
   * @throws AppError `instance-failed` or the reason's own code, with `retryAfterSeconds`
   * @throws AppError `instance-starting` when `timeoutMs` have passed
   * @throws AppError `user-not-found`, `user-suspended`
   */
  ensureReady(userId: string, options: { timeoutMs: number; signal?: AbortSignal }): Promise<InstanceRoute>
  /**
   * Puts a ready instance to sleep; the next connect wakes it. One that somebody uses after all stays.
   * @returns whether it sleeps now
   */
  sleep(userId: string): Promise<boolean>
  /**
   * Starts an instance of another image beside the user's own, proves it, and moves new sessions there; sessions of the
   * old one stay with it until they end, `drainSeconds` at most. What does not prove itself is removed, and nothing changes.
   *
   * @returns `asleep`: there is nothing to move, the next start takes the image that is wanted then
   * @throws AppError `instance-failed` with the reason, `capacity-exhausted`, `engine-unreachable`, ...
   */
  moveTo(userId: string, image: string, options: { drainSeconds: number }): Promise<'moved' | 'asleep'>
  /**
   * Whether another user could be served.
   * @throws AppError `engine-unreachable`, `port-range-exhausted`, `capacity-exhausted`
   */
  checkCapacity(): Promise<void>
  /** Whether this control plane is the one that looks after everybody. */
  leading(): boolean
}

/** Where a user's instance is; `draining`: where sessions that began before a move still are. */
export type InstanceRoute = {
  address: string
  generation: number
  draining: { address: string; generation: number } | null
}

/** What happens, for metrics. */
export type FleetObserver = {
  /** an instance answers; `wake`: it slept before */
  ready(kind: 'start' | 'wake', tookMs: number): void
  failed(code: string): void
  /** a sweep of the leader, or of a follower, which knows the states only */
  swept(tookMs: number, states: Record<InstanceState, number>, sessions: number): void
}

export type FleetOptions = {
  db: Db
  runtime: Runtime
  config: {
    image: string
    /** first and last port of instances */
    portRange: readonly [number, number]
    limits: InstanceSpec['limits']
    capacity: CapacityLimits
    idle: IdleLimits
  }
  activity: Pick<Activity, 'meter' | 'read' | 'forget'>
  log: Logger
  now: () => number
  bootFor(userId: string, to: { generation: number; port: number }): Promise<Boot>
  /** told where a user's instance is, or that it is nowhere; may be told the same again */
  onRoute(userId: string, to: InstanceRoute | null): void
  /** called before an instance that answers is stopped; what takes long is cut short */
  beforeStop(userId: string, instance: { address: string; generation: number }): Promise<void>
  /** @throws Error when the instance does not serve MCP */
  prove(userId: string, instance: { address: string; generation: number }, signal: AbortSignal): Promise<void>
  /** called before the instance of a removed user goes; null when none could be made to run */
  beforeRemove(userId: string, instance: { address: string; generation: number } | null): Promise<void>
  /** called when nothing of a removed user is left in the runtime */
  afterRemove(userId: string): Promise<void>
  observe?: FleetObserver
  /** does nothing but in tests of recovery */
  reach?: ReachFaultPoint
  random?: () => number
}

const longestSweepMs = 15_000
const shortestSweepMs = 500
/** other control planes have heard of a change by now */
const heardMs = 300
const lastWordsMs = 2_000
const stopGraceSeconds = 10
const goodbyeMs = 12_000
/** a start that failed but is tried again this soon is worth waiting for */
const patienceMs = 1_500
const longestStartMs = 60_000
const engineRetryMs = 5_000
const foreignPortMs = 10 * 60_000
// each look holds a database connection and occupies the engine
const concurrentLooks = 8
const concurrentChecks = 32

type Watcher = { containerId: string; ready: Promise<InstanceRoute>; abort: AbortController }
type Flight = { begun: boolean; asked: Situation['asked']; done: Promise<void>; next: Flight | null }

export function createFleet(options: FleetOptions): Fleet {
  const { db, runtime, config, activity, log, now, bootFor, onRoute, beforeStop, beforeRemove, afterRemove } = options
  const { random = Math.random, reach = () => {}, observe } = options
  const [lowestPort, highestPort] = config.portRange
  const origin = randomBytes(6).toString('hex')
  const gate = createGate(concurrentLooks)
  const checkGate = createGate(concurrentChecks)
  // apart, so that whoever wakes an instance does not stand in line behind those that go to sleep or move
  const sleepGate = createGate(2)
  const moveGate = createGate(4)
  const health = createHealthChecker()
  const closing = new AbortController()
  const table = createInstanceTable({ db, image: config.image, origin, now })
  const capacity = createCapacity({ runtime, limits: config.capacity, now })
  const capacityGate = createGate(1)
  const limits = limitsKey(config.limits)

  /** where each user's instance was last seen ready; what onRoute was told */
  const routes = new Map<string, InstanceRoute>()
  const watchers = new Map<string, Watcher>()
  const flights = new Map<string, Flight>()
  const waiters = new Map<string, Promise<InstanceRoute>>()
  const retries = new Map<string, NodeJS.Timeout>()
  const silentChecks = new Map<string, number>()
  /** when each container was started, as far as we saw it: another time means another hand */
  const startedAt = new Map<string, number>()
  /** users whose instance slept before the start under way */
  const woken = new Set<string>()
  /** users who are being put to sleep */
  const sleeping = new Set<string>()
  /** users whose ready instance had no session at the last sweep */
  const unusedNow = new Set<string>()
  /** ports that other programs hold, and until when we believe it */
  const foreignPorts = new Map<number, number>()
  let sweepTimer: NodeJS.Timeout | undefined
  let sweeping: Promise<void> | undefined
  let leadership: Leadership | undefined
  let listener: { close(): Promise<void> } | undefined

  const { read } = table

  /** Writes what is now known of an instance, under the user's lock. */
  async function record(subject: Subject, change: Partial<InstanceRow> & { state: InstanceState }): Promise<void> {
    const { userId, username } = subject.wanted
    const before = subject.row
    const row = await table.record(subject, change)
    if (before?.state !== row.state || before.reasonCode !== row.reasonCode)
      log.info({ username, userId, reasonCode: row.reasonCode, failures: row.failures }, `fleet.instance.${row.state}`)
  }

  function setRoute(userId: string, to: InstanceRoute | null): void {
    if (to) routes.set(userId, to)
    else if (!routes.delete(userId)) return
    // A route is told again even if it is the same: whoever carries requests may have dropped it in doubt.
    onRoute(userId, to)
  }

  /** Nobody is sent to the old instance of a move any more. */
  function drained(userId: string): void {
    const route = routes.get(userId)
    if (route?.draining) setRoute(userId, { ...route, draining: null })
  }

  const drainingOf = ({ move }: Subject) =>
    move?.phase === 'draining' && move.address ? { address: move.address, generation: move.generation } : null

  // ---- looking at one user -----------------------------------------------------------------------------------------

  function reconcile(userId: string, { asked }: { asked?: Situation['asked'] } = {}): Promise<void> {
    const flight = flights.get(userId)
    if (!flight) return launch(userId, asked).done
    const joined = flight.begun ? flight.next : flight
    if (joined) {
      joined.asked = stronger(joined.asked, asked)
      return joined.done
    }
    // what the caller changed may have been missed by the look under way
    const next: Flight = { begun: false, asked, done: Promise.resolve(), next: null }
    next.done = flight.done.catch(() => {}).then(() => fly(userId, next))
    next.done.catch(() => {})
    flight.next = next
    return next.done
  }

  function launch(userId: string, asked: Situation['asked']): Flight {
    const flight: Flight = { begun: false, asked, done: Promise.resolve(), next: null }
    flight.done = fly(userId, flight)
    flight.done.catch(() => {})
    return flight
  }

  async function fly(userId: string, flight: Flight): Promise<void> {
    flights.set(userId, flight)
    try {
      await gate.run(() =>
        db.withLock(lockOf(userId), () => {
          flight.begun = true
          return look(userId, flight.asked)
        }),
      )
    } finally {
      if (!flight.next) flights.delete(userId)
    }
  }

  async function look(userId: string, asked: Situation['asked']): Promise<void> {
    if (closing.signal.aborted) return
    let [subject, listed] = await Promise.all([
      read(userId),
      runtime.list(userId).catch((error: unknown) => asRuntimeError(error)),
    ])
    // the door closes even if the engine cannot be asked
    if (subject?.wanted.state !== 'running') setRoute(userId, null)
    if (listed instanceof RuntimeError) {
      if (subject) await engineFailed(subject, listed)
      throw toAppError(listed)
    }
    if (subject?.move && subject.wanted.state !== 'removed' && (await mover.settle(subject, listed))) {
      ;[subject, listed] = await Promise.all([read(userId), runtime.list(userId)])
    }
    const actions = plan(situationOf(subject, listed, asked))
    for (const { id, startedAt: at } of listed) if (at && !startedAt.has(id)) startedAt.set(id, at.getTime())
    for (const action of actions) await act(userId, subject, listed, action)
    const current = listed.find(({ id, running }) => running && id === subject?.row?.containerId)
    // ready, but not by our own eyes, or somebody doubts it
    if (subject?.row?.state === 'ready' && current && actions.length === 0)
      if (asked || routes.get(userId)?.address !== current.address) watchHealth(subject, current)
  }

  function situationOf(subject: Subject | null, observed: ObservedInstance[], asked: Situation['asked']): Situation {
    const move = subject?.wanted.state === 'removed' ? null : subject?.move
    return {
      wanted: subject && { ...subject.wanted, limits },
      known: subject?.row ?? null,
      // the other one of a move is the mover's business
      observed: move ? observed.filter(({ generation }) => generation !== move.generation) : observed,
      now: new Date(now()),
      ...(asked ? { asked } : {}),
      restartedByOthers: observed.some(
        ({ id, startedAt: at }) => at && (startedAt.get(id) ?? at.getTime()) !== at.getTime(),
      ),
      silentChecks: (subject && silentChecks.get(subject.wanted.userId)) ?? 0,
      unused: subject !== null && !move && unusedNow.has(subject.wanted.userId),
      random: random(),
    }
  }
  async function act(
    userId: string,
    subject: Subject | null,
    observed: ObservedInstance[],
    action: Action,
  ): Promise<void> {
    if (action.do === 'remove') {
      if (action.because === 'orphan' && !(await table.anyUsers())) {
        log.error(
          { id: action.id, userId },
          'fleet.orphan.kept: the database has no users at all. Is it the right one?',
        )
        return
      }
      log.info({ id: action.id, userId, because: action.because }, 'fleet.instance.removing')
      startedAt.delete(action.id)
      await runtime.remove(action.id).catch(rethrow)
      if (action.because === 'user-removed') reach('remove.container')
      return
    }
    if (!subject) return
    switch (action.do) {
      case 'start':
        return startInstance(subject)
      case 'replace':
        return replaceInstance(subject, action.id, action.because)
      case 'adopt': {
        const found = observed.find(({ id }) => id === action.id)!
        const { row } = subject
        if (row?.state !== 'starting' || row.containerId !== found.id)
          await record(subject, { state: 'starting', ...nothingKnown, ...identity(found) })
        watchHealth(subject, found)
        return
      }
      case 'stop':
        return stop(
          userId,
          observed.find(({ id }) => id === action.id),
          action.id,
        )
      case 'note-stopped':
        closeDoor(userId)
        return record(subject, {
          state: 'stopped',
          reasonCode: action.code,
          reason: action.reason,
          retryAt: null,
          address: null,
        })
      case 'fail':
        return failInstance(subject, action)
      case 'wait':
        return scheduleRetry(userId, action.until)
      case 'say-goodbye':
        await sayGoodbye(subject, observed, action.id)
        return reach('remove.goodbye')
      case 'erase':
        for (const { id } of await runtime.list(userId).catch(rethrow)) await runtime.remove(id).catch(rethrow)
        await afterRemove(userId)
        reach('remove.erased')
        activity.forget(userId)
        silentChecks.delete(userId)
        unusedNow.delete(userId)
        log.info({ userId, username: subject.wanted.username }, 'fleet.user.erased')
    }
  }

  const rethrow = (error: unknown): never => {
    throw toAppError(asRuntimeError(error))
  }

  /** Stops an instance in order: it gets a moment to tell what it counted, and its calls get the grace to end. */
  async function stop(userId: string, seen: ObservedInstance | undefined, id: string): Promise<void> {
    if (seen?.address) await lastWords(userId, { address: seen.address, generation: seen.generation })
    await runtime.stop(id, stopGraceSeconds).catch(rethrow)
  }

  async function lastWords(userId: string, instance: { address: string; generation: number }): Promise<void> {
    const said = beforeStop(userId, instance).catch(error => log.warn({ error, userId }, 'fleet.last-words.missed'))
    await Promise.race([said, delay(lastWordsMs, undefined, { ref: false })])
  }

  function closeDoor(userId: string, why?: AppError): void {
    watchers.get(userId)?.abort.abort(why ?? superseded())
    watchers.delete(userId)
    setRoute(userId, null)
  }

  // ---- starting ----------------------------------------------------------------------------------------------------

  async function startInstance(subject: Subject): Promise<void> {
    const { userId, generation, image } = subject.wanted
    closeDoor(userId)
    const slept = subject.row?.state === 'stopped'
    const tried = new Set<number>()
    for (;;) {
      try {
        const port = await allotPort(subject)
        reach('start.recorded')
        tried.add(port)
        const boot = await bootFor(userId, { generation, port })
        const started = await runtime.start({ boot, image, limits: config.limits })
        reach('start.running')
        if (slept) woken.add(userId)
        else woken.delete(userId)
        await record(subject, { ...subject.row!, ...nothingKnown, ...identity(started), changedAt: new Date(now()) })
        silentChecks.delete(userId)
        watchHealth(subject, started)
        return
      } catch (error) {
        if (error instanceof AppError && error.code === 'database-unavailable') throw error
        if (error instanceof RuntimeError && error.kind === 'port-taken' && tried.size < 20) {
          const port = subject.row!.port!
          log.warn({ userId, port }, 'fleet.port.taken')
          foreignPorts.set(port, now() + foreignPortMs)
          continue
        }
        if (error instanceof RuntimeError && error.kind === 'unreachable') {
          await engineFailed(subject, error)
          throw toAppError(error)
        }
        return failInstance(subject, fail(situationOf(subject, [], undefined), whyNotStarted(error), null))
      }
    }
  }

  function whyNotStarted(error: unknown): { code: FailureCode; reason: string } {
    if (error instanceof RuntimeError) return { code: codeOf[error.kind], reason: error.message }
    if (error instanceof AppError) return { code: error.code, reason: error.message }
    log.error({ error }, 'fleet.start.failed')
    return {
      code: 'internal',
      reason: 'Something went wrong here while it was started. The log of the control plane tells more.',
    }
  }

  /**
   * Notes the start together with the port, which a user keeps for life unless another program takes it.
   * @throws AppError `port-range-exhausted`, `capacity-exhausted`
   */
  async function allotPort(subject: Subject): Promise<number> {
    const starting = {
      state: 'starting',
      ...nothingKnown,
      containerId: null,
      address: null,
      generation: subject.wanted.generation,
      image: subject.wanted.image,
      failures: subject.row?.generation === subject.wanted.generation ? subject.row.failures : 0,
    } as const
    const kept = subject.row?.port
    // counted and noted one at a time, so that many who come at once do not all find the last place free
    if (kept && usable(kept))
      return capacityGate.run(async () => {
        await capacity.demandRoom(await table.countOthersRunning(subject.wanted.userId))
        await record(subject, { ...starting, port: kept })
        return kept
      })
    return withFreePort(async port => {
      await capacity.demandRoom(await table.countOthersRunning(subject.wanted.userId))
      await record(subject, { ...starting, port })
      return port
    })
  }

  const usable = (port: number) => port >= lowestPort && port <= highestPort && (foreignPorts.get(port) ?? 0) <= now()

  /** Gives `take` a free port; one that another control plane took meanwhile (unique violation) is passed over. */
  function withFreePort<T>(take: (port: number) => Promise<T>): Promise<T> {
    return capacityGate.run(async () => {
      for (let attempt = 0; attempt < 100; attempt++) {
        const foreign = [...foreignPorts.keys()].filter(port => !usable(port))
        const free = await table.freePort(config.portRange, foreign)
        if (free === undefined) {
          // a program that held a port may be gone by now
          const freed = await Promise.all(foreign.map(async port => ((await isPortFree(port)) ? [port] : [])))
          if (freed.flat().length === 0) throw portsExhausted()
          for (const port of freed.flat()) foreignPorts.delete(port)
          continue
        }
        try {
          return await take(free)
        } catch (error) {
          if (sqlState(error) !== '23505') throw error
        }
      }
      throw portsExhausted()
    })
  }

  const portsExhausted = () =>
    new AppError(
      'port-range-exhausted',
      `Every port from ${lowestPort} to ${highestPort} is in use. Remove users who left, or widen SDP_INSTANCE_PORT_RANGE.`,
      { retryAfterSeconds: 60 },
    )

  async function replaceInstance(subject: Subject, id: string, because: string): Promise<void> {
    const { userId, username } = subject.wanted
    log.info({ userId, username, because }, 'fleet.instance.replacing')
    // new requests wait for the new one from here on; what is under way has the grace to end
    closeDoor(userId)
    const { address, generation } = subject.row ?? {}
    await record(subject, { state: 'draining', ...nothingKnown, address: null })
    if (address && generation) await lastWords(userId, { address, generation })
    await runtime.stop(id, stopGraceSeconds).catch(rethrow)
    await startInstance(subject)
    await runtime.remove(id).catch(error => log.warn({ error, id }, 'fleet.instance.leftover'))
  }

  // ---- watching a start --------------------------------------------------------------------------------------------

  /** Waits until an instance answers as itself, then lets the user's requests in. One watcher for each user. */
  function watchHealth(subject: Subject, found: ObservedInstance): void {
    const { userId } = subject.wanted
    const before = watchers.get(userId)
    if (before?.containerId === found.id) return
    before?.abort.abort(superseded())
    const abort = new AbortController()
    if (found.startedAt) startedAt.set(found.id, found.startedAt.getTime())
    const ready = untilHealthy(subject, found, abort.signal)
    const watcher: Watcher = { containerId: found.id, ready, abort }
    watchers.set(userId, watcher)
    const forget = () => {
      if (watchers.get(userId) === watcher) watchers.delete(userId)
    }
    ready.then(forget, forget)
  }

  async function untilHealthy(subject: Subject, found: ObservedInstance, stop: AbortSignal): Promise<InstanceRoute> {
    const { userId } = subject.wanted
    const { id, generation } = found
    const address = found.address
    const audience = statementAudience(userId, generation)
    const wasReady = subject.row?.state === 'ready'
    const since = wasReady ? now() : subject.row!.changedAt.getTime()
    const signal = AbortSignal.any([stop, closing.signal])
    let pauseMs = 10
    while (!address || !(await health.ask(address, audience, signal))) {
      signal.throwIfAborted()
      if (now() - since >= startDeadlineMs) {
        if (wasReady) silentChecks.set(userId, Number.MAX_SAFE_INTEGER)
        watchers.delete(userId)
        await reconcile(userId)
        throw superseded()
      }
      await delay(pauseMs, undefined, { signal }).catch(() => {})
      pauseMs = Math.min(100, pauseMs * 1.4)
    }
    signal.throwIfAborted()
    const noted = await table.markReady(userId, id, address)
    // somebody decided otherwise while it came up
    if (!noted || signal.aborted) throw superseded()
    silentChecks.delete(userId)
    // a drain may have ended while it came up
    const route = { address, generation, draining: drainingOf((await read(userId)) ?? subject) }
    setRoute(userId, route)
    const tookMs = now() - since
    log.info({ userId, username: subject.wanted.username, tookMs }, 'fleet.instance.ready')
    if (!wasReady) observe?.ready(woken.delete(userId) ? 'wake' : 'start', tookMs)
    return route
  }

  // ---- failing -----------------------------------------------------------------------------------------------------

  async function failInstance(subject: Subject, failure: Extract<Action, { do: 'fail' }>): Promise<void> {
    const { userId, username } = subject.wanted
    const { code, reason, failures, retryAt, stopId } = failure
    log.warn({ userId, username, code, reason, failures, retryAt }, 'fleet.instance.failure')
    observe?.failed(code)
    if (code === 'port-taken' && subject.row?.port) foreignPorts.set(subject.row.port, now() + foreignPortMs)
    await record(subject, { state: 'failed', reasonCode: code, reason, failures, retryAt, address: null })
    closeDoor(userId, failureOf(subject))
    silentChecks.delete(userId)
    if (stopId)
      await runtime.stop(stopId, stopGraceSeconds).catch(error => log.warn({ error, id: stopId }, 'fleet.stop.failed'))
    scheduleRetry(userId, retryAt)
  }

  /** An engine that does not answer says nothing of the instances: those that were ready stay so. */
  async function engineFailed(subject: Subject, error: RuntimeError): Promise<void> {
    const { row, wanted } = subject
    log.warn({ userId: wanted.userId, error }, 'fleet.engine.unreachable')
    if (wanted.state !== 'running') return
    if (row && ['ready', 'draining'].includes(row.state)) return
    if (row?.state === 'stopped' && row.reasonCode === 'idle') return
    const retryAt = new Date(now() + engineRetryMs)
    await record(subject, { state: 'failed', reasonCode: 'engine-unreachable', reason: error.message, retryAt })
    closeDoor(wanted.userId, failureOf(subject))
    scheduleRetry(wanted.userId, retryAt)
  }

  function failureOf({ wanted, row }: Subject): AppError {
    const code = row?.reasonCode ?? ''
    const known = code in catalogue && catalogue[code as ErrorCode][0] === 503
    const retryAfterSeconds = Math.max(1, Math.ceil(((row?.retryAt?.getTime() ?? 0) - now()) / 1000))
    return new AppError(
      known ? (code as ErrorCode) : 'instance-failed',
      `The instance of "${wanted.username}" is not running. ${row?.reason ?? ''}`.trim(),
      { retryAfterSeconds },
    )
  }

  function scheduleRetry(userId: string, at: Date): void {
    if (closing.signal.aborted) return
    clearTimeout(retries.get(userId))
    const timer = setTimeout(
      () => {
        retries.delete(userId)
        reconcile(userId).catch(report)
      },
      Math.max(0, at.getTime() - now()),
    )
    retries.set(userId, timer)
  }

  const report = (error: unknown) => {
    if (!closing.signal.aborted) log.warn({ error }, 'fleet.reconcile.failed')
  }

  // ---- removing ----------------------------------------------------------------------------------------------------

  /** Ends the user's grant while there still is an instance that can; one is started for it if need be. */
  async function sayGoodbye(subject: Subject, observed: ObservedInstance[], runningId: string | null): Promise<void> {
    const { userId } = subject.wanted
    closeDoor(userId)
    clearTimeout(retries.get(userId))
    await record(subject, { state: 'draining', ...nothingKnown })
    const running = observed.find(({ id }) => id === runningId)
    let instance = running?.address ? { address: running.address, generation: running.generation } : null
    if (subject.connected) {
      instance ??= await startForGoodbye(subject).catch(error => {
        log.warn({ userId, error }, 'fleet.goodbye.not-started')
        return null
      })
      if (instance && !(await answersSoon(userId, instance))) instance = null
    }
    if (instance) await lastWords(userId, instance)
    await beforeRemove(userId, instance)
  }

  async function startForGoodbye(subject: Subject): Promise<{ address: string; generation: number } | null> {
    const { userId, generation, image } = subject.wanted
    const port = await allotPort(subject)
    const boot = await bootFor(userId, { generation, port })
    const { address } = await runtime.start({ boot, image, limits: config.limits })
    return address === null ? null : { address, generation }
  }

  async function answersSoon(
    userId: string,
    { address, generation }: { address: string; generation: number },
  ): Promise<boolean> {
    const audience = statementAudience(userId, generation)
    const signal = AbortSignal.any([closing.signal, AbortSignal.timeout(goodbyeMs)])
    while (!signal.aborted) {
      if (await health.ask(address, audience, signal)) return true
      await delay(50)
    }
    return false
  }

  // ---- waiting for an instance -------------------------------------------------------------------------------------

  async function becomeReady(userId: string): Promise<InstanceRoute> {
    const giveUpAt = now() + longestStartMs
    for (;;) {
      const subject = await read(userId)
      if (!subject || subject.wanted.state === 'removed')
        throw new AppError('user-not-found', 'There is no such user. List the users with GET /v1/users.')
      if (subject.suspended)
        throw new AppError('user-suspended', 'Your access is suspended. Ask your admin to lift the suspension.')
      if (subject.adminWants === 'stopped') await table.wantRunning(userId)

      const { row, wanted } = subject
      const current = row?.state === 'ready' && row.generation === wanted.generation ? row : null
      const route = routes.get(userId)
      if (current && route?.generation === current.generation && (await answers(userId, route))) {
        // unless it was closed while we asked
        if (routes.get(userId) === route) {
          setRoute(userId, route)
          return route
        }
      }
      if (row?.state === 'failed' && row.generation === wanted.generation && row.retryAt) {
        const waitMs = row.retryAt.getTime() - now()
        if (waitMs > patienceMs) throw failureOf(subject)
        if (waitMs > 0) await delay(waitMs, undefined, { signal: closing.signal })
      }
      if (now() > giveUpAt) throw stillStarting()
      try {
        await reconcile(userId, { asked: 'client' })
      } catch (error) {
        // the engine is away, but the instance may well be there
        if (current?.address && error instanceof AppError && error.code === 'engine-unreachable') {
          const last = { address: current.address, generation: current.generation, draining: drainingOf(subject) }
          if (await answers(userId, last)) {
            setRoute(userId, last)
            return last
          }
        }
        throw error
      }
      const watcher = watchers.get(userId)
      if (watcher) {
        const found = await watcher.ready.catch(() => null)
        if (found) return found
      } else await delay(50, undefined, { signal: closing.signal })
      // failed, replaced by another decision, or another control plane is at it: look again
    }
  }

  async function answers(
    userId: string,
    { address, generation }: { address: string; generation: number },
  ): Promise<boolean> {
    return (await health.ask(address, statementAudience(userId, generation), closing.signal)) !== null
  }

  // ---- looking at everybody ----------------------------------------------------------------------------------------

  async function sweep(): Promise<void> {
    if (closing.signal.aborted) return
    const began = performance.now()
    const leads = leadership?.leading() ?? false
    let observed: ObservedInstance[] | null = null
    try {
      if (leads) await runtime.tidy()
      observed = await runtime.list()
    } catch (error) {
      log.warn({ error }, 'fleet.sweep.engine-unreachable')
    }
    // read after listing: whatever has a container by now had a user before
    const [subjects, seen] = await Promise.all([table.readAll(), leads ? activity.read() : new Map<string, Seen>()])
    const byUser = Map.groupBy(observed ?? [], ({ userId }) => userId)

    const sessions = await Promise.all(
      subjects.map(subject =>
        checkGate.run(() => checkHealth(subject, byUser.get(subject.wanted.userId), leads ? seen : null)),
      ),
    )
    const states = { starting: 0, ready: 0, stopped: 0, failed: 0, draining: 0 }
    for (const { row } of subjects) if (row) states[row.state]++
    const open = sessions.reduce((sum, count) => sum + count, 0)
    observe?.swept(performance.now() - began, states, open)
    if (!observed || !leads) return
    const looks: string[] = []
    for (const subject of subjects) {
      const { userId } = subject.wanted
      const ofUser = byUser.get(userId) ?? []
      byUser.delete(userId)
      const actions = plan(situationOf(subject, ofUser, undefined))
      const [first] = actions
      const { row } = subject
      const ready = row?.state === 'ready' && ofUser.find(({ id, running }) => running && id === row.containerId)
      if (subject.move?.phase === 'draining') mover.watchDrain(subject)
      if (first?.do === 'wait') {
        if (!retries.has(userId)) scheduleRetry(userId, first.until)
      } else if (
        first ||
        subject.move?.phase === 'preparing' ||
        (ready && routes.get(userId)?.address !== ready.address)
      )
        looks.push(userId)
    }
    if (subjects.length === 0 && byUser.size > 0)
      log.error(
        { count: byUser.size },
        'fleet.orphans.kept: instances run, but the database has no users. Is it the right one?',
      )
    else looks.push(...byUser.keys())
    // a sweep is over when it has seen everybody; what it found to do may take minutes
    for (const userId of looks) reconcile(userId).catch(report)
  }

  /**
   * Whether a ready instance still answers, and whether anybody uses it. Lets requests in when it was ready before us.
   * @returns open sessions
   * @param seen - traffic of everybody; null for one who does not lead, and so leaves what is idle or silent alone
   */
  async function checkHealth(
    subject: Subject,
    observed: ObservedInstance[] | undefined,
    seen: Map<string, Seen> | null,
  ): Promise<number> {
    const { wanted, row } = subject
    const { userId } = wanted
    if (wanted.state !== 'running' || row?.state !== 'ready') return 0
    const found = observed?.find(({ id, running }) => running && id === row.containerId)
    const address = found?.address ?? row.address
    if (!address || (observed && !found)) return 0
    const answer = await health.ask(address, statementAudience(userId, row.generation), closing.signal)
    if (closing.signal.aborted) return 0
    if (answer?.sessions === 0) unusedNow.add(userId)
    else unusedNow.delete(userId)
    if (!answer) {
      if (seen) silentChecks.set(userId, (silentChecks.get(userId) ?? 0) + 1)
      return 0
    }
    silentChecks.delete(userId)
    // what was read before a move tells nothing of its drain
    if (!subject.move && routes.get(userId)?.generation === row.generation) drained(userId)
    // a look may be changing it just now, and then knows better
    if (!routes.has(userId) && !flights.has(userId) && !sleeping.has(userId))
      setRoute(userId, { address, generation: row.generation, draining: drainingOf(subject) })
    if (seen && !subject.move && isIdle(usageOf(subject, seen.get(userId), answer.inFlight), config.idle))
      sleep(userId).catch(report)
    return answer.sessions
  }

  function usageOf({ wanted, row }: Subject, seen: Seen | undefined, inFlight: number) {
    const { calls } = activity.meter(wanted.userId)
    return { seen, readySince: row?.changedAt.getTime() ?? now(), inFlight: inFlight + calls, now: now() }
  }

  // ---- putting to sleep --------------------------------------------------------------------------------------------

  /**
   * Ends an instance nobody uses. The door is closed first, everywhere, and whoever knocks from then on waits for the
   * lock and wakes it; then it is looked whether somebody had slipped in, in which case the door opens again.
   *
   * @param limits - null: whatever the time since the last use, as long as no call is under way
   */
  async function sleep(userId: string, limits: IdleLimits | null = config.idle): Promise<boolean> {
    if (sleeping.has(userId)) return false
    sleeping.add(userId)
    return sleepGate
      .run(() => db.withLock(lockOf(userId), () => putToSleep(userId, limits)))
      .finally(() => sleeping.delete(userId))
  }

  async function putToSleep(userId: string, limits: IdleLimits | null): Promise<boolean> {
    const subject = await read(userId)
    const { wanted, row, move } = subject ?? {}
    if (!subject || wanted?.state !== 'running' || move) return false
    if (row?.state !== 'ready' || !row.containerId || !row.address || closing.signal.aborted) return false
    const { address, generation, containerId, changedAt } = row
    const idle = async () => {
      const [answer, seen] = await Promise.all([
        health.ask(address, statementAudience(userId, generation), closing.signal),
        activity.read(userId),
      ])
      const usage = usageOf({ ...subject, row }, seen.get(userId), answer?.inFlight ?? 0)
      return limits ? isIdle(usage, limits) : usage.inFlight === 0
    }
    if (!(await idle())) return false
    closeDoor(userId)
    await record(subject, {
      state: 'stopped',
      reasonCode: 'idle',
      reason: 'Nobody used it for a while. It starts with the next connection.',
      address: null,
    })
    await delay(heardMs)
    if (!(await idle())) {
      await record(subject, { state: 'ready', ...nothingKnown, address, changedAt })
      setRoute(userId, { address, generation, draining: null })
      return false
    }
    await lastWords(userId, { address, generation })
    await runtime.stop(containerId, stopGraceSeconds).catch(rethrow)
    return true
  }

  function sweepOnce(): Promise<void> {
    sweeping ??= sweep().finally(() => {
      sweeping = undefined
    })
    return sweeping
  }

  /** Another control plane of this database changed an instance. */
  async function heard(payload: string | null): Promise<void> {
    if (payload === null) return sweepOnce()
    const [from, userId] = payload.split(' ')
    if (from === origin || !userId) return
    const subject = await read(userId)
    const row = subject?.row
    if (subject?.wanted.state === 'running' && row?.state === 'ready' && row.address)
      setRoute(userId, { address: row.address, generation: row.generation, draining: drainingOf(subject) })
    else if (row?.state !== 'starting')
      closeDoor(userId, subject && row?.state === 'failed' ? failureOf(subject) : undefined)
    else setRoute(userId, null)
  }

  const mover = createMover({
    runtime,
    table,
    health,
    log,
    now,
    limits: config.limits,
    signal: closing.signal,
    bootFor,
    prove: options.prove,
    withFreePort,
    demandRoom: async userId => capacity.demandRoom((await table.countOthersRunning(userId)) + 1),
    foreignPort: port => foreignPorts.set(port, now() + foreignPortMs),
    setRoute,
    drained,
    remove: async (userId, found) => {
      await stop(userId, found, found.id)
      await runtime.remove(found.id).catch(rethrow)
    },
    look: userId => reconcile(userId).catch(report),
    explain: error =>
      error instanceof RuntimeError ? toAppError(error) : error instanceof AppError ? error : undefined,
    reach,
  })

  return {
    async start() {
      // the first notification comes with the opening and asks for a look at everything: that is below
      let opened = false
      listener = await db.listen(instanceChannel, payload => {
        if (payload === null && !opened) opened = true
        else heard(payload).catch(report)
      })
      leadership = await db.lead('sdp-mcp fleet leader', leading => {
        log.info({ leading }, 'fleet.leadership.changed')
        if (leading && sweepTimer) sweepOnce().catch(report)
      })
      runtime.watch(userId => {
        if (!leadership?.leading()) return
        if (userId === null) sweepOnce().catch(report)
        else reconcile(userId).catch(report)
      }, closing.signal)
      await sweepOnce()
      const { stopAfterMs } = config.idle
      const sweepMs = Math.max(shortestSweepMs, Math.min(longestSweepMs, (stopAfterMs ?? longestSweepMs) / 4))
      sweepTimer = setInterval(() => sweepOnce().catch(report), sweepMs)
      sweepTimer.unref()
      log.info({ instances: routes.size }, 'fleet.started')
    },

    async close() {
      closing.abort(superseded())
      clearInterval(sweepTimer)
      for (const timer of retries.values()) clearTimeout(timer)
      await listener?.close()
      // somebody else may lead from here on, also over what we still finish
      await leadership?.close()
      const busy = [
        ...[...flights.values()].map(({ done }) => done),
        ...[...watchers.values()].map(({ ready }) => ready),
        sweeping,
      ]
      await Promise.race([Promise.allSettled(busy), delay(stopGraceSeconds * 1000, undefined, { ref: false })])
      await health.close()
    },

    reconcile,
    reconcileAll: sweepOnce,

    async ensureReady(userId, { timeoutMs, signal }) {
      let ready = waiters.get(userId)
      if (!ready) {
        ready = becomeReady(userId).finally(() => waiters.delete(userId))
        ready.catch(() => {})
        waiters.set(userId, ready)
      }
      const ending = new AbortController()
      try {
        return await Promise.race([
          ready,
          delay(timeoutMs, undefined, { signal: AbortSignal.any([ending.signal, ...(signal ? [signal] : [])]) }).then(
            () => {
              throw stillStarting()
            },
          ),
        ])
      } finally {
        ending.abort()
      }
    },

    sleep: userId => sleep(userId, null),
    moveTo: (userId, image, { drainSeconds }) =>
      moveGate.run(() => db.withLock(lockOf(userId), () => mover.moveTo(userId, image, drainSeconds))),
    leading: () => leadership?.leading() ?? false,

    async checkCapacity() {
      await runtime.ping().catch(rethrow)
      if ((await table.countUsers()) >= highestPort - lowestPort + 1) throw portsExhausted()
      await capacity.demandRoom(await table.countOthersRunning(null))
    },
  }
}

const lockOf = (userId: string) => `sdp-mcp fleet ${userId}`

type FailureCode = Parameters<typeof fail>[1]['code']

const codeOf: Record<RuntimeErrorKind, FailureCode> = {
  unreachable: 'engine-unreachable',
  'image-missing': 'image-missing',
  'port-taken': 'port-taken',
  'no-space': 'disk-full',
  'network-exhausted': 'network-range-exhausted',
  refused: 'engine-refused',
}

function identity({ id, address, generation, image }: ObservedInstance) {
  return { containerId: id, address, generation, image }
}

function stronger(a: Situation['asked'], b: Situation['asked']): Situation['asked'] {
  return a === 'admin' || b === 'admin' ? 'admin' : (a ?? b)
}

function asRuntimeError(error: unknown): RuntimeError {
  if (error instanceof RuntimeError) return error
  return new RuntimeError('refused', String((error as Error)?.message ?? error), { cause: error })
}

function toAppError(error: RuntimeError): AppError {
  const code = codeOf[error.kind]
  return new AppError(code in catalogue ? (code as ErrorCode) : 'instance-failed', error.message, { cause: error })
}

/** The wait ends because somebody decided otherwise; whoever waited looks again. */
const superseded = () =>
  new AppError('instance-starting', 'The instance is being replaced. Try again in a moment.', { retryAfterSeconds: 1 })

const stillStarting = () =>
  new AppError('instance-starting', 'The instance is not ready yet. Try again in a few seconds.', {
    retryAfterSeconds: 2,
  })
