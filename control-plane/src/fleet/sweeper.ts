import type { Activity, Seen } from '../activity.ts'
import type { Logger } from '../log.ts'
import type { Checks } from './checks.ts'
import type { FleetObserver, InstanceRoute } from './fleet.ts'
import { createGate } from './gate.ts'
import { drainingOf, type InstanceTable, type Subject } from './instance-table.ts'
import type { Mover } from './mover.ts'
import type { Action } from './plan.ts'
import type { ObservedInstance, Runtime } from './runtime.ts'
import type { Sleeper } from './sleeper.ts'

const concurrentChecks = 32

/**
 * Looks at everybody: asks each ready instance how it is, and begins a look at each user for whom there is something to do.
 * Who does not lead only learns who answers, and lets their requests in.
 */
export function createSweeper(parts: {
  runtime: Pick<Runtime, 'list' | 'tidy'>
  table: Pick<InstanceTable, 'readAll'>
  activity: Pick<Activity, 'read'>
  checks: Pick<Checks, 'ask'>
  sleeper: Sleeper
  mover: Pick<Mover, 'watchDrain'>
  observe: FleetObserver | undefined
  log: Logger
  /** aborts when the fleet closes */
  signal: AbortSignal
  leading(): boolean
  planFor(subject: Subject, observed: ObservedInstance[]): Action[]
  /** where the user's instance was last seen ready */
  routeOf(userId: string): InstanceRoute | undefined
  openDoor(userId: string, to: InstanceRoute): void
  /** nobody is sent to the old instance of a move any more */
  drained(userId: string): void
  /** whether a look at this user is under way, which knows better than what was read before */
  isLookedAt(userId: string): boolean
  /** looks at the user and does what is to do */
  look(userId: string): Promise<void>
  /** looks at the user at that time, unless another time is set already */
  lookAt(userId: string, at: Date): void
  report(error: unknown): void
}) {
  const { runtime, table, activity, checks, sleeper, mover, observe, log, signal, report } = parts
  const gate = createGate(concurrentChecks)
  let sweeping: Promise<void> | undefined

  async function sweep(): Promise<void> {
    if (signal.aborted) return
    const began = performance.now()
    const leads = parts.leading()
    let observed: ObservedInstance[] | null = null
    try {
      observed = await runtime.list()
    } catch (error) {
      log.warn({ error }, 'fleet.sweep.engine-unreachable')
    }
    if (leads && observed)
      await runtime
        .tidy()
        .catch(error => log.warn({ error }, 'fleet.tidy.failed: what is left over stays for the next time'))
    // read after listing: whatever has a container by now had a user before
    const [subjects, seen] = await Promise.all([table.readAll(), leads ? activity.read() : new Map<string, Seen>()])
    const byUser = Map.groupBy(observed ?? [], ({ userId }) => userId)

    const sessions = await Promise.all(
      subjects.map(subject =>
        gate.run(() => checkHealth(subject, byUser.get(subject.wanted.userId), leads ? seen : null)),
      ),
    )
    const states = { starting: 0, ready: 0, stopped: 0, failed: 0, draining: 0 }
    for (const { row } of subjects) if (row) states[row.state]++
    const open = sessions.reduce((sum, count) => sum + count, 0)
    observe?.swept(performance.now() - began, states, open)
    if (!observed || !leads) return
    // a sweep is over when it has seen everybody; what it found to do may take minutes
    for (const userId of whomToLookAt(subjects, byUser)) parts.look(userId).catch(report)
  }

  function whomToLookAt(subjects: Subject[], byUser: Map<string, ObservedInstance[]>): string[] {
    const looks: string[] = []
    for (const subject of subjects) {
      const { userId } = subject.wanted
      const ofUser = byUser.get(userId) ?? []
      byUser.delete(userId)
      const [first] = parts.planFor(subject, ofUser)
      const { row } = subject
      const ready = row?.state === 'ready' && ofUser.find(({ id, running }) => running && id === row.containerId)
      if (subject.move?.phase === 'draining') mover.watchDrain(subject)
      if (first?.do === 'wait') parts.lookAt(userId, first.until)
      else if (
        first ||
        subject.move?.phase === 'preparing' ||
        (ready && parts.routeOf(userId)?.address !== ready.address)
      )
        looks.push(userId)
    }
    if (subjects.length === 0 && byUser.size > 0)
      log.error(
        { count: byUser.size },
        'fleet.orphans.kept: instances run, but the database has no users. Is it the right one?',
      )
    else looks.push(...byUser.keys())
    return looks
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
    const { userId } = subject.wanted
    const answer = await checks.ask(subject, observed, { counts: seen !== null })
    if (!answer) return 0
    const { address, generation } = answer
    // what was read before a move tells nothing of its drain
    if (!subject.move && parts.routeOf(userId)?.generation === generation) parts.drained(userId)
    // a look may be changing it just now, and then knows better
    if (!parts.routeOf(userId) && !parts.isLookedAt(userId) && !sleeper.fallingAsleep(userId))
      parts.openDoor(userId, { address, generation, draining: drainingOf(subject) })
    if (seen && !subject.move && sleeper.isIdle(subject, seen.get(userId), answer.inFlight))
      sleeper.sleep(userId).catch(report)
    return answer.sessions
  }

  return {
    /** Calls during a sweep share it. */
    sweep(): Promise<void> {
      sweeping ??= sweep().finally(() => {
        sweeping = undefined
      })
      return sweeping
    },
    underWay: () => sweeping,
  }
}
