import { type Db, type Queryable, sqlState } from '../db.ts'
import type { InstanceState, Known, Wanted } from './plan.ts'

/** Reads what is wanted and known of users, and writes tables instances and instance_moves. Everything here runs under the user's lock, but for `markReady`, whose row decides. */

export type InstanceRow = Known & {
  port: number | null
  address: string | null
  image: string | null
  /** of its container, as the engine tells it; null: not known */
  startedAt: Date | null
}

/** The second instance of a user who is being moved to another image. */
export type Move = {
  /** `preparing`: the new one, unproven. `draining`: the old one, whose sessions may end. */
  phase: 'preparing' | 'draining'
  image: string
  generation: number
  port: number
  address: string | null
  containerId: string | null
  drainUntil: Date | null
  /** the generation that became the user's when this one began to drain; null: not known */
  swappedTo: number | null
}

export type Subject = {
  wanted: Wanted
  suspended: boolean
  adminWants: 'running' | 'stopped' | 'removed'
  /** whether there is a grant at Zoho to be revoked */
  connected: boolean
  row: InstanceRow | null
  move: Move | null
}

/** Where sessions that began before a move still are. */
export function drainingOf({ move }: Subject): { address: string; generation: number } | null {
  return move?.phase === 'draining' && move.address ? { address: move.address, generation: move.generation } : null
}

/** Tells the other control planes of a database that an instance changed. Payload: origin and user id. */
export const instanceChannel = 'sdp_mcp_instance'

export const nothingKnown = { reasonCode: null, reason: null, retryAt: null } as const

type SubjectRow = {
  id: string
  username: string
  generation: number
  wanted: Subject['adminWants']
  wanted_image: string | null
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
  started_at: Date | null
  phase: Move['phase'] | null
  move_image: string
  move_generation: number
  move_port: number
  move_address: string | null
  move_container_id: string | null
  drain_until: Date | null
  swapped_to: number | null
}

const subjectSql = `
  select u.id, u.username, u.generation::integer, u.wanted, u.suspended, coalesce(p.image, d.image) as wanted_image,
         exists (select from oauth_tokens t where t.user_id = u.id and t.refresh_token_sealed is not null) as connected,
         i.state, i.reason_code, i.reason, i.port, i.address, i.container_id, i.image,
         i.generation::integer as known_generation, i.failures, i.retry_at, i.changed_at, i.started_at,
         m.phase, m.image as move_image, m.generation::integer as move_generation, m.port as move_port,
         m.address as move_address, m.container_id as move_container_id, m.drain_until, m.swapped_to::integer
    from users u
    left join instances i on i.user_id = u.id
    left join instance_moves m on m.user_id = u.id
    left join image_pins p on p.user_id = u.id and p.basis = $1
    left join default_image d on d.basis = $1`

export type InstanceTable = ReturnType<typeof createInstanceTable>

/** @param origin - tells this control plane's notifications from those of others */
export function createInstanceTable({
  db,
  image,
  origin,
  now,
}: {
  db: Db
  /** of users without a decision of their own: SDP_INSTANCE_IMAGE */
  image: string
  origin: string
  now: () => number
}) {
  const notify = (tx: Queryable, userId: string) =>
    tx.query('select pg_notify($1, $2)', [instanceChannel, `${origin} ${userId}`])

  function toSubject(row: SubjectRow): Subject {
    const state = row.wanted === 'removed' ? 'removed' : row.suspended ? 'suspended' : row.wanted
    return {
      wanted: {
        userId: row.id,
        username: row.username,
        generation: row.generation,
        image: row.wanted_image ?? image,
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
        startedAt: row.started_at,
      },
      move: row.phase && {
        phase: row.phase,
        image: row.move_image,
        generation: row.move_generation,
        port: row.move_port,
        address: row.move_address,
        containerId: row.move_container_id,
        drainUntil: row.drain_until,
        swappedTo: row.swapped_to,
      },
    }
  }

  return {
    async read(userId: string): Promise<Subject | null> {
      const [row] = await db.query<SubjectRow>(`${subjectSql} where u.id = $2`, [image, userId])
      return row ? toSubject(row) : null
    },

    async readAll(): Promise<Subject[]> {
      return (await db.query<SubjectRow>(subjectSql, [image])).map(toSubject)
    },

    async anyUsers(): Promise<boolean> {
      const [row] = await db.query<{ any: boolean }>('select exists (select from users) as any')
      return row?.any === true
    },

    async countUsers(): Promise<number> {
      const [row] = await db.query<{ users: number }>('select count(*)::integer as users from users')
      return row?.users ?? 0
    },

    /** Instances that run or are about to, other than this user's. */
    async countOthersRunning(userId: string | null): Promise<number> {
      const [row] = await db.query<{ running: number }>(
        `select (select count(*) from instances
                  where state in ('starting', 'ready', 'draining') and user_id is distinct from $1)::integer
              + (select count(*) from instance_moves where user_id is distinct from $1)::integer as running`,
        [userId],
      )
      return row?.running ?? 0
    },

    /** Writes what is now known of an instance, and tells the other control planes. */
    async record(subject: Subject, change: Partial<InstanceRow> & { state: InstanceState }): Promise<InstanceRow> {
      const { userId } = subject.wanted
      const row: InstanceRow = {
        reasonCode: null,
        reason: null,
        containerId: null,
        generation: subject.wanted.generation,
        failures: 0,
        retryAt: null,
        port: null,
        address: null,
        image: null,
        startedAt: null,
        ...subject.row,
        changedAt: new Date(now()),
        ...change,
      }
      try {
        await db.query(
          `with written as (
             insert into instances (user_id, state, reason_code, reason, port, address, container_id, image, generation, failures, retry_at, changed_at, started_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $15)
             on conflict (user_id) do update set state = $2, reason_code = $3, reason = $4, port = $5, address = $6,
               container_id = $7, image = $8, generation = $9, failures = $10, retry_at = $11, changed_at = $12, started_at = $15
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
            row.startedAt,
          ],
        )
      } catch (error) {
        // the user is gone, and the row with it
        if (sqlState(error) !== '23503') throw error
      }
      subject.row = row
      return row
    },

    /**
     * @returns whether it was not ready before, by the very row that is written, and where sessions of before a move still
     *   are; undefined when somebody decided otherwise while the container came up
     */
    async markReady(
      userId: string,
      containerId: string,
      address: string,
    ): Promise<{ isNew: boolean; draining: { address: string; generation: number } | null } | undefined> {
      const [noted] = await db.query<{ before: InstanceState; address: string | null; generation: number }>(
        `with found as (
           select user_id, state from instances
            where user_id = $1 and container_id = $2 and state in ('starting', 'ready') for update),
         written as (
           update instances i set state = 'ready', reason_code = null, reason = null, retry_at = null, address = $3,
                  changed_at = case when i.state = 'ready' then changed_at else $4 end
             from found where i.user_id = found.user_id returning i.user_id, found.state as before)
         select pg_notify($5, $6 || ' ' || w.user_id), w.before, m.address, m.generation::integer
           from written w left join instance_moves m on m.user_id = w.user_id and m.phase = 'draining'`,
        [userId, containerId, address, new Date(now()), instanceChannel, origin],
      )
      if (!noted) return undefined
      const { before, address: drainingAddress, generation } = noted
      return {
        isNew: before !== 'ready',
        draining: drainingAddress === null ? null : { address: drainingAddress, generation },
      }
    },

    /** A client that connects starts what an admin had stopped. */
    async wantRunning(userId: string): Promise<void> {
      await db.query("update users set wanted = 'running', updated_at = now() where id = $1 and wanted = 'stopped'", [
        userId,
      ])
    },

    /** The lowest port of the range that no instance has. */
    async freePort([low, high]: readonly [number, number], except: number[]): Promise<number | undefined> {
      const [free] = await db.query<{ port: number }>(
        `select port from generate_series($1::integer, $2::integer) port
          where port <> all($3::integer[]) and not exists (select from instances i where i.port = port.port)
            and not exists (select from instance_moves m where m.port = port.port)
          order by port limit 1`,
        [low, high, except],
      )
      return free?.port
    },

    // ---- moving ----------------------------------------------------------------------------------------------------

    /**
     * Reserves the next generation for a new instance beside the old one.
     * @returns null when the user changed meanwhile
     */
    async beginMove(subject: Subject, to: { image: string; port: number }): Promise<Move | null> {
      const { userId, generation } = subject.wanted
      return db.withTx(async tx => {
        const [user] = await tx.query<{ generation: number }>(
          "update users set generation = generation + 1 where id = $1 and generation = $2 and wanted = 'running' and not suspended returning generation::integer",
          [userId, generation],
        )
        if (!user) return null
        await tx.query(
          "insert into instance_moves (user_id, phase, image, generation, port) values ($1, 'preparing', $2, $3, $4)",
          [userId, to.image, user.generation, to.port],
        )
        return {
          phase: 'preparing',
          ...to,
          generation: user.generation,
          address: null,
          containerId: null,
          drainUntil: null,
          swappedTo: null,
        }
      })
    },

    async setMovePort(userId: string, port: number): Promise<void> {
      await db.query('update instance_moves set port = $2 where user_id = $1', [userId, port])
    },

    /**
     * The second instance becomes the user's, and the one before drains: one transaction, one notification. Also the way
     * back, while the old one is still there.
     * @returns false when the user changed meanwhile, which makes the second instance worthless
     */
    async swap(
      subject: Subject,
      move: Move,
      to: { containerId: string; address: string; startedAt: Date | null; drainUntil: Date },
    ): Promise<boolean> {
      const { userId } = subject.wanted
      const before = subject.row
      if (!before?.containerId || !before.port) return false
      const { containerId, port, address, generation, image: beforeImage } = before
      return db.withTx(async tx => {
        const [still] = await tx.query(
          `update users set generation = $3 where id = $1 and generation = $2 and wanted = 'running' and not suspended
           returning id`,
          [userId, move.phase === 'preparing' ? move.generation : generation, move.generation],
        )
        if (!still) return false
        await tx.query('delete from instance_moves where user_id = $1', [userId])
        await tx.query(
          `update instances set state = 'ready', reason_code = null, reason = null, retry_at = null, failures = 0, port = $2,
                  address = $3, container_id = $4, image = $5, generation = $6, changed_at = $7, started_at = $8 where user_id = $1`,
          [userId, move.port, to.address, to.containerId, move.image, move.generation, new Date(now()), to.startedAt],
        )
        await tx.query(
          `insert into instance_moves (user_id, phase, image, generation, port, address, container_id, drain_until, swapped_to)
           values ($1, 'draining', $2, $3, $4, $5, $6, $7, $8)`,
          [userId, beforeImage ?? '', generation, port, address, containerId, to.drainUntil, move.generation],
        )
        await notify(tx, userId)
        return true
      })
    },

    /** Forgets the second instance. A generation that was reserved for it is given back, unless the user went on. */
    async endMove(userId: string, move: Move): Promise<void> {
      await db.withTx(async tx => {
        await tx.query('delete from instance_moves where user_id = $1 and generation = $2', [userId, move.generation])
        if (move.phase === 'preparing')
          await tx.query('update users set generation = generation - 1 where id = $1 and generation = $2', [
            userId,
            move.generation,
          ])
        await notify(tx, userId)
      })
    },
  }
}
