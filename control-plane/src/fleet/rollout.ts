/** Pure planning of a rollout: what is known of it -> the next steps. rollouts.ts does them. */

export type RolloutState = 'running' | 'paused' | 'rolling-back' | 'done' | 'rolled-back' | 'aborted'
export type MemberState = 'waiting' | 'moving' | 'asleep' | 'moved' | 'failed' | 'reverting' | 'reverted'

export type Member = {
  userId: string
  state: MemberState
  /** null for whoever took the image with a start of their own */
  movedAt: Date | null
  /** may be started to prove the image: neither suspended nor stopped by an admin */
  canProve: boolean
  /** it failed with the image before, too */
  failingBefore: boolean
  /** the instance with the new image failed after it had been moved */
  broken: boolean
  /** exchanges since the move, and how many of them failed for no fault of the client */
  requests: number
  failures: number
  /** calls of tools with the new image since the move, and how many of them failed for whatever reason */
  toolCalls: number
  toolErrors: number
}

export type Rollout = {
  state: RolloutState
  reasonCode: string | null
  batchSize: number
  /** how many users may be without a working new instance before everybody goes back */
  maxUnavailable: number
  /** how long a batch is watched before the next one */
  observeSeconds: number
  /** share of failed exchanges of moved users, and of failed tool calls beyond the usual one, above which everybody goes back */
  maxErrorRate: number
  /** calls of tools of these users in the week before, with another image */
  usual: { calls: number; errors: number }
  /** in the order of moving; the first one is the canary */
  members: Member[]
}

export type Step =
  /** `wake`: the image is not proved yet, so one that sleeps is started */
  | { do: 'move'; userIds: string[]; wake: boolean }
  | { do: 'revert'; userIds: string[] }
  | { do: 'roll-back'; code: 'members-failed' | 'error-rate' | 'unproven'; reason: string }
  | { do: 'finish'; state: 'done' | 'rolled-back' | 'aborted' }
  | { do: 'wait' }

/** a rate of less is chance */
const fewestRequests = 20
/** of tool calls, where the usual rate is not known */
const unknownErrorRate = 0.5

export function planRollout(rollout: Rollout, now: Date): Step {
  switch (rollout.state) {
    case 'running':
    case 'paused':
      return breach(rollout) ?? (rollout.state === 'paused' ? { do: 'wait' } : forward(rollout, now))
    case 'rolling-back':
      return back(rollout)
    default:
      return { do: 'wait' }
  }
}

function breach({ members, maxUnavailable, maxErrorRate, usual }: Rollout): Step | undefined {
  const down = members.filter(
    ({ state, broken, failingBefore }) => !failingBefore && (state === 'failed' || (state === 'moved' && broken)),
  ).length
  if (down > maxUnavailable)
    return {
      do: 'roll-back',
      code: 'members-failed',
      reason: `${down} of the moved users ${down === 1 ? 'has' : 'have'} no working instance with the new image; ${maxUnavailable} would have been allowed.`,
    }
  const moved = members.filter(({ state }) => state === 'moved')
  const requests = moved.reduce((sum, member) => sum + member.requests, 0)
  const failures = moved.reduce((sum, member) => sum + member.failures, 0)
  if (requests >= fewestRequests && failures / requests > maxErrorRate)
    return {
      do: 'roll-back',
      code: 'error-rate',
      reason: `${failures} of ${requests} exchanges with the new image failed, more than the share of ${maxErrorRate} that is allowed.`,
    }
  const calls = moved.reduce((sum, member) => sum + member.toolCalls, 0)
  const errors = moved.reduce((sum, member) => sum + member.toolErrors, 0)
  // people ask for what does not exist, too: the image is measured against the one before
  const known = usual.calls >= fewestRequests
  const allowed = known
    ? Math.min(1, usual.errors / usual.calls + maxErrorRate)
    : Math.max(unknownErrorRate, maxErrorRate)
  const chance = 2 * Math.sqrt(calls * allowed * (1 - allowed))
  if (calls >= fewestRequests && errors > calls * allowed + chance)
    return {
      do: 'roll-back',
      code: 'error-rate',
      reason: `${errors} of ${calls} tool calls with the new image failed; ${
        known
          ? `${usual.errors} of ${usual.calls} did in the week before`
          : 'there are too few of before to compare with'
      }.`,
    }
  return undefined
}

function forward({ members, batchSize, observeSeconds }: Rollout, now: Date): Step {
  const moving = members.filter(({ state }) => state === 'moving')
  // of a control plane that ended in the middle: whoever leads now goes on
  const wake = !members.some(({ state, broken }) => state === 'moved' && !broken)
  if (moving.length > 0) return { do: 'move', userIds: moving.map(({ userId }) => userId), wake }
  const lastMove = Math.max(0, ...members.map(({ movedAt }) => movedAt?.getTime() ?? 0))
  if (now.getTime() - lastMove < observeSeconds * 1000) return { do: 'wait' }
  const waiting = members.filter(({ state }) => state === 'waiting')
  if (wake) {
    // one at a time, until the image has worked for somebody
    const asleep = members.filter(({ state }) => state === 'asleep')
    const canary = [...waiting, ...asleep].find(({ canProve }) => canProve)
    if (canary) return { do: 'move', userIds: [canary.userId], wake }
    return {
      do: 'roll-back',
      code: 'unproven',
      reason: 'The image has worked for nobody, and there is nobody left whose instance could prove it.',
    }
  }
  if (waiting.length === 0) return { do: 'finish', state: 'done' }
  return { do: 'move', userIds: waiting.slice(0, batchSize).map(({ userId }) => userId), wake }
}

function back({ members, batchSize, reasonCode }: Rollout): Step {
  const reverting = members.filter(({ state }) => state === 'reverting')
  const open = members.filter(({ state }) => ['moving', 'asleep', 'moved', 'failed'].includes(state))
  const next = [...reverting, ...open].slice(0, Math.max(batchSize, reverting.length))
  if (next.length > 0) return { do: 'revert', userIds: next.map(({ userId }) => userId) }
  return { do: 'finish', state: reasonCode === 'aborted' ? 'aborted' : 'rolled-back' }
}
