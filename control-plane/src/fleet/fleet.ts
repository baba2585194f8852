import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { type Boot, statementAudience } from '@sdp-mcp/instance/contract'
import { type Db, sqlState } from '../db.ts'
import { AppError, catalogue, type ErrorCode } from '../errors.ts'
import type { Logger } from '../log.ts'
import { createGate } from './gate.ts'
import { createHealthChecker } from './health.ts'
import {
  type Action,
  fail,
  type InstanceState,
  type Known,
  plan,
  type Situation,
  startDeadlineMs,
  type Wanted,
} from './plan.ts'
import { isPortFree } from './port-probe.ts'
import {
  type InstanceSpec,
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
 * Looking is triggered by whoever changed something, by the runtime's events, and by a slow sweep over everybody.
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
  /** Puts the instance of a user who does not use it to sleep; the next connect wakes it. Does nothing unless it is ready. */
  sleep(userId: string): Promise<void>
  /**
   * Whether another user could be served.
   * @throws AppError `engine-unreachable`, `port-range-exhausted`
   */
  checkCapacity(): Promise<void>
}

export type InstanceRoute = { address: string; generation: number }

export type FleetOptions = {
  db: Db
  runtime: Runtime
  config: {
    image: string
    /** first and last port of instances */
    portRange: readonly [number, number]
    limits: InstanceSpec['limits']
  }
  log: Logger
  now: () => number
  bootFor(userId: string, to: { generation: number; port: number }): Promise<Boot>
  /** told where a user's instance is, or that it is nowhere; may be told the same again */
  onRoute(userId: string, to: InstanceRoute | null): void
  /** called before the instance of a removed user goes; null when none could be made to run */
  beforeRemove(userId: string, instance: InstanceRoute | null): Promise<void>
  /** called when nothing of a removed user is left in the runtime */
  afterRemove(userId: string): Promise<void>
  random?: () => number
}

const sweepMs = 15_000
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

/** Tells the other control planes of a database that an instance changed. Payload: origin and user id. */
const instanceChannel = 'sdp_mcp_instance'

type Row = Known & { port: number | null; address: string | null; image: string | null }
type Subject = { wanted: Wanted; suspended: boolean; adminWants: string; connected: boolean; row: Row | null }
type Watcher = { containerId: string; ready: Promise<InstanceRoute>; abort: AbortController }
type Flight = { begun: boolean; asked: Situation['asked']; done: Promise<void>; next: Flight | null }

export function createFleet(options: FleetOptions): Fleet {
  const { db, runtime, config, log, now, bootFor, onRoute, beforeRemove, afterRemove, random = Math.random } = options
  const [lowestPort, highestPort] = config.portRange
  const origin = randomBytes(6).toString('hex')
  const gate = createGate(concurrentLooks)
  const checkGate = createGate(concurrentChecks)
  const portGate = createGate(1)
  const health = createHealthChecker()
  const closing = new AbortController()

  /** where each user's instance was last seen ready; what onRoute was told */
  const routes = new Map<string, InstanceRoute>()
  const watchers = new Map<string, Watcher>()
  const flights = new Map<string, Flight>()
  const waiters = new Map<string, Promise<InstanceRoute>>()
  const retries = new Map<string, NodeJS.Timeout>()
  const silentChecks = new Map<string, number>()
  /** when each container was started, as far as we saw it: another time means another hand */
  const startedAt = new Map<string, number>()
  /** users whose ready instance had no session at the last sweep */
  const unusedNow = new Set<string>()
  /** ports that other programs hold, and until when we believe it */
  const foreignPorts = new Map<number, number>()
  let sweepTimer: NodeJS.Timeout | undefined
  let sweeping: Promise<void> | undefined
  let listener: { close(): Promise<void> } | undefined

  // ---- reading and writing -----------------------------------------------------------------------------------------

  const subjectSql = `
    select u.id, u.username, u.generation::integer, u.wanted, u.suspended,
           exists (select from oauth_tokens t where t.user_id = u.id and t.refresh_token_sealed is not null) as connected,
           i.state, i.reason_code, i.reason, i.port, i.address, i.container_id, i.image,
           i.generation::integer as known_generation, i.failures, i.retry_at, i.changed_at
      from users u left join instances i on i.user_id = u.id`
  type SubjectRow = {
    id: string
    username: string
    generation: number
    wanted: 'running' | 'stopped' | 'removed'
    suspended: boolean
    connected: boolean
    state: InstanceState | null
    reason_code: string | null
    reason: string | null
    port: number | null
    address: string | null
    container_id: string | null
    image: string | null
    known_generation: number
    failures: number
    retry_at: Date | null
    changed_at: Date
  }

  function toSubject(row: SubjectRow): Subject {
    const state = row.wanted === 'removed' ? 'removed' : row.suspended ? 'suspended' : row.wanted
    return {
      wanted: {
        userId: row.id,
        username: row.username,
        generation: row.generation,
        image: config.image,
        state,
      },
      suspended: row.suspended,
      adminWants: row.wanted,
      connected: row.connected,
      row: row.state && {
        state: row.state,
        reasonCode: row.reason_code,
        reason: row.reason,
        containerId: row.container_id,
        generation: row.known_generation,
        failures: row.failures,
        retryAt: row.retry_at,
        changedAt: row.changed_at,
        port: row.port,
        address: row.address,
        image: row.image,
      },
    }
  }

  async function read(userId: string): Promise<Subject | null> {
    const [row] = await db.query<SubjectRow>(`${subjectSql} where u.id = $1`, [userId])
    return row ? toSubject(row) : null
  }

  /** Writes what is now known of an instance, under the user's lock. */
  async function record(subject: Subject, change: Partial<Row> & { state: InstanceState }): Promise<void> {
    const { userId, username } = subject.wanted
    const row: Row = {
      reasonCode: null,
      reason: null,
      containerId: null,
      generation: subject.wanted.generation,
      failures: 0,
      retryAt: null,
      port: null,
      address: null,
      image: null,
      ...subject.row,
      changedAt: new Date(now()),
      ...change,
    }
    try {
      await db.query(
        `with written as (
           insert into instances (user_id, state, reason_code, reason, port, address, container_id, image, generation, failures, retry_at, changed_at)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
           on conflict (user_id) do update set state = $2, reason_code = $3, reason = $4, port = $5, address = $6,
             container_id = $7, image = $8, generation = $9, failures = $10, retry_at = $11, changed_at = $12
           returning user_id)
         select pg_notify($13, $14 || ' ' || user_id) from written`,
        [
          userId,
          row.state,
          row.reasonCode,
          row.reason,
          row.port,
          row.address,
          row.containerId,
          row.image,
          row.generation,
          row.failures,
          row.retryAt,
          row.changedAt,
          instanceChannel,
          origin,
        ],
      )
    } catch (error) {
      // the user is gone, and the row with it
      if (sqlState(error) !== '23503') throw error
    }
    if (subject.row?.state !== row.state || subject.row.reasonCode !== row.reasonCode)
      log.info({ username, userId, reasonCode: row.reasonCode, failures: row.failures }, `fleet.instance.${row.state}`)
    subject.row = row
  }

  const nothingKnown = { reasonCode: null, reason: null, retryAt: null } as const

  function setRoute(userId: string, to: InstanceRoute | null): void {
    if (to) routes.set(userId, to)
    else if (!routes.delete(userId)) return
    // A route is told again even if it is the same: whoever carries requests may have dropped it in doubt.
    onRoute(userId, to)
  }

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
        db.withLock(`sdp-mcp fleet ${userId}`, () => {
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
    const [subject, listed] = await Promise.all([
      read(userId),
      runtime.list(userId).catch((error: unknown) => asRuntimeError(error)),
    ])
    // the door closes even if the engine cannot be asked
    if (subject?.wanted.state !== 'running') setRoute(userId, null)
    if (listed instanceof RuntimeError) {
      if (subject) await engineFailed(subject, listed)
      throw toAppError(listed)
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
    return {
      wanted: subject?.wanted ?? null,
      known: subject?.row ?? null,
      observed,
      now: new Date(now()),
      ...(asked ? { asked } : {}),
      restartedByOthers: observed.some(
        ({ id, startedAt: at }) => at && (startedAt.get(id) ?? at.getTime()) !== at.getTime(),
      ),
      silentChecks: (subject && silentChecks.get(subject.wanted.userId)) ?? 0,
      unused: subject !== null && unusedNow.has(subject.wanted.userId),
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
      if (action.because === 'orphan' && !(await anyUsers())) {
        log.error(
          { id: action.id, userId },
          'fleet.orphan.kept: the database has no users at all. Is it the right one?',
        )
        return
      }
      log.info({ id: action.id, userId, because: action.because }, 'fleet.instance.removing')
      startedAt.delete(action.id)
      return runtime.remove(action.id).catch(rethrow)
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
        return runtime.stop(action.id, stopGraceSeconds).catch(rethrow)
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
        return sayGoodbye(subject, observed, action.id)
      case 'erase':
        for (const { id } of await runtime.list(userId).catch(rethrow)) await runtime.remove(id).catch(rethrow)
        await afterRemove(userId)
        silentChecks.delete(userId)
        unusedNow.delete(userId)
        log.info({ userId, username: subject.wanted.username }, 'fleet.user.erased')
    }
  }

  const rethrow = (error: unknown): never => {
    throw toAppError(asRuntimeError(error))
  }

  async function anyUsers(): Promise<boolean> {
    const [row] = await db.query<{ any: boolean }>('select exists (select from users) as any')
    return row?.any === true
  }

  function closeDoor(userId: string, why?: AppError): void {
    watchers.get(userId)?.abort.abort(why ?? superseded())
    watchers.delete(userId)
    setRoute(userId, null)
  }

  // ---- starting ----------------------------------------------------------------------------------------------------

  async function startInstance(subject: Subject): Promise<void> {
    const { userId, generation } = subject.wanted
    closeDoor(userId)
    const tried = new Set<number>()
    for (;;) {
      try {
        const port = await allotPort(subject)
        tried.add(port)
        const boot = await bootFor(userId, { generation, port })
        const started = await runtime.start({ boot, image: config.image, limits: config.limits })
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
   * @throws AppError `port-range-exhausted`
   */
  async function allotPort(subject: Subject): Promise<number> {
    const starting = {
      state: 'starting',
      ...nothingKnown,
      containerId: null,
      address: null,
      generation: subject.wanted.generation,
      image: config.image,
      failures: subject.row?.generation === subject.wanted.generation ? subject.row.failures : 0,
    } as const
    const usable = (port: number) => port >= lowestPort && port <= highestPort && (foreignPorts.get(port) ?? 0) <= now()
    const kept = subject.row?.port
    if (kept && usable(kept)) {
      await record(subject, { ...starting, port: kept })
      return kept
    }
    // one at a time here; against other control planes there is the unique constraint
    return portGate.run(async () => {
      for (let attempt = 0; attempt < 100; attempt++) {
        const foreign = [...foreignPorts.keys()].filter(port => !usable(port))
        const [free] = await db.query<{ port: number }>(
          `select port from generate_series($1::integer, $2::integer) port
            where port <> all($3::integer[]) and not exists (select from instances i where i.port = port.port)
            order by port limit 1`,
          [lowestPort, highestPort, foreign],
        )
        if (!free) {
          // a program that held a port may be gone by now
          const freed = await Promise.all(foreign.map(async port => ((await isPortFree(port)) ? [port] : [])))
          if (freed.flat().length === 0) throw portsExhausted()
          for (const port of freed.flat()) foreignPorts.delete(port)
          continue
        }
        try {
          await record(subject, { ...starting, port: free.port })
          return free.port
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
    await record(subject, { state: 'draining', ...nothingKnown, address: null })
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
    const [noted] = await db.query(
      `with written as (
         update instances set state = 'ready', reason_code = null, reason = null, retry_at = null, address = $3,
                changed_at = case when state = 'ready' then changed_at else $4 end
          where user_id = $1 and container_id = $2 and state in ('starting', 'ready') returning user_id)
       select pg_notify($5, $6 || ' ' || user_id) from written`,
      [userId, id, address, new Date(now()), instanceChannel, origin],
    )
    // somebody decided otherwise while it came up
    if (!noted || signal.aborted) throw superseded()
    silentChecks.delete(userId)
    const route = { address, generation }
    setRoute(userId, route)
    log.info({ userId, username: subject.wanted.username, tookMs: now() - since }, 'fleet.instance.ready')
    return route
  }

  // ---- failing -----------------------------------------------------------------------------------------------------

  async function failInstance(subject: Subject, failure: Extract<Action, { do: 'fail' }>): Promise<void> {
    const { userId, username } = subject.wanted
    const { code, reason, failures, retryAt, stopId } = failure
    log.warn({ userId, username, code, reason, failures, retryAt }, 'fleet.instance.failure')
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
    await beforeRemove(userId, instance)
  }

  async function startForGoodbye(subject: Subject): Promise<InstanceRoute | null> {
    const { userId, generation } = subject.wanted
    const port = await allotPort(subject)
    const boot = await bootFor(userId, { generation, port })
    const { address } = await runtime.start({ boot, image: config.image, limits: config.limits })
    return address === null ? null : { address, generation }
  }

  async function answersSoon(userId: string, { address, generation }: InstanceRoute): Promise<boolean> {
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
      if (subject.adminWants === 'stopped')
        await db.query("update users set wanted = 'running', updated_at = now() where id = $1 and wanted = 'stopped'", [
          userId,
        ])

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
          const last = { address: current.address, generation: current.generation }
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

  async function answers(userId: string, { address, generation }: InstanceRoute): Promise<boolean> {
    return (await health.ask(address, statementAudience(userId, generation), closing.signal)) !== null
  }

  // ---- looking at everybody ----------------------------------------------------------------------------------------

  async function sweep(): Promise<void> {
    if (closing.signal.aborted) return
    let observed: ObservedInstance[] | null = null
    try {
      await runtime.tidy()
      observed = await runtime.list()
    } catch (error) {
      log.warn({ error }, 'fleet.sweep.engine-unreachable')
    }
    // read after listing: whatever has a container by now had a user before
    const subjects = (await db.query<SubjectRow>(subjectSql)).map(toSubject)
    const byUser = Map.groupBy(observed ?? [], ({ userId }) => userId)

    await Promise.all(
      subjects.map(subject => checkGate.run(() => checkHealth(subject, byUser.get(subject.wanted.userId)))),
    )
    if (!observed) return
    const looks: string[] = []
    for (const subject of subjects) {
      const { userId } = subject.wanted
      const ofUser = byUser.get(userId) ?? []
      byUser.delete(userId)
      const actions = plan(situationOf(subject, ofUser, undefined))
      const [first] = actions
      const { row } = subject
      const seen = row?.state === 'ready' && ofUser.find(({ id, running }) => running && id === row.containerId)
      if (first?.do === 'wait') {
        if (!retries.has(userId)) scheduleRetry(userId, first.until)
      } else if (first || (seen && routes.get(userId)?.address !== seen.address)) looks.push(userId)
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

  /** Whether a ready instance still answers, and whether anybody uses it. Lets requests in when it was ready before us. */
  async function checkHealth({ wanted, row }: Subject, observed: ObservedInstance[] | undefined): Promise<void> {
    const { userId } = wanted
    if (wanted.state !== 'running' || row?.state !== 'ready') return
    const seen = observed?.find(({ id, running }) => running && id === row.containerId)
    const address = seen?.address ?? row.address
    if (!address || (observed && !seen)) return
    const answer = await health.ask(address, statementAudience(userId, row.generation), closing.signal)
    if (closing.signal.aborted) return
    if (answer?.sessions === 0) unusedNow.add(userId)
    else unusedNow.delete(userId)
    if (!answer) silentChecks.set(userId, (silentChecks.get(userId) ?? 0) + 1)
    else {
      silentChecks.delete(userId)
      // a look may be changing it just now, and then knows better
      if (!routes.has(userId) && !flights.has(userId)) setRoute(userId, { address, generation: row.generation })
    }
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
      setRoute(userId, { address: row.address, generation: row.generation })
    else if (row?.state !== 'starting')
      closeDoor(userId, subject && row?.state === 'failed' ? failureOf(subject) : undefined)
    else setRoute(userId, null)
  }

  return {
    async start() {
      // the first notification comes with the opening and asks for a look at everything: that is below
      let opened = false
      listener = await db.listen(instanceChannel, payload => {
        if (payload === null && !opened) opened = true
        else heard(payload).catch(report)
      })
      runtime.watch(userId => {
        if (userId === null) sweepOnce().catch(report)
        else reconcile(userId).catch(report)
      }, closing.signal)
      await sweepOnce()
      sweepTimer = setInterval(() => sweepOnce().catch(report), sweepMs)
      sweepTimer.unref()
      log.info({ instances: routes.size }, 'fleet.started')
    },

    async close() {
      closing.abort(superseded())
      clearInterval(sweepTimer)
      for (const timer of retries.values()) clearTimeout(timer)
      await listener?.close()
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

    async sleep(userId) {
      await gate.run(() =>
        db.withLock(`sdp-mcp fleet ${userId}`, async () => {
          const subject = await read(userId)
          const id = subject?.row?.containerId
          if (subject?.wanted.state !== 'running' || subject.row?.state !== 'ready' || !id) return
          closeDoor(userId)
          await record(subject, {
            state: 'stopped',
            reasonCode: 'idle',
            reason: 'Nobody used it for a while. It starts with the next connection.',
            address: null,
          })
          await runtime.stop(id, stopGraceSeconds).catch(rethrow)
        }),
      )
    },

    async checkCapacity() {
      await runtime.ping().catch(rethrow)
      const [row] = await db.query<{ users: number }>('select count(*)::integer as users from users')
      if ((row?.users ?? 0) >= highestPort - lowestPort + 1) throw portsExhausted()
    },
  }
}

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
