import pg from 'pg'
import { AppError } from './errors.ts'

/** The only importer of pg in the control plane. */

export type Row = Record<string, unknown>

export interface Queryable {
  /** Runs one parametrised statement and returns its rows. */
  query<T = Row>(sql: string, values?: unknown[]): Promise<T[]>
}

export interface Db extends Queryable {
  /** Runs `work` in one transaction on one connection; rolls back when it throws. */
  withTx<T>(work: (tx: Queryable) => Promise<T>): Promise<T>
  /**
   * Runs `work` while holding the session advisory lock named `key`, waiting for it if necessary. Other
   * processes on this database wait for each other; a crashed holder frees it by losing its connection, and one that
   * hangs or is cut off by not being heard of for ten seconds. Work whose connection is lost goes on without the lock,
   * so it must bear company; `lost` tells it.
   *
   * @throws AppError `database-busy` when the lock cannot be had for a minute and a half
   */
  withLock<T>(key: string, work: (lost: AbortSignal) => Promise<T>): Promise<T>
  /** Sends a notification; inside a transaction use {@link notifySql}, so that it is sent with the commit. */
  notify(channel: string, payload: string): Promise<void>
  /**
   * Calls `handler` for each notification, and with `null` after the listening connection was (re)opened:
   * then something may have been missed, so look at everything.
   */
  listen(
    channel: string,
    handler: (payload: string | null) => void,
  ): Promise<{ connected(): boolean; close(): Promise<void> }>
  /**
   * Takes part in the election named `key`: at most one process of all that take part leads. A leader that dies is
   * replaced within two or three seconds, one that hangs within nine, when the server has ended its silent session.
   *
   * @param changed - called with each gain and loss
   * @returns when it is known whether this process leads for now
   */
  lead(key: string, changed: (leading: boolean) => void): Promise<Leadership>
  close(): Promise<void>
}

export type Leadership = { leading(): boolean; close(): Promise<void> }

export const notifySql = 'select pg_notify($1, $2)'

export type DbOptions = {
  host: string
  port: number
  database: string
  user: string
  password: string
  /** most connections of the pool; the listening connection, the election's and locks come on top */
  max?: number
  /** most locks held or waited for at once */
  maxLocks?: number
  onError?: (error: Error) => void
}

/** What each of several workers may take, so that all of them together take little more than one process does. */
export function poolSizes(workers: number): { max: number; maxLocks: number } {
  return { max: Math.max(3, Math.ceil(10 / workers)), maxLocks: Math.max(4, Math.ceil(20 / workers)) }
}

const statementTimeoutMs = 10_000
/** Shorter than a statement's time, so that who waits behind a lock is told so. */
const lockTimeoutMs = 5_000
const connectTimeoutMs = 5_000
const listenRetryMs = 500
/** whoever holds a lock says so this often; the server ends the session of one it has not heard of for longer */
const lockBeatMs = 2_000
const lockSilenceMs = 10_000
const lockBeatLimitMs = 5_000
/** longer than anything that is done under a lock */
const longestLockWaitMs = 90_000
const electionPollMs = 1_500
/** the server ends the session of a leader it has not heard of for this long; the leader itself stops believing earlier */
const electionSilenceMs = 6_000

export function createDb(options: DbOptions): Db {
  const connection = {
    host: options.host,
    port: options.port,
    database: options.database,
    user: options.user,
    password: options.password,
    application_name: 'sdp-mcp-control-plane',
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
    lock_timeout: lockTimeoutMs,
    // the server may vanish without a word: the client gives up by itself, too
    query_timeout: statementTimeoutMs + 2_000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  }
  const pool = new pg.Pool({ ...connection, max: options.max ?? 10, idleTimeoutMillis: 30_000 })
  // Locks are held while engines work, which is long: they must not starve the queries. A pool's time limit for
  // connecting is also one for waiting in line, which is no outage here; so each connection has it instead.
  const lockPool = new pg.Pool({
    max: options.maxLocks ?? 20,
    // before the server ends them
    idleTimeoutMillis: lockSilenceMs / 2,
    Client: class extends pg.Client {
      constructor() {
        // the lock that is waited for here is one of ours, and held for long by right
        super({
          ...connection,
          statement_timeout: 0,
          lock_timeout: longestLockWaitMs,
          query_timeout: longestLockWaitMs + 2_000,
          options: `-c idle_session_timeout=${lockSilenceMs}`,
        })
      }
    },
  })
  const onError = options.onError ?? (() => {})
  pool.on('error', onError)
  lockPool.on('error', onError)

  const on = (client: pg.Pool | pg.PoolClient): Queryable => ({
    async query<T>(sql: string, values?: unknown[]) {
      try {
        return (await client.query(sql, values)).rows as T[]
      } catch (error) {
        throw asAppError(error)
      }
    },
  })

  const checkOut = async (from: pg.Pool) => {
    let client: pg.PoolClient
    try {
      client = await from.connect()
    } catch (error) {
      throw asAppError(error)
    }
    // the pool listens to idle connections only, and a loss that nobody listens to would end the process
    client.on('error', onError)
    return {
      client,
      /** @param broken - drops the connection instead of using it again */
      giveBack(broken: boolean) {
        client.off('error', onError)
        client.release(broken)
      },
    }
  }

  async function locked<T>(key: string, work: (lost: AbortSignal) => Promise<T>): Promise<T> {
    const { client, giveBack } = await checkOut(lockPool)
    const lost = new AbortController()
    const lose = (error: Error) => lost.abort(asAppError(error))
    let beat: NodeJS.Timeout | undefined
    try {
      client.once('error', lose)
      await client.query('select pg_advisory_lock(hashtextextended($1, 0))', [key])
      beat = setInterval(() => {
        client.query({ text: 'select 1', query_timeout: lockBeatLimitMs } as pg.QueryConfig).catch(lose)
      }, lockBeatMs)
      return await work(lost.signal)
    } catch (error) {
      throw asAppError(error)
    } finally {
      clearInterval(beat)
      client.off('error', lose)
      const unlock = { text: 'select pg_advisory_unlock(hashtextextended($1, 0))', values: [key] }
      // a lock that cannot be given back goes with its connection
      if (!lost.signal.aborted)
        await client.query({ ...unlock, query_timeout: lockBeatLimitMs } as pg.QueryConfig).catch(lose)
      giveBack(lost.signal.aborted)
    }
  }
  // in this process, those who want the same lock wait here, so that they do not occupy a connection each
  const lines = new Map<string, Promise<unknown>>()

  return {
    ...on(pool),

    async withTx(work) {
      const { client, giveBack } = await checkOut(pool)
      let broken = false
      try {
        await client.query('begin')
        const result = await work(on(client))
        await client.query('commit')
        return result
      } catch (error) {
        await client.query('rollback').catch(() => {
          broken = true
        })
        throw asAppError(error)
      } finally {
        giveBack(broken)
      }
    },

    withLock(key, work) {
      const turn = (lines.get(key) ?? Promise.resolve()).then(() => locked(key, work))
      const end = turn
        .catch(() => {})
        .then(() => {
          if (lines.get(key) === end) lines.delete(key)
        })
      lines.set(key, end)
      return turn
    },

    async notify(channel, payload) {
      await on(pool).query(notifySql, [channel, payload])
    },

    async listen(channel, handler) {
      let closed = false
      let client: pg.Client | undefined
      let retry: NodeJS.Timeout | undefined
      const open = async () => {
        const next = new pg.Client({ ...connection, statement_timeout: undefined, query_timeout: undefined })
        next.on('notification', message => handler(message.payload ?? ''))
        next.on('error', onError)
        try {
          await next.connect()
          await next.query(`listen ${pg.escapeIdentifier(channel)}`)
        } catch (error) {
          await next.end().catch(() => {})
          throw error
        }
        if (closed) return void (await next.end())
        next.once('end', () => {
          client = undefined
          if (!closed) retry = setTimeout(reopen, listenRetryMs)
        })
        client = next
        handler(null)
      }
      const reopen = () =>
        open().catch(error => {
          onError(error)
          if (!closed) retry = setTimeout(reopen, listenRetryMs)
        })
      await open().catch(error => {
        throw asAppError(error)
      })
      return {
        connected: () => client !== undefined,
        async close() {
          closed = true
          clearTimeout(retry)
          await client?.end().catch(() => {})
        },
      }
    },

    async lead(key, changed) {
      let client: pg.Client | undefined
      let held = false
      let heardAt = Number.NEGATIVE_INFINITY
      let closed = false
      let timer: NodeJS.Timeout | undefined

      const lose = () => {
        const lost = client
        client = undefined
        lost?.end().catch(() => {})
        if (!held) return
        held = false
        changed(false)
      }
      const connect = async () => {
        const next = new pg.Client({ ...connection, statement_timeout: 3_000, query_timeout: 4_000 })
        next.on('error', onError)
        next.once('end', () => {
          if (client === next) lose()
        })
        try {
          await next.connect()
          await next.query(`set idle_session_timeout = ${electionSilenceMs}`)
        } catch (error) {
          await next.end().catch(() => {})
          throw error
        }
        client = next
        return next
      }
      const round = async () => {
        const current = client ?? (await connect())
        // the clock that no administrator sets; from before the question, so that we give up before the server does
        const asked = performance.now()
        if (held) {
          await current.query('select 1')
          heardAt = asked
          return
        }
        const { rows } = await current.query('select pg_try_advisory_lock(hashtextextended($1, 0)) as taken', [key])
        if (!rows[0].taken || client !== current) return
        held = true
        heardAt = asked
        changed(true)
      }
      const again = async () => {
        try {
          await round()
        } catch (error) {
          onError(error as Error)
          lose()
        }
        if (!closed) timer = setTimeout(again, electionPollMs).unref()
      }
      await again()
      return {
        leading: () => held && performance.now() - heardAt < electionSilenceMs,
        async close() {
          closed = true
          clearTimeout(timer)
          held = false
          await client?.end().catch(() => {})
        },
      }
    },

    async close() {
      await Promise.all([pool.end(), lockPool.end()])
    },
  }
}

/** PostgreSQL error code (SQLSTATE) of a failed statement, e.g. `23505` unique violation. */
export function sqlState(error: unknown): string | undefined {
  const code = (error as { code?: unknown })?.code ?? (error as { cause?: { code?: unknown } })?.cause?.code
  return typeof code === 'string' ? code : undefined
}

/** Name of the constraint a failed statement violated. */
export function violatedConstraint(error: unknown): string | undefined {
  return (error as { constraint?: string })?.constraint
}

// connection exceptions (08), operator intervention (57P), a statement that took too long (57014), out of connections or
// disk (53), and what Node says of sockets
const outage =
  /^(08|57P|57014|53)|^(ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EPIPE|EHOSTUNREACH|ENETUNREACH)$/

function asAppError(error: unknown): unknown {
  if (error instanceof AppError) return error
  if (sqlState(error) === '55P03')
    return new AppError(
      'database-busy',
      'Somebody else holds a lock on what this call needs, for longer than it may wait. Try again; a transaction that an instance leaves open is ended within a minute.',
      { cause: error, retryAfterSeconds: 15 },
    )
  const message = error instanceof Error ? error.message : ''
  if (
    outage.test(sqlState(error) ?? '') ||
    /Connection terminated|not currently accepting connections|timeout exceeded when trying to connect|Query read timeout|not queryable/i.test(
      message,
    )
  ) {
    return new AppError(
      'database-unavailable',
      'The database does not answer. Check that PostgreSQL runs and is reachable (SDP_DB_HOST, SDP_DB_PORT), then try again.',
      { cause: error, retryAfterSeconds: 2 },
    )
  }
  return error
}
