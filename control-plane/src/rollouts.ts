import type { Activity } from './activity.ts'
import { appendAudit } from './audit.ts'
import { type Db, sqlState } from './db.ts'
import { AppError } from './errors.ts'
import type { ReachFaultPoint } from './fault-points.ts'
import { rethrow } from './fleet/failures.ts'
import type { Fleet } from './fleet/fleet.ts'
import { type MemberState, planRollout, type RolloutState } from './fleet/rollout.ts'
import { type Runtime, RuntimeError } from './fleet/runtime.ts'
import type { Logger } from './log.ts'
import { createRolloutTable, type RolloutRow, rolloutColumns } from './rollout-table.ts'

/**
 * Owns rollouts: moving every user to another instance image. State is in the database, so whoever leads goes on where a
 * predecessor ended; what to do next is decided in fleet/rollout.ts, and moving one user is the fleet's job.
 */
export type Rollouts = ReturnType<typeof createRollouts>

export type RolloutInput = {
  image: string
  batchSize: number
  maxUnavailable: number
  drainSeconds: number
  observeSeconds: number
  maxErrorRate: number
}

export type RolloutView = RolloutInput & {
  id: string
  state: RolloutState
  reasonCode: string | null
  reason: string | null
  createdAt: string
  finishedAt: string | null
  progress: Record<MemberState, number>
  members: { username: string; state: MemberState; reason: string | null; movedAt: string | null }[]
}

const tickMs = 1_000
/** how often it is looked who woke, when no rollout is under way */
const wokenLookMs = 30_000
const wakeMs = 60_000
/** how often those who are watched are asked what they counted */
const collectMs = 2_000
/** not the image's fault: the rollout waits for an admin */
const notTheImage = new Set(['capacity-exhausted', 'engine-unreachable', 'port-range-exhausted', 'disk-full'])
const tryAgain = new Set(['instance-starting', 'database-unavailable', 'database-busy'])
const sleeps = 'It sleeps; its next start takes the new image.'
const fails = 'It failed before, too; its next start takes the new image.'

/** A filter in front of the engine lets only images of instances through; a name that is none is refused, too. */
const notAllowed = (error: unknown): never => {
  if (!(error instanceof RuntimeError) || error.kind !== 'refused') return rethrow(error)
  throw new AppError('rollout-image-missing', `${error.message} Correct the name of the image.`, { cause: error })
}

const noSuch = () => new AppError('rollout-not-found', 'There is no such rollout. List them with GET /v1/rollouts.')

export function createRollouts({
  db,
  fleet,
  runtime,
  activity,
  collect,
  image: basis,
  log,
  now,
  reach = () => {},
}: {
  db: Db
  fleet: Pick<Fleet, 'moveTo' | 'leading' | 'ensureReady' | 'reconcile'>
  runtime: Pick<Runtime, 'hasImage'>
  activity: Pick<Activity, 'flush'>
  /** brings what these users' instances have counted into table tool_usage */
  collect(userIds: string[]): Promise<void>
  /** SDP_INSTANCE_IMAGE */
  image: string
  log: Logger
  now: () => number
  reach?: ReachFaultPoint
}) {
  const inFlight = new Set<string>()
  let timer: NodeJS.Timeout | undefined
  let ticking: Promise<void> | undefined
  const ending = new AbortController()
  const { signal } = ending
  let lookedAt = 0
  let collectedAt = 0
  const table = createRolloutTable({ db, basis, now })

  async function viewOf(row: RolloutRow): Promise<RolloutView> {
    const members = await db.query<{
      username: string
      state: MemberState
      reason: string | null
      moved_at: Date | null
    }>(
      `select u.username, m.state, m.reason, m.moved_at from rollout_members m join users u on u.id = m.user_id
        where m.rollout_id = $1 order by m.position`,
      [row.id],
    )
    const progress = { waiting: 0, moving: 0, asleep: 0, moved: 0, failed: 0, reverting: 0, reverted: 0 }
    for (const { state } of members) progress[state]++
    return {
      id: row.id,
      image: row.image,
      state: row.state,
      batchSize: row.batch_size,
      maxUnavailable: row.max_unavailable,
      drainSeconds: row.drain_seconds,
      observeSeconds: row.observe_seconds,
      maxErrorRate: row.max_error_rate,
      reasonCode: row.reason_code,
      reason: row.reason,
      createdAt: row.created_at.toISOString(),
      finishedAt: row.finished_at?.toISOString() ?? null,
      progress,
      members: members.map(({ moved_at, ...member }) => ({ ...member, movedAt: moved_at?.toISOString() ?? null })),
    }
  }

  async function get(id: string): Promise<RolloutView> {
    const [row] = await db.query<RolloutRow>(`select ${rolloutColumns} from rollouts where id = $1`, [id])
    if (!row) throw noSuch()
    return viewOf(row)
  }

  /** Changes the state if it is one of `from`. */
  async function turn(id: string, from: RolloutState[], to: RolloutState, actor: string, reason?: [string, string]) {
    await db.withTx(async tx => {
      const [row] = await tx.query<{ state: RolloutState }>('select state from rollouts where id = $1 for update', [id])
      if (!row) throw noSuch()
      if (row.state === to) return
      if (!from.includes(row.state))
        throw new AppError(
          'rollout-finished',
          `The rollout is ${row.state}, so it cannot become ${to}. See GET /v1/rollouts/${id}.`,
        )
      await tx.query(
        'update rollouts set state = $2, reason_code = $3, reason = $4, updated_at = now() where id = $1',
        [id, to, reason?.[0] ?? null, reason?.[1] ?? null],
      )
      await appendAudit(tx, { actor, action: `rollout.${to}`, detail: { id, ...(reason ? { code: reason[0] } : {}) } })
    })
    log.info({ id, state: to, code: reason?.[0] }, 'rollout.state.changed')
    void tick()
    return get(id)
  }

  const tick = () => {
    ticking ??= work()
      .catch(error => log.warn({ error }, 'rollout.tick.failed'))
      .finally(() => {
        ticking = undefined
      })
    return ticking
  }

  async function work(): Promise<void> {
    if (signal.aborted || !fleet.leading()) return
    const [row] = await db.query<RolloutRow>(
      `select ${rolloutColumns} from rollouts where state in ('running', 'paused', 'rolling-back')`,
    )
    if (row || now() - lookedAt >= wokenLookMs) {
      lookedAt = now()
      await table.noteWoken()
    }
    if (!row) return
    await activity.flush()
    await collectWatched(row)
    const step = planRollout(
      {
        state: row.state,
        reasonCode: row.reason_code,
        batchSize: row.batch_size,
        maxUnavailable: row.max_unavailable,
        observeSeconds: row.observe_seconds,
        maxErrorRate: row.max_error_rate,
        usual: await table.usualOf(row),
        members: await table.members(row),
      },
      new Date(now()),
    )
    switch (step.do) {
      case 'move':
        await Promise.all(step.userIds.map(userId => once(userId, () => move(row, userId, step.wake))))
        return
      case 'revert':
        await Promise.all(step.userIds.map(userId => once(userId, () => revert(row, userId))))
        return
      case 'roll-back':
        await turn(row.id, ['running', 'paused'], 'rolling-back', 'system', [step.code, step.reason])
        return
      case 'finish':
        return finish(row, step.state)
      case 'wait':
    }
  }

  /** Instances tell what they counted once a minute: too late for a batch that is watched for half of one. */
  async function collectWatched(row: RolloutRow): Promise<void> {
    if (now() - collectedAt < collectMs) return
    const watched = await table.movedSince(row, new Date(now() - row.observe_seconds * 1000 - 10 * collectMs))
    if (watched.length === 0) return
    await collect(watched)
    collectedAt = now()
  }

  async function once(userId: string, act: () => Promise<void>): Promise<void> {
    if (inFlight.has(userId)) return
    inFlight.add(userId)
    try {
      await act()
    } finally {
      inFlight.delete(userId)
    }
  }

  async function move(row: RolloutRow, userId: string, wake: boolean): Promise<void> {
    await table.beginMove(row, userId)
    reach('rollout.noted')
    try {
      const attempt = () => fleet.moveTo(userId, row.image, { drainSeconds: row.drain_seconds, signal })
      let how = await attempt()
      if (how === 'failing') await table.noteFailingBefore(row, userId)
      if (how !== 'moved' && wake) {
        if (how === 'failing') await fleet.reconcile(userId, { asked: 'admin' })
        await fleet.ensureReady(userId, { timeoutMs: wakeMs, signal })
        how = await attempt()
      }
      if (how === 'moved') await table.note(db, row, userId, 'moved')
      else await table.note(db, row, userId, 'asleep', how === 'asleep' ? sleeps : fails)
    } catch (error) {
      // whoever leads next goes on with it
      if (signal.aborted) return
      const { code, message } = error instanceof AppError ? error : { code: 'internal', message: String(error) }
      log.warn({ userId, error }, 'rollout.member.not-moved')
      const waits = tryAgain.has(code) || notTheImage.has(code)
      await db.withTx(async tx => {
        await table.unpin(tx, row, userId)
        await table.note(tx, row, userId, waits ? 'waiting' : 'failed', message)
      })
      if (notTheImage.has(code)) await turn(row.id, ['running'], 'paused', 'system', [code, message])
    }
  }

  async function revert(row: RolloutRow, userId: string): Promise<void> {
    const [before] = await db.withTx(async tx => {
      await table.note(tx, row, userId, 'reverting')
      await table.unpin(tx, row, userId)
      return tx.query<{ previous_image: string }>(
        'select previous_image from rollout_members where rollout_id = $1 and user_id = $2',
        [row.id, userId],
      )
    })
    let reason: string | null = null
    try {
      if (before) {
        const how = await fleet.moveTo(userId, before.previous_image, { drainSeconds: row.drain_seconds, signal })
        // what fails with the new image need not wait for its next try
        if (how === 'failing') await fleet.reconcile(userId, { asked: 'admin' })
      }
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof AppError && tryAgain.has(error.code)) return
      // what is wanted is noted: the next start, or the next look when nobody uses it, brings it
      reason = error instanceof Error ? error.message : String(error)
      log.warn({ userId, error }, 'rollout.member.not-reverted')
    }
    await table.note(db, row, userId, 'reverted', reason)
  }

  async function finish(row: RolloutRow, state: 'done' | 'rolled-back' | 'aborted'): Promise<void> {
    await db.withTx(async tx => {
      if (state === 'done') {
        await tx.query(
          `insert into default_image (image, basis) values ($1, $2)
           on conflict (singleton) do update set image = excluded.image, basis = excluded.basis`,
          [row.image, basis],
        )
        // those whose move failed stay where they work
        await tx.query(`delete from image_pins where image = $1 and basis = $2`, [row.image, basis])
        await tx.query(
          `insert into image_pins (user_id, image, basis)
           select user_id, previous_image, $2 from rollout_members where rollout_id = $1 and state = 'failed'
           on conflict (user_id) do update set image = excluded.image, basis = excluded.basis`,
          [row.id, basis],
        )
      }
      await tx.query('update rollouts set state = $2, finished_at = now(), updated_at = now() where id = $1', [
        row.id,
        state,
      ])
      await appendAudit(tx, { actor: 'system', action: `rollout.${state}`, detail: { id: row.id, image: row.image } })
    })
    log.info({ id: row.id, image: row.image, state }, 'rollout.finished')
  }

  return {
    /** Goes on with a rollout that is under way, if this control plane leads. */
    start() {
      timer = setInterval(() => void tick(), tickMs)
      timer.unref()
    },

    /**
     * Begins a rollout of all users: the canary, one whose instance runs if there is any, is moved first.
     * @throws AppError `rollout-active`, `rollout-image-missing`, `engine-unreachable`
     * @throws AppError `rollout-canary-missing`: there is nobody whose instance may be started to prove the image
     */
    async create(input: RolloutInput, actor: string): Promise<RolloutView> {
      if (!(await runtime.hasImage(input.image).catch(notAllowed)))
        throw new AppError(
          'rollout-image-missing',
          `The engine has no image "${input.image}". Build or pull it there, or correct the name; docker image ls shows what it has.`,
        )
      const id = await db
        .withTx(async tx => {
          const [row] = await tx.query<{ id: string }>(
            `insert into rollouts (image, batch_size, max_unavailable, drain_seconds, observe_seconds, max_error_rate, actor)
             values ($1, $2, $3, $4, $5, $6, $7) returning id`,
            [
              input.image,
              input.batchSize,
              input.maxUnavailable,
              input.drainSeconds,
              input.observeSeconds,
              input.maxErrorRate,
              actor,
            ],
          )
          await tx.query(
            `insert into rollout_members (rollout_id, user_id, position, previous_image)
             select $1, u.id, row_number() over (order by u.wanted = 'running' and not u.suspended desc,
                      (i.state = 'ready') desc nulls last, coalesce(i.state = 'failed', false), u.username) - 1,
                    coalesce(p.image, d.image, $2)
               from users u
               left join instances i on i.user_id = u.id
               left join image_pins p on p.user_id = u.id and p.basis = $2
               left join default_image d on d.basis = $2
              where u.wanted <> 'removed'`,
            [row!.id, basis],
          )
          const [canary] = await tx.query("select from users where wanted = 'running' and not suspended limit 1")
          if (!canary)
            throw new AppError(
              'rollout-canary-missing',
              'A rollout needs a user whose instance proves the image, and there is none who is neither suspended nor stopped. Set SDP_INSTANCE_IMAGE instead, or lift the suspension of somebody.',
            )
          await appendAudit(tx, { actor, action: 'rollout.created', detail: { id: row!.id, image: input.image } })
          return row!.id
        })
        .catch(error => {
          if (sqlState(error) !== '23505') throw error
          throw new AppError(
            'rollout-active',
            'Another rollout is under way. Wait for it, or end it with POST /v1/rollouts/<id>/abort; see GET /v1/rollouts.',
          )
        })
      void tick()
      return get(id)
    },

    get,

    /**
     * An instance failed. If that was the first start of a user who slept when a rollout came by, the image of before is
     * wanted again.
     * @returns whether it is
     */
    async instanceFailed(userId: string, failure: { image: string | null; code: string }): Promise<boolean> {
      const { image, code } = failure
      if (image === null || notTheImage.has(code) || tryAgain.has(code)) return false
      const member = await table.fallBack(userId, { image, code })
      if (!member) return false
      log.warn({ userId, rolloutId: member.id, code: failure.code }, 'rollout.sleeper.failed')
      return true
    },

    /** The latest ones, newest first. */
    async list(): Promise<RolloutView[]> {
      const rows = await db.query<RolloutRow>(
        `select ${rolloutColumns} from rollouts order by created_at desc limit 20`,
      )
      return Promise.all(rows.map(viewOf))
    },

    pause: (id: string, actor: string) => turn(id, ['running'], 'paused', actor, ['paused', 'Paused by an admin.']),
    resume: (id: string, actor: string) => turn(id, ['paused'], 'running', actor),
    /** Ends a rollout: those who were moved go back. */
    abort: (id: string, actor: string) =>
      turn(id, ['running', 'paused'], 'rolling-back', actor, ['aborted', 'Aborted by an admin.']),

    /** Gives up the moves that are not done, each as after a failure; whoever leads next goes on with them. */
    async close() {
      ending.abort()
      clearInterval(timer)
      await ticking
    },
  }
}
