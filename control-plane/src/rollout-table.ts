import type { Db, Queryable } from './db.ts'
import type { Member, MemberState, RolloutState } from './fleet/rollout.ts'

/** Reads and writes the members of rollouts and the images they want: tables rollout_members and image_pins. */

export type RolloutRow = {
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
export const rolloutColumns = `id, image, state, batch_size, max_unavailable, drain_seconds, observe_seconds, max_error_rate, reason_code, reason,
  created_at, finished_at`

const usualMs = 60_000

/** @param basis - SDP_INSTANCE_IMAGE */
export function createRolloutTable({ db, basis, now }: { db: Db; basis: string; now: () => number }) {
  let usual = { rolloutId: '', at: 0, calls: 0, errors: 0 }

  /** The image the user had before; no row of its own where that is what everybody has. */
  const unpin = (tx: Queryable, row: RolloutRow, userId: string) =>
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

  return {
    unpin,

    /** Whom a rollout is about, in the order of moving, and what their instances did since their move. */
    async members(row: RolloutRow): Promise<Member[]> {
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
      return members.map(
        ({ user_id, moved_at, can_prove, failing_before, tool_calls, tool_errors, ...member }): Member => ({
          userId: user_id,
          movedAt: moved_at,
          canProve: can_prove,
          failingBefore: failing_before,
          toolCalls: tool_calls,
          toolErrors: tool_errors,
          ...member,
        }),
      )
    },

    /** Tool calls of these users in the week before, with other images. */
    async usualOf(row: RolloutRow): Promise<{ calls: number; errors: number }> {
      if (usual.rolloutId === row.id && now() - usual.at < usualMs) return usual
      const [sums] = await db.query<{ calls: number; errors: number }>(
        `select coalesce(sum(t.calls), 0)::float8 as calls, coalesce(sum(t.errors), 0)::float8 as errors
         from tool_usage t join rollout_members m on m.user_id = t.user_id and m.rollout_id = $1
        where t.day >= $3::date - 7 and t.image is distinct from $2`,
        [row.id, row.image, row.created_at.toISOString()],
      )
      usual = { rolloutId: row.id, at: now(), calls: 0, errors: 0, ...sums }
      return usual
    },

    /** Notes what was counted so far, and that this user's instance is to have the rollout's image. */
    async beginMove(row: RolloutRow, userId: string): Promise<void> {
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
    },

    note: (tx: Queryable, row: RolloutRow, userId: string, state: MemberState, reason: string | null = null) =>
      tx.query(
        `update rollout_members set state = $3, reason = $4, moved_at = case when $3 in ('moved', 'failed') then $5 else moved_at end
        where rollout_id = $1 and user_id = $2`,
        [row.id, userId, state, reason, new Date(now())],
      ),

    async noteFailingBefore(row: RolloutRow, userId: string): Promise<void> {
      await db.query('update rollout_members set failing_before = true where rollout_id = $1 and user_id = $2', [
        row.id,
        userId,
      ])
    },

    /** Those who slept and have taken the new image with a start of their own. */
    async noteWoken(): Promise<void> {
      await db.query(
        `update rollout_members m set state = 'moved', reason = null from rollouts r, instances i
          where m.state = 'asleep' and r.id = m.rollout_id and i.user_id = m.user_id and i.state = 'ready' and i.image = r.image`,
      )
    },

    /** Whose instances were moved since an instant. */
    async movedSince(row: RolloutRow, since: Date): Promise<string[]> {
      const moved = await db.query<{ user_id: string }>(
        "select user_id from rollout_members where rollout_id = $1 and state = 'moved' and moved_at > $2",
        [row.id, since],
      )
      return moved.map(({ user_id }) => user_id)
    },

    /**
     * The first start of a user who slept when a rollout came by has failed: the image of before is wanted again.
     * @returns the rollout; undefined when that was no such start, or another decision counts by now
     */
    async fallBack(userId: string, failure: { image: string; code: string }): Promise<RolloutRow | undefined> {
      const [member] = await db.query<RolloutRow>(
        `select ${rolloutColumns} from rollouts r
          where r.image = $2 and r.state in ('running', 'paused', 'done')
            and exists (select from rollout_members m where m.rollout_id = r.id and m.user_id = $1 and m.state = 'asleep'
                           and m.previous_image <> $2)
            -- unless another decision counts by now
            and $2 = coalesce((select image from image_pins where user_id = $1 and basis = $3),
                              (select image from default_image where basis = $3))
          order by r.created_at desc limit 1`,
        [userId, failure.image, basis],
      )
      if (!member) return undefined
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
      return member
    },
  }
}
