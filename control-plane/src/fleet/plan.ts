import { exitCodes } from '@sdp-mcp/instance/contract'
import type { ErrorCode } from '../errors.ts'
import type { ObservedInstance } from './runtime.ts'

/** Pure planning for one user: what is wanted, what is known, what is observed -> what to do. fleet.ts does it. */

export type InstanceState = 'starting' | 'ready' | 'stopped' | 'failed' | 'draining'

/** Why an instance is not ready, for programs; each comes with a sentence for people. */
export type ReasonCode =
  | 'idle'
  | 'stopped-by-admin'
  | 'suspended'
  | 'engine-unreachable'
  | 'image-missing'
  | 'disk-full'
  | 'network-range-exhausted'
  | 'port-range-exhausted'
  | 'capacity-exhausted'
  | 'port-taken'
  | 'engine-refused'
  | 'start-timeout'
  | 'unresponsive'
  | 'boot-missing'
  | 'boot-invalid'
  | 'out-of-memory'
  | 'crashed'
  | 'ended'
  | 'killed'
  | 'vanished'
  | 'crash-loop'
  | ErrorCode

/** Desired state of one user; null where there is no such user. */
export type Wanted = {
  userId: string
  username: string
  generation: number
  image: string
  /** limitsKey of what its containers get; undefined: as it is */
  limits?: string
  /** `suspended` counts as stopped, whatever the admin wanted before */
  state: 'running' | 'stopped' | 'suspended' | 'removed'
}

/** What table instances says; null before the first start. */
export type Known = {
  state: InstanceState
  reasonCode: string | null
  reason: string | null
  containerId: string | null
  generation: number
  failures: number
  retryAt: Date | null
  changedAt: Date
}

export type Situation = {
  wanted: Wanted | null
  known: Known | null
  /** containers of this user, of this installation */
  observed: ObservedInstance[]
  now: Date
  /** `client`: somebody waits for the instance. `admin`: somebody wants it now, whatever failed before. */
  asked?: 'client' | 'admin'
  /** the container that runs was started again by somebody else: it has no boot material and waits for it in vain */
  restartedByOthers?: boolean
  /** how often in a row the instance that is ready did not answer */
  silentChecks?: number
  /** whether the instance that is ready has no open session, if that is known */
  unused?: boolean
  /** from 0 to 1; spreads retries */
  random: number
}

export type Failure = { code: ReasonCode; reason: string; failures: number; retryAt: Date }

export type Action =
  /** make an instance of the wanted generation run */
  | { do: 'start' }
  /** let the old one finish and end, then start one of the wanted generation, then remove the old one */
  | { do: 'replace'; id: string; because: 'generation' | 'image' | 'limits' }
  /** it runs as wanted: wait until it answers, then it is ready */
  | { do: 'adopt'; id: string }
  /** end it and keep its log */
  | { do: 'stop'; id: string }
  | { do: 'remove'; id: string; because: 'orphan' | 'duplicate' | 'old-generation' | 'user-removed' }
  /** write down that it is stopped, and why */
  | { do: 'note-stopped'; code: ReasonCode; reason: string }
  /** write down that it failed; `stopId` still runs and is ended */
  | ({ do: 'fail'; stopId: string | null } & Failure)
  /** nothing to do before this instant */
  | { do: 'wait'; until: Date }
  /** let the user's instance say good-bye at Zoho, while it still runs */
  | { do: 'say-goodbye'; id: string | null }
  /** everything of a removed user is gone: the rest of the user can go */
  | { do: 'erase' }

export const startDeadlineMs = 30_000
const silentChecksAllowed = 3
/** an instance that was ready for this long has proved itself: earlier failures are forgotten */
const stableMs = 10 * 60_000
const crashLoopFailures = 5
const longestRetryMs = 5 * 60_000

export function plan(situation: Situation): Action[] {
  const { wanted, observed } = situation
  if (!wanted) return observed.map(({ id }) => ({ do: 'remove', id, because: 'orphan' }))
  switch (wanted.state) {
    case 'removed':
      return [
        { do: 'say-goodbye', id: observed.find(({ running }) => running)?.id ?? null },
        ...observed.map(({ id }): Action => ({ do: 'remove', id, because: 'user-removed' })),
        { do: 'erase' },
      ]
    case 'stopped':
      return planStopped(situation, {
        code: 'stopped-by-admin',
        reason: `Stopped by an admin. It starts with the next connection, or with: POST /v1/users/${wanted.username}/instance/start`,
      })
    case 'suspended':
      return planStopped(situation, {
        code: 'suspended',
        reason: `The user is suspended. Lift it with: PATCH /v1/users/${wanted.username} {"suspended": false}`,
      })
    case 'running':
      return planRunning(situation, wanted)
  }
}

function planStopped(
  { known, observed, wanted }: Situation,
  { code, reason }: { code: ReasonCode; reason: string },
): Action[] {
  // the newest is kept for its log
  const { current, others } = sort(observed, wanted!.generation)
  const actions: Action[] = []
  const noted = known?.state === 'stopped' && known.reasonCode === code
  // written first: from then on nobody is routed there
  if (!noted && (known !== null || observed.length > 0)) actions.push({ do: 'note-stopped', code, reason })
  for (const { id, running } of observed) if (running) actions.push({ do: 'stop', id })
  const kept = current ?? others.at(0)
  for (const { id } of observed) if (id !== kept?.id) actions.push(surplus(id, observed, wanted!.generation))
  return actions
}

function planRunning(situation: Situation, wanted: Wanted): Action[] {
  const { known, observed, now, asked } = situation
  const { current, others } = sort(observed, wanted.generation)
  const removeOthers = () => others.map(({ id }) => surplus(id, observed, wanted.generation))

  const asleep = known?.state === 'stopped' && known.reasonCode === 'idle' && !asked
  if (asleep) return observed.filter(({ running }) => running).map(({ id }) => ({ do: 'stop', id }))

  if (current?.running) {
    // moved only while nobody uses it; a rollout starts the new one beside the old one and does not wait
    const drift = driftOf(current, wanted)
    if (drift && situation.unused && known?.state === 'ready')
      return [{ do: 'replace', id: current.id, because: drift }, ...removeOthers()]
    return [...watch(situation, current), ...removeOthers()]
  }

  // a new generation is a new chance: what failed was another definition
  const sameGeneration = known !== null && known.generation === wanted.generation
  const old = others.find(({ running }) => running)
  if (old) {
    const rest = others.filter(other => other !== old)
    if (sameGeneration && known.state === 'failed' && waiting(known, now, asked))
      return [{ do: 'wait', until: known.retryAt! }]
    return [
      { do: 'replace', id: old.id, because: 'generation' },
      ...rest.map(({ id }) => surplus(id, observed, wanted.generation)),
    ]
  }

  if (sameGeneration && (known.state === 'ready' || known.state === 'starting')) {
    // A start that was cut short by a crash of ours has noted no container yet: that is not the instance's failure.
    const ended = current?.exit && current.id === known.containerId ? nameExit(current.exit, wanted) : undefined
    const vanished = known.containerId !== null && !observed.some(({ id }) => id === known.containerId)
    if (ended) return [fail(situation, ended, null)]
    // somebody else ended a healthy instance, or took it along with a control plane: not its failure, and no reason to wait
    if (vanished && known.state === 'starting')
      return [
        fail(
          situation,
          {
            code: 'vanished',
            reason: 'Its container was removed by somebody else than this control plane. A new one is started.',
          },
          null,
        ),
      ]
  }
  if (sameGeneration && known.state === 'failed' && waiting(known, now, asked))
    return [{ do: 'wait', until: known.retryAt! }]
  return [{ do: 'start' }, ...removeOthers()]
}

/** How a container differs from what would be started now. */
function driftOf(current: ObservedInstance, wanted: Wanted): 'image' | 'limits' | undefined {
  if (current.image !== wanted.image) return 'image'
  return wanted.limits && current.limits && current.limits !== wanted.limits ? 'limits' : undefined
}

/** One that runs as wanted: is it as well as it should be? */
function watch(situation: Situation, current: ObservedInstance): Action[] {
  const { known, now, silentChecks = 0 } = situation
  if (!known || known.containerId !== current.id || known.generation !== current.generation)
    return [{ do: 'adopt', id: current.id }]
  switch (known.state) {
    case 'ready':
      if (situation.restartedByOthers)
        return [
          fail(
            situation,
            nameExit({ code: exitCodes.bootMissing, outOfMemory: false, at: null }, situation.wanted!),
            current.id,
          ),
        ]
      if (silentChecks < silentChecksAllowed) return []
      return [
        fail(
          situation,
          { code: 'unresponsive', reason: 'It runs but no longer answers, so it was ended. It is started again.' },
          current.id,
        ),
      ]
    case 'starting':
      if (now.getTime() - known.changedAt.getTime() < startDeadlineMs) return [{ do: 'adopt', id: current.id }]
      return [
        fail(
          situation,
          {
            code: 'start-timeout',
            reason: `It did not answer within ${startDeadlineMs / 1000} s after its start. ${seeLog(situation.wanted!)}`,
          },
          current.id,
        ),
      ]
    default:
      return [{ do: 'adopt', id: current.id }]
  }
}

/**
 * Counts one more failure and says when to try again: at once after a good time, then after 1, 2, 4 ... s, at most 5
 * minutes, spread by a fifth so that many do not come back in the same moment.
 */
export function fail(
  { known, wanted, now, random }: Pick<Situation, 'known' | 'wanted' | 'now' | 'random'>,
  { code, reason }: { code: ReasonCode; reason: string },
  stopId: string | null,
): Extract<Action, { do: 'fail' }> {
  const wasReady = known?.state === 'ready'
  const stable = wasReady && now.getTime() - known.changedAt.getTime() >= stableMs
  const forgotten = stable || known?.generation !== wanted?.generation
  const failures = (forgotten ? 0 : (known?.failures ?? 0)) + 1
  // the next port is another one: waiting would not make it freer
  const anotherPort = code === 'port-taken' && failures <= 4
  const backoffMs =
    (wasReady && failures === 1) || anotherPort ? 0 : Math.min(longestRetryMs, 1_000 * 2 ** (failures - 1))
  const retryAt = new Date(now.getTime() + Math.round(backoffMs * (0.9 + 0.2 * random)))
  const inLoop = failures >= crashLoopFailures && !['image-missing', 'disk-full', 'capacity-exhausted'].includes(code)
  return {
    do: 'fail',
    stopId,
    failures,
    retryAt,
    code: inLoop ? 'crash-loop' : code,
    reason: inLoop
      ? `It failed ${failures} times in a row, so it is tried only every few minutes. The last time: ${reason}`
      : reason,
  }
}

function waiting(known: Known, now: Date, asked: Situation['asked']): boolean {
  if (asked === 'admin' || known.retryAt === null || known.retryAt <= now) return false
  // further away than we ever put it: the clock was set back
  return known.retryAt.getTime() - now.getTime() <= longestRetryMs * 1.2
}

/** Parts a user's containers into the one to keep for this generation and the others, those that run first. */
function sort(observed: ObservedInstance[], generation: number) {
  const ordered = observed.toSorted(
    (a, b) =>
      Number(b.running) - Number(a.running) ||
      b.generation - a.generation ||
      // the order of listing must not decide, or two control planes would each keep another one
      a.id.localeCompare(b.id),
  )
  const current = ordered.find(one => one.generation === generation)
  return { current, others: ordered.filter(one => one !== current) }
}

function surplus(id: string, observed: ObservedInstance[], generation: number): Action {
  const old = observed.find(one => one.id === id)?.generation !== generation
  return { do: 'remove', id, because: old ? 'old-generation' : 'duplicate' }
}

function nameExit(
  { code, outOfMemory }: NonNullable<ObservedInstance['exit']>,
  wanted: Wanted,
): { code: ReasonCode; reason: string } {
  if (outOfMemory)
    return {
      code: 'out-of-memory',
      reason: 'It needed more memory than its limit. Raise SDP_INSTANCE_MEMORY_MB if it happens again.',
    }
  switch (code) {
    case exitCodes.portInUse:
      return { code: 'port-taken', reason: 'Another program took its port. It is started on another one.' }
    case exitCodes.bootMissing:
      return {
        code: 'boot-missing',
        reason: 'It was started by somebody else than the control plane and got no boot material. It is started anew.',
      }
    case exitCodes.bootInvalid:
      return {
        code: 'boot-invalid',
        reason: `It refused its boot material: image and control plane are of different versions. Build or pull the instance image of this version. ${seeLog(wanted)}`,
      }
    case 0:
      return { code: 'ended', reason: `It ended by itself. ${seeLog(wanted)}` }
    case 137:
    case 143:
      return { code: 'killed', reason: `It was ended from outside (exit code ${code}).` }
    default:
      return { code: 'crashed', reason: `It crashed (exit code ${code}). ${seeLog(wanted)}` }
  }
}

function seeLog({ username }: Wanted): string {
  return `See GET /v1/users/${username}/instance/logs`
}
