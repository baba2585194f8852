import type { Activity } from './activity.ts'
import { appendAudit } from './audit.ts'
import { type Db, type Queryable, sqlState } from './db.ts'
import { AppError } from './errors.ts'
import type { ReachFaultPoint } from './fault-points.ts'
import { rethrow } from './fleet/failures.ts'
import type { Fleet } from './fleet/fleet.ts'
import { type Member, type MemberState, planRollout, type RolloutState } from './fleet/rollout.ts'
import type { Runtime } from './fleet/runtime.ts'
import type { Logger } from './log.ts'

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
const usualMs = 60_000
/** not the image's fault: the rollout waits for an admin */
const notTheImage = new Set(['capacity-exhausted', 'engine-unreachable', 'port-range-exhausted', 'disk-full'])
const tryAgain = new Set(['instance-starting', 'database-unavailable', 'database-busy'])
const sleeps = 'It sleeps; its next start takes the new image.'
const fails = 'It failed before, too; its next start takes the new image.'

type Row = {
  id: string
  image: string
  state: RolloutState
  batch_size: number
  max_unavailable: number
  drain_seconds: number
  observe_seconds: number
  max_error_rate: number
  reason_code: string | null
  reason: string | null
  created_at: Date
  finished_at: Date | null
}
const columns = `id, image, state, batch_size, max_unavailable, drain_seconds, observe_seconds, max_error_rate, reason_code, reason,
  created_at, finished_at`

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
  let usual = { rolloutId: '', at: 0, calls: 0, errors: 0 }

  async function viewOf(row: Row): Promise<RolloutView> {
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
    const [row] = await db.query<Row>(`select ${columns} from rollouts where id = $1`, [id])
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
    const [row] = await db.query<Row>(
      `select ${columns} from rollouts where state in ('running', 'paused', 'rolling-back')`,
    )
    if (row || now() - lookedAt >= wokenLookMs) await noteWoken()
    if (!row) return
    await activity.flush()
    await collectWatched(row)
    const members = await db.query<{
      user_id: string
      state: MemberState
      moved_at: Date | null
      can_prove: boolean
      failing_before: boolean
      broken: boolean
      requests: number
      failures: number
      tool_calls: number
      tool_errors: number
    }>(
      `select m.user_id, m.state, m.moved_at, u.wanted = 'running' and not u.suspended as can_prove, m.failing_before, coalesce(i.state = 'failed' and i.image = $2, false) as broken,
              greatest(0, coalesce(a.requests, 0) - m.requests_before)::float8 as requests,
              greatest(0, coalesce(a.failures, 0) - m.failures_before)::float8 as failures,
              greatest(0, coalesce(t.calls, 0) - m.calls_before)::float8 as tool_calls,
              greatest(0, coalesce(t.errors, 0) - m.errors_before)::float8 as tool_errors
         from rollout_members m join users u on u.id = m.user_id and u.wanted <> 'removed'
         left join instances i on i.user_id = m.user_id
         left join instance_activity a on a.user_id = m.user_id
         left join (select user_id, sum(calls) as calls, sum(errors) as errors from tool_usage
                     where image = $2 and day >= $3::date group by user_id) t on t.user_id = m.user_id
        where m.rollout_id = $1 order by m.position`,
      [row.id, row.image, row.created_at.toISOString()],
    )
    const step = planRollout(
      {
        state: row.state,
        reasonCode: row.reason_code,
        batchSize: row.batch_size,
        maxUnavailable: row.max_unavailable,
        observeSeconds: row.observe_seconds,
        maxErrorRate: row.max_error_rate,
        usual: await usualOf(row),
        members: members.map(
          ({ user_id, moved_at, can_prove, failing_before, tool_calls, tool_errors, ...member }): Member => ({
            userId: user_id,
            movedAt: moved_at,
            canProve: can_prove,
            failingBefore: failing_before,
            toolCalls: tool_calls,
            toolErrors: tool_errors,
            ...member,
          }),
        ),
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
  async function collectWatched(row: Row): Promise<void> {
    if (now() - collectedAt < collectMs) return
    const watched = await db.query<{ user_id: string }>(
      "select user_id from rollout_members where rollout_id = $1 and state = 'moved' and moved_at > $2",
      [row.id, new Date(now() - row.observe_seconds * 1000 - 10 * collectMs)],
    )
    if (watched.length === 0) return
    await collect(watched.map(({ user_id }) => user_id))
    collectedAt = now()
  }

  async function usualOf(row: Row): Promise<{ calls: number; errors: number }> {
    if (usual.rolloutId === row.id && now() - usual.at < usualMs) return usual
    const [sums] = await db.query<{ calls: number; errors: number }>(
      `select coalesce(sum(t.calls), 0)::float8 as calls, coalesce(sum(t.errors), 0)::float8 as errors
         from tool_usage t join rollout_members m on m.user_id = t.user_id and m.rollout_id = $1
        where t.day >= $3::date - 7 and t.image is distinct from $2`,
      [row.id, row.image, row.created_at.toISOString()],
    )
    usual = { rolloutId: row.id, at: now(), calls: 0, errors: 0, ...sums }
    return usual
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

  const note = (tx: Queryable, row: Row, userId: string, state: MemberState, reason: string | null = null) =>
    tx.query(
      `update rollout_members set state = $3, reason = $4, moved_at = case when $3 in ('moved', 'failed') then $5 else moved_at end
        where rollout_id = $1 and user_id = $2`,
      [row.id, userId, state, reason, new Date(now())],
    )

  /** The image the user had before; no row of its own where that is what everybody has. */
  const unpin = (tx: Queryable, row: Row, userId: string) =>
    tx.query(
      `with before as (
         select m.previous_image as image,
                m.previous_image = coalesce((select image from default_image where basis = $3), $3) as usual
           from rollout_members m where m.rollout_id = $1 and m.user_id = $2),
       gone as (delete from image_pins where user_id = $2 and exists (select from before where usual))
       insert into image_pins (user_id, image, basis) select $2, image, $3 from before where not usual
       on conflict (user_id) do update set image = excluded.image, basis = excluded.basis`,
      [row.id, userId, basis],
    )

  /** Those who slept and have taken the new image with a start of their own. */
  async function noteWoken(): Promise<void> {
    lookedAt = now()
    await db.query(
      `update rollout_members m set state = 'moved', reason = null from rollouts r, instances i
        where m.state = 'asleep' and r.id = m.rollout_id and i.user_id = m.user_id and i.state = 'ready' and i.image = r.image`,
    )
  }

  async function move(row: Row, userId: string, wake: boolean): Promise<void> {
    await db.withTx(async tx => {
      await tx.query(
        `update rollout_members m set state = 'moving', reason = null,
                requests_before = coalesce((select requests from instance_activity a where a.user_id = m.user_id), 0),
                failures_before = coalesce((select failures from instance_activity a where a.user_id = m.user_id), 0),
                (calls_before, errors_before) = (
                  select coalesce(sum(calls), 0), coalesce(sum(errors), 0) from tool_usage t
                   where t.user_id = m.user_id and t.image = $3 and t.day >= $4::date)
          where rollout_id = $1 and user_id = $2`,
        [row.id, userId, row.image, row.created_at.toISOString()],
      )
      await tx.query(
        `insert into image_pins (user_id, image, basis) values ($1, $2, $3)
         on conflict (user_id) do update set image = excluded.image, basis = excluded.basis`,
        [userId, row.image, basis],
      )
    })
    reach('rollout.noted')
    try {
      const attempt = () => fleet.moveTo(userId, row.image, { drainSeconds: row.drain_seconds, signal })
      let how = await attempt()
      if (how === 'failing')
        await db.query('update rollout_members set failing_before = true where rollout_id = $1 and user_id = $2', [
          row.id,
          userId,
        ])
      if (how !== 'moved' && wake) {
        if (how === 'failing') await fleet.reconcile(userId, { asked: 'admin' })
        await fleet.ensureReady(userId, { timeoutMs: wakeMs, signal })
        how = await attempt()
      }
      if (how === 'moved') await note(db, row, userId, 'moved')
      else await note(db, row, userId, 'asleep', how === 'asleep' ? sleeps : fails)
    } catch (error) {
      // whoever leads next goes on with it
      if (signal.aborted) return
      const { code, message } = error instanceof AppError ? error : { code: 'internal', message: String(error) }
      log.warn({ userId, error }, 'rollout.member.not-moved')
      const waits = tryAgain.has(code) || notTheImage.has(code)
      await db.withTx(async tx => {
        await unpin(tx, row, userId)
        await note(tx, row, userId, waits ? 'waiting' : 'failed', message)
      })
      if (notTheImage.has(code)) await turn(row.id, ['running'], 'paused', 'system', [code, message])
    }
  }

  async function revert(row: Row, userId: string): Promise<void> {
    const [before] = await db.withTx(async tx => {
      await note(tx, row, userId, 'reverting')
      await unpin(tx, row, userId)
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
    await note(db, row, userId, 'reverted', reason)
  }

  async function finish(row: Row, state: 'done' | 'rolled-back' | 'aborted'): Promise<void> {
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
      if (!(await runtime.hasImage(input.image).catch(rethrow)))
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
      if (failure.image === null || notTheImage.has(failure.code) || tryAgain.has(failure.code)) return false
      const [member] = await db.query<Row>(
        `select ${columns} from rollouts r
          where r.image = $2 and r.state in ('running', 'paused', 'done')
            and exists (select from rollout_members m where m.rollout_id = r.id and m.user_id = $1 and m.state = 'asleep'
                           and m.previous_image <> $2)
            -- unless another decision counts by now
            and $2 = coalesce((select image from image_pins where user_id = $1 and basis = $3),
                              (select image from default_image where basis = $3))
          order by r.created_at desc limit 1`,
        [userId, failure.image, basis],
      )
      if (!member) return false
      await db.withTx(async tx => {
        await unpin(tx, member, userId)
        await tx.query(
          "update rollout_members set state = 'failed', reason = $3 where rollout_id = $1 and user_id = $2",
          [
            member.id,
            userId,
            `Its first start with the new image failed (${failure.code}); it has the one of before again.`,
          ],
        )
      })
      log.warn({ userId, rolloutId: member.id, code: failure.code }, 'rollout.sleeper.failed')
      return true
    },

    /** The latest ones, newest first. */
    async list(): Promise<RolloutView[]> {
      const rows = await db.query<Row>(`select ${columns} from rollouts order by created_at desc limit 20`)
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
