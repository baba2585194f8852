import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import type { Boot } from '@sdp-mcp/instance/contract'
import type { Activity } from '../activity.ts'
import type { Db, Leadership } from '../db.ts'
import { AppError } from '../errors.ts'
import type { ReachFaultPoint } from '../fault-points.ts'
import type { Logger } from '../log.ts'
import { createAdmission } from './admission.ts'
import type { CapacityLimits } from './capacity.ts'
import { createChecks } from './checks.ts'
import { asRuntimeError, failureOf, rethrow, superseded, toAppError, whyNotStarted } from './failures.ts'
import { createGate } from './gate.ts'
import { createGoodbye } from './goodbye.ts'
import { createHealthChecker } from './health.ts'
import type { IdleLimits } from './idle.ts'
import {
  createInstanceTable,
  drainingOf,
  type InstanceRow,
  instanceChannel,
  nothingKnown,
  type Subject,
} from './instance-table.ts'
import { createLooks } from './looks.ts'
import { createMover, type MoveResult } from './mover.ts'
import { type Action, fail, type InstanceState, plan, type Situation } from './plan.ts'
import { createReadiness } from './readiness.ts'
import { createRetries } from './retries.ts'
import {
  type InstanceSpec,
  limitsKey,
  type ObservedInstance,
  type Runtime,
  RuntimeError,
  stopGraceSeconds,
} from './runtime.ts'
import { createSleeper, heardMs } from './sleeper.ts'
import { createStartWatch } from './start-watch.ts'
import { createSweeper } from './sweeper.ts'

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
   * One that runs that image already is proved, too.
   *
   * @param options.signal - gives up what is not moved yet, as a failure does
   * @returns `asleep`, `failing`: there is nothing to move, the next start takes the image that is wanted then
   * @throws AppError `instance-failed` with the reason, `capacity-exhausted`, `engine-unreachable`, ...
   * @throws AppError `instance-starting`: it is just being started or changed, so try again
   */
  moveTo(userId: string, image: string, options: { drainSeconds: number; signal?: AbortSignal }): Promise<MoveResult>
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
  /** this control plane leads from now on, or does so no longer */
  led(leading: boolean): void
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
  /**
   * called when an instance failed, before it is tried again
   * @returns whether another image is wanted by now: then it is tried at once
   */
  onFailure?(userId: string, failure: { image: string | null; code: string }): Promise<boolean>
  observe?: FleetObserver
  /** does nothing but in tests of recovery */
  reach?: ReachFaultPoint
  random?: () => number
}

const longestSweepMs = 15_000
const shortestSweepMs = 500
const lastWordsMs = 2_000
const engineRetryMs = 5_000
// each look holds a database connection and occupies the engine
const concurrentLooks = 8

export function createFleet(options: FleetOptions): Fleet {
  const { db, runtime, config, activity, log, now, bootFor, onRoute, beforeStop, beforeRemove, afterRemove } = options
  const { random = Math.random, reach = () => {}, observe } = options
  const origin = randomBytes(6).toString('hex')
  const lookGate = createGate(concurrentLooks)
  // apart from looks, so that whoever wakes an instance does not stand in line behind those that move
  const moveGate = createGate(4)
  const health = createHealthChecker()
  const closing = new AbortController()
  const locked = <T>(userId: string, work: (lost: AbortSignal) => Promise<T>) => db.withLock(lockOf(userId), work)
  const checks = createChecks({ health, now, signal: closing.signal })
  const table = createInstanceTable({ db, image: config.image, origin, now })
  const admission = createAdmission({ runtime, table, record, ...config, now })
  const limits = limitsKey(config.limits)

  /** where each user's instance was last seen ready; what onRoute was told */
  const routes = new Map<string, InstanceRoute>()
  const retries = createRetries({ now, signal: closing.signal, look: userId => void reconcile(userId).catch(report) })
  /** users whose instance slept before the start under way */
  const woken = new Set<string>()
  let sweepTimer: NodeJS.Timeout | undefined
  let leadership: Leadership | undefined
  let listener: { close(): Promise<void> } | undefined

  const { read } = table
  const leading = () => leadership?.leading() ?? false

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

  // ---- looking at one user -----------------------------------------------------------------------------------------

  const looks = createLooks({
    // the lock first: a user whom another control plane holds must not keep everybody else waiting
    look: (userId, begin) => locked(userId, lost => lookGate.run(() => look(userId, begin(), lost))),
  })
  const reconcile: Fleet['reconcile'] = (userId, { asked } = {}) => looks.at(userId, asked)

  async function look(userId: string, asked: Situation['asked'], lost: AbortSignal): Promise<void> {
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
    for (const action of actions) {
      // somebody else may be at it by now
      lost.throwIfAborted()
      await act(userId, subject, listed, action)
    }
    const current = listed.find(({ id, running }) => running && id === subject?.row?.containerId)
    // ready, but not by our own eyes, or somebody doubts it
    if (subject?.row?.state === 'ready' && current && actions.length === 0)
      if (asked || routes.get(userId)?.address !== current.address) startWatch.begin(subject, current)
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
      restartedByOthers: observed.some(one => isRestarted(one, subject?.row)),
      silentChecks: subject ? checks.silentChecks(subject.wanted.userId) : 0,
      unused: subject !== null && !move && checks.isUnused(subject.wanted.userId),
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
        startWatch.begin(subject, found)
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
        return retries.at(userId, action.until)
      case 'say-goodbye':
        await goodbye.say(subject, observed, action.id)
        return reach('remove.goodbye')
      case 'erase':
        for (const { id } of await runtime.list(userId).catch(rethrow)) await runtime.remove(id).catch(rethrow)
        await afterRemove(userId)
        reach('remove.erased')
        activity.forget(userId)
        checks.forget(userId)
        log.info({ userId, username: subject.wanted.username }, 'fleet.user.erased')
    }
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
    startWatch.end(userId, why)
    setRoute(userId, null)
  }

  // ---- starting ----------------------------------------------------------------------------------------------------

  async function startInstance(subject: Subject): Promise<void> {
    const { userId } = subject.wanted
    closeDoor(userId)
    const slept = subject.row?.state === 'stopped'
    const tried = new Set<number>()
    for (;;) {
      try {
        const port = await admission.allotPort(subject)
        reach('start.recorded')
        tried.add(port)
        const started = await launch(subject, port)
        reach('start.running')
        if (slept) woken.add(userId)
        else woken.delete(userId)
        await record(subject, { ...subject.row!, ...nothingKnown, ...identity(started), changedAt: new Date(now()) })
        checks.forgive(userId)
        startWatch.begin(subject, started)
        return
      } catch (error) {
        if (error instanceof AppError && /^database-/.test(error.code)) throw error
        if (error instanceof RuntimeError && error.kind === 'port-taken' && tried.size < 20) {
          const port = subject.row!.port!
          log.warn({ userId, port }, 'fleet.port.taken')
          admission.passOver(port)
          continue
        }
        if (error instanceof RuntimeError && error.kind === 'unreachable') {
          await engineFailed(subject, error)
          throw toAppError(error)
        }
        // it goes on sleeping: no failure of its own, and nothing to be tried again when nobody is there any more
        if (slept && error instanceof AppError && error.code === 'capacity-exhausted') throw error
        return failInstance(subject, fail(situationOf(subject, [], undefined), whyNotStarted(error, log), null))
      }
    }
  }

  /** Once the start and its port are noted. */
  async function launch({ wanted: { userId, generation, image } }: Subject, port: number): Promise<ObservedInstance> {
    const boot = await bootFor(userId, { generation, port })
    return runtime.start({ boot, image, limits: config.limits })
  }

  async function replaceInstance(subject: Subject, id: string, because: string): Promise<void> {
    const { userId, username } = subject.wanted
    log.info({ userId, username, because }, 'fleet.instance.replacing')
    // new requests wait for the new one from here on; what is under way has the grace to end
    closeDoor(userId)
    const before = subject.row
    await record(subject, { state: 'draining', ...nothingKnown, address: null })
    if (before?.address) {
      const { address, generation } = before
      // another image or other limits can wait until whoever slipped in is done
      if (because !== 'generation' && (await isUsed(userId, before))) {
        await record(subject, before)
        setRoute(userId, { address, generation, draining: null })
        return
      }
      await lastWords(userId, { address, generation })
    }
    await runtime.stop(id, stopGraceSeconds).catch(rethrow)
    await startInstance(subject)
    await runtime.remove(id).catch(error => log.warn({ error, id }, 'fleet.instance.leftover'))
  }

  /** After the door was closed: whether somebody is there all the same. */
  async function isUsed(userId: string, { address, generation }: InstanceRow): Promise<boolean> {
    await delay(heardMs)
    const answer = address && (await health.ask(userId, { address, generation }, closing.signal))
    return answer ? answer.sessions > 0 || answer.inFlight > 0 : false
  }

  // ---- watching a start --------------------------------------------------------------------------------------------

  const startWatch = createStartWatch({
    health,
    now,
    signal: closing.signal,
    async onAnswer(subject, { id, address, generation }, { tookMs, signal }) {
      const { userId, username } = subject.wanted
      const noted = await table.markReady(userId, id, address)
      // somebody decided otherwise while it came up
      if (!noted || signal.aborted) throw superseded()
      checks.forgive(userId)
      // at once: whoever reads that it is ready expects to be let in
      const route = { address, generation, draining: noted.draining }
      setRoute(userId, route)
      log.info({ userId, username, tookMs }, 'fleet.instance.ready')
      const slept = woken.delete(userId)
      if (noted.isNew) observe?.ready(slept ? 'wake' : 'start', tookMs)
      return route
    },
    async onTimeout({ wanted: { userId }, row }) {
      if (row?.state === 'ready') checks.giveUp(userId)
      await reconcile(userId)
    },
  })

  // ---- failing -----------------------------------------------------------------------------------------------------

  async function failInstance(subject: Subject, failure: Extract<Action, { do: 'fail' }>): Promise<void> {
    const { userId, username } = subject.wanted
    const { code, reason, failures, stopId } = failure
    const another = await options.onFailure?.(userId, { image: subject.row?.image ?? null, code }).catch(report)
    const retryAt = another ? new Date(now()) : failure.retryAt
    log.warn({ userId, username, code, reason, failures, retryAt }, 'fleet.instance.failure')
    observe?.failed(code)
    if (code === 'port-taken' && subject.row?.port) admission.passOver(subject.row.port)
    await record(subject, { state: 'failed', reasonCode: code, reason, failures, retryAt, address: null })
    closeDoor(userId, failureOf(subject, now()))
    checks.forgive(userId)
    if (stopId)
      await runtime.stop(stopId, stopGraceSeconds).catch(error => log.warn({ error, id: stopId }, 'fleet.stop.failed'))
    retries.at(userId, retryAt)
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
    closeDoor(wanted.userId, failureOf(subject, now()))
    retries.at(wanted.userId, retryAt)
  }

  const report = (error: unknown) => {
    if (!closing.signal.aborted) log.warn({ error }, 'fleet.reconcile.failed')
  }

  // ---- removing ----------------------------------------------------------------------------------------------------

  const goodbye = createGoodbye({
    health,
    log,
    signal: closing.signal,
    closeDoor(userId) {
      closeDoor(userId)
      retries.cancel(userId)
    },
    record,
    start: async subject => launch(subject, await admission.allotPort(subject)),
    lastWords,
    revoke: beforeRemove,
  })

  // ---- waiting for an instance -------------------------------------------------------------------------------------

  const { ensureReady } = createReadiness({
    table,
    now,
    signal: closing.signal,
    routeOf: userId => routes.get(userId),
    openDoor: setRoute,
    drainingOf,
    answers,
    look: userId => reconcile(userId, { asked: 'client' }),
    comingUp: startWatch.of,
  })

  async function answers(userId: string, at: { address: string; generation: number }): Promise<boolean> {
    return (await health.ask(userId, at, closing.signal)) !== null
  }

  // ---- looking at everybody ----------------------------------------------------------------------------------------

  /** Another control plane of this database changed an instance. */
  async function heard(payload: string | null): Promise<void> {
    if (payload === null) return sweeper.sweep()
    const [from, userId] = payload.split(' ')
    if (from === origin || !userId) return
    const subject = await read(userId)
    const row = subject?.row
    if (subject?.wanted.state === 'running' && row?.state === 'ready' && row.address)
      setRoute(userId, { address: row.address, generation: row.generation, draining: drainingOf(subject) })
    else if (row?.state !== 'starting')
      closeDoor(userId, subject && row?.state === 'failed' ? failureOf(subject, now()) : undefined)
    else setRoute(userId, null)
  }

  const sleeper = createSleeper({
    runtime,
    table,
    health,
    activity,
    limits: config.idle,
    now,
    signal: closing.signal,
    locked,
    record,
    closeDoor,
    openDoor: setRoute,
    lastWords,
  })

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
    withFreePort: admission.withFreePort,
    demandRoom: admission.demandRoomBeside,
    passOver: admission.passOver,
    setRoute,
    drained,
    remove: async (userId, found) => {
      await stop(userId, found, found.id)
      await runtime.remove(found.id).catch(rethrow)
    },
    look: userId => reconcile(userId).catch(report),
    leading,
    explain: error =>
      error instanceof RuntimeError ? toAppError(error) : error instanceof AppError ? error : undefined,
    reach,
  })

  const sweeper = createSweeper({
    runtime,
    table,
    activity,
    checks,
    sleeper,
    mover,
    observe,
    log,
    signal: closing.signal,
    leading,
    planFor: (subject, observed) => plan(situationOf(subject, observed, undefined)),
    routeOf: userId => routes.get(userId),
    openDoor: setRoute,
    drained,
    isLookedAt: looks.underWay,
    look: reconcile,
    lookAt(userId, at) {
      if (!retries.has(userId)) retries.at(userId, at)
    },
    report,
  })

  return {
    async start() {
      // the first notification comes with the opening and asks for a look at everything: that is below
      let opened = false
      listener = await db.listen(instanceChannel, payload => {
        if (payload === null && !opened) opened = true
        else heard(payload).catch(report)
      })
      leadership = await db.lead('sdp-mcp fleet leader', leads => {
        log.info({ leading: leads }, 'fleet.leadership.changed')
        observe?.led(leads)
        if (leads && sweepTimer) sweeper.sweep().catch(report)
      })
      runtime.watch(userId => {
        if (!leading()) return
        if (userId === null) sweeper.sweep().catch(report)
        else reconcile(userId).catch(report)
      }, closing.signal)
      await sweeper.sweep()
      const { stopAfterMs } = config.idle
      const sweepMs = Math.max(shortestSweepMs, Math.min(longestSweepMs, (stopAfterMs ?? longestSweepMs) / 4))
      sweepTimer = setInterval(() => sweeper.sweep().catch(report), sweepMs)
      sweepTimer.unref()
      log.info({ instances: routes.size }, 'fleet.started')
    },

    async close() {
      closing.abort(superseded())
      clearInterval(sweepTimer)
      retries.close()
      await listener?.close()
      // somebody else may lead from here on, also over what we still finish
      await leadership?.close()
      const busy = [...looks.all(), ...startWatch.all(), sweeper.underWay()]
      await Promise.race([Promise.allSettled(busy), delay(stopGraceSeconds * 1000, undefined, { ref: false })])
      await health.close()
    },

    reconcile,
    reconcileAll: sweeper.sweep,

    ensureReady,
    sleep: userId => sleeper.sleep(userId, null),
    moveTo: (userId, image, { drainSeconds, signal }) =>
      moveGate.run(() => {
        signal?.throwIfAborted()
        return locked(userId, () => mover.moveTo(userId, image, drainSeconds, signal))
      }),
    leading,

    checkCapacity: admission.check,
  }
}

const lockOf = (userId: string) => `sdp-mcp fleet ${userId}`

function identity({ id, address, generation, image, startedAt }: ObservedInstance) {
  return { containerId: id, address, generation, image, startedAt }
}

/** Whether the container runs since another time than we know: somebody else started it again. */
function isRestarted({ id, startedAt }: ObservedInstance, row: InstanceRow | null | undefined): boolean {
  if (!startedAt || !row?.startedAt || row.containerId !== id) return false
  return row.startedAt.getTime() !== startedAt.getTime()
}
