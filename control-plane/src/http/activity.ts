import { z } from 'zod'
import type { Db } from '../db.ts'
import { AppError } from '../errors.ts'
import { controlTargets, type InstanceControl } from '../instance-control.ts'
import type { Metrics } from '../metrics.ts'
import type { Routes } from '../proxy/routes.ts'
import type { Usage } from '../usage.ts'
import { username } from '../user-schemas.ts'
import type { App } from './server.ts'

const session = z.object({
  username: z.string(),
  transport: z.enum(['sse', 'streamable']),
  client: z.object({ name: z.string(), version: z.string() }).nullable(),
  since: z.string(),
  lastActivityAt: z.string(),
  calls: z.number().int(),
  callsInFlight: z.number().int(),
  openStreams: z.number().int(),
  bytesIn: z.number().int(),
  bytesOut: z.number().int(),
})
const usageRow = z.object({
  username: z.string(),
  day: z.string(),
  tool: z.string(),
  calls: z.number().int(),
  errors: z.number().int(),
  meanMs: z.number().int(),
  maxMs: z.number().int(),
  p50Ms: z.number().int(),
  p95Ms: z.number().int(),
  p99Ms: z.number().int(),
})
const notADay = 'must be a day such as 2026-01-31'
// PostgreSQL knows no year 0
const day = z.iso.date(notADay).refine(text => text >= '1970', notADay)
const place = z.tuple([day, username, z.string().regex(/^[a-z0-9_]{1,100}$/)])
const dayMs = 24 * 60 * 60 * 1000
const concurrentQuestions = 16

export type ActivityRoutes = {
  db: Db
  routes: Routes
  control: InstanceControl
  usage: Usage
  metrics: Metrics
  now: () => number
}

/** Who is connected, what was used, and metrics. */
export function activityRoutes(app: App, parts: ActivityRoutes): void {
  const { control, usage, metrics, now } = parts

  app.get(
    '/v1/sessions',
    {
      schema: {
        summary: 'Open MCP sessions',
        description:
          'Asked of the instances at this moment. `unanswered` lists users whose instance did not answer in time.',
        tags: ['activity'],
        querystring: z.object({ username: username.optional() }),
        response: { 200: z.object({ sessions: z.array(session), unanswered: z.array(z.string()) }) },
      },
    },
    async request => {
      const targets = (await controlTargets(parts)).filter(
        target => request.query.username === undefined || target.username === request.query.username,
      )
      const sessions: z.infer<typeof session>[] = []
      const unanswered = new Set<string>()
      const waiting = targets.values()
      const lane = async () => {
        for (const target of waiting)
          try {
            for (const { id: _, startedAt, inFlight, ...one } of (await control.sessions(target)).sessions)
              sessions.push({ username: target.username, since: startedAt, callsInFlight: inFlight, ...one })
          } catch {
            unanswered.add(target.username)
          }
      }
      await Promise.all(Array.from({ length: concurrentQuestions }, lane))
      sessions.sort((a, b) => a.username.localeCompare(b.username) || a.since.localeCompare(b.since))
      return { sessions, unanswered: [...unanswered].sort() }
    },
  )

  app.get(
    '/v1/usage',
    {
      schema: {
        summary: 'Tool calls by user, day and tool',
        description: 'Days are UTC. Without `from` and `to` the last seven days; at most 400 days are kept.',
        tags: ['activity'],
        querystring: z.object({
          from: day.optional(),
          to: day.optional(),
          username: username.optional(),
          limit: z.coerce.number('must be a number').int().min(1).max(5_000, 'must be at most 5000').default(500),
          cursor: z.string().max(300).optional(),
        }),
        response: { 200: z.object({ usage: z.array(usageRow), nextCursor: z.string().nullable() }) },
      },
    },
    async request => {
      const { from, to, cursor, limit, username: name } = request.query
      const dayOf = (ms: number) => new Date(ms).toISOString().slice(0, 10)
      const { rows, more } = await usage.list({
        from: from ?? dayOf(now() - 6 * dayMs),
        to: to ?? dayOf(now()),
        username: name,
        limit,
        after: cursor === undefined ? undefined : placeOf(cursor),
      })
      const last = rows.at(-1)
      const nextCursor =
        more && last ? Buffer.from(`${last.day} ${last.username} ${last.tool}`).toString('base64url') : null
      return { usage: rows, nextCursor }
    },
  )

  app.get('/metrics', { schema: { hide: true } as never, config: { quiet: true } as never }, async (_request, reply) =>
    reply.type(metrics.contentType).send(await metrics.text()),
  )
}

/** @throws AppError `request-invalid` */
function placeOf(cursor: string): { day: string; username: string; tool: string } {
  const { data } = place.safeParse(Buffer.from(cursor, 'base64url').toString().split(' '))
  if (!data)
    throw new AppError('request-invalid', 'The cursor is none of ours. Begin again without it.', {
      invalid: [{ pointer: '#/query/cursor', detail: 'must be the nextCursor of the page before' }],
    })
  const [day, username, tool] = data
  return { day, username, tool }
}
