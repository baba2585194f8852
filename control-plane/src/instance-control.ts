import {
  type ConnectionReport,
  connectionReport,
  type SessionReport,
  sessionReport,
  type UsageReport,
  usageReport,
} from '@sdp-mcp/instance/contract'
import { Agent, request } from 'undici'
import type { z } from 'zod'
import type { Db } from './db.ts'
import { AppError } from './errors.ts'
import type { StatementSigner } from './identity.ts'
import type { Routes } from './proxy/routes.ts'

/** Whom to ask: an instance of a user, of one generation. */
export type ControlTarget = { userId: string; username: string; address: string; generation: number }

/**
 * What the control plane asks of instances, each time with a statement for that very instance.
 * @throws AppError `instance-unreachable` when it does not answer as agreed within the time
 */
export type InstanceControl = ReturnType<typeof createInstanceControl>

const exchangeTimeoutMs = 25_000
const revokeTimeoutMs = 10_000
const readTimeoutMs = 3_000
const largestAnswerBytes = 4 * 1024 * 1024

export function createInstanceControl({ signer }: { signer: StatementSigner }) {
  const dispatcher = new Agent({
    maxResponseSize: largestAnswerBytes,
    keepAliveTimeout: 5_000,
    connect: { timeout: 2_000 },
  })

  async function ask<T>(
    target: ControlTarget,
    method: 'GET' | 'POST',
    path: string,
    shape: z.ZodType<T>,
    timeoutMs: number,
  ): Promise<T> {
    const { username, address } = target
    const statement = await signer.statement(target, 'control')
    try {
      const { statusCode, body } = await request(`${address}/control/${path}`, {
        method,
        dispatcher,
        headers: { authorization: `Bearer ${statement}` },
        signal: AbortSignal.timeout(timeoutMs),
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
      })
      const text = await body.text()
      if (statusCode !== 200) throw new Error(`the instance answered ${statusCode}: ${text.slice(0, 200)}`)
      return shape.parse(JSON.parse(text))
    } catch (error) {
      throw new AppError(
        'instance-unreachable',
        `The instance of "${username}" did not answer. Look at GET /v1/users/${username}/instance/logs, then try again.`,
        { cause: error },
      )
    }
  }

  return {
    exchange: (target: ControlTarget): Promise<ConnectionReport> =>
      ask(target, 'POST', 'connection/exchange', connectionReport, exchangeTimeoutMs),
    revoke: (target: ControlTarget): Promise<ConnectionReport> =>
      ask(target, 'POST', 'connection/revoke', connectionReport, revokeTimeoutMs),
    usage: (target: ControlTarget): Promise<UsageReport> => ask(target, 'GET', 'usage', usageReport, readTimeoutMs),
    sessions: (target: ControlTarget): Promise<SessionReport> =>
      ask(target, 'GET', 'sessions', sessionReport, readTimeoutMs),
    close: () => dispatcher.destroy(),
  }
}

/** Every instance that runs, with its user's name; during a move both of a user. */
export async function controlTargets({
  db,
  routes,
}: {
  db: Db
  routes: Pick<Routes, 'all'>
}): Promise<ControlTarget[]> {
  const table = routes.all()
  const names = await db.query<{ id: string; username: string }>('select id, username from users where id = any($1)', [
    table.map(({ userId }) => userId),
  ])
  const nameOf = new Map(names.map(row => [row.id, row.username]))
  return table.flatMap(route => {
    const name = nameOf.get(route.userId)
    return name === undefined
      ? []
      : [route, ...(route.draining ? [route.draining] : [])].map(({ address, generation }) => ({
          userId: route.userId,
          username: name,
          address,
          generation,
        }))
  })
}
