import { Readable } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import { z } from 'zod'
import { type AuditEntry, auditCursor, exportAudit, listAudit } from '../audit.ts'
import type { Db } from '../db.ts'
import { AppError } from '../errors.ts'
import { username } from '../user-schemas.ts'
import type { App } from './server.ts'

const notAnInstant = 'must be a time such as 2026-01-31T00:00:00Z'
const instant = z.iso
  .datetime({ offset: true, error: notAnInstant })
  // what PostgreSQL takes: no year 0, and no offset of 16 hours or more
  .refine(text => text >= '1970' && !/[+-](1[6-9]|2\d):\d\d$/.test(text), notAnInstant)
const query = z.object({
  user: username.optional(),
  action: z
    .string()
    .regex(/^[a-z][a-z.-]{0,60}\*?$/, 'must be an action such as user.created, or its beginning such as connection.*')
    .optional(),
  from: instant.optional(),
  to: instant.optional(),
  limit: z.coerce
    .number('must be a number')
    .int()
    .min(1, 'must be at least 1')
    .max(1_000_000, 'must be at most 1000000')
    .optional(),
  cursor: z.string().regex(auditCursor, 'must be the nextCursor of the page before').optional(),
})
const entry = z.object({
  id: z.string(),
  at: z.string(),
  actor: z.string(),
  action: z.string(),
  username: z.string().nullable(),
  detail: z.record(z.string(), z.unknown()),
})

const pageLimit = { standard: 50, most: 1_000 }
const formats = ['application/json', 'application/x-ndjson', 'text/csv'] as const

export function auditRoutes(app: App, { db }: { db: Db }): void {
  app.get(
    '/v1/audit',
    {
      schema: {
        summary: 'Who did what',
        description:
          'Changes by admins, use of API keys (the first of each day), authorizations, and tool calls without their contents; newest first. With `Accept: application/x-ndjson` or `text/csv` everything that fits is streamed, oldest first.',
        tags: ['audit'],
        querystring: query,
        response: { 200: z.object({ events: z.array(entry), nextCursor: z.string().nullable() }) },
      },
    },
    async (request, reply) => {
      const { user, limit, cursor, ...rest } = request.query
      const filter = { username: user, ...rest }
      const format = wanted(request)
      if (format === 'application/json') {
        if (limit !== undefined && limit > pageLimit.most)
          throw new AppError('request-invalid', `A page has at most ${pageLimit.most} events. Go on with cursor.`, {
            invalid: [{ pointer: '#/query/limit', detail: `must be at most ${pageLimit.most}` }],
          })
        return listAudit(db, filter, { limit: limit ?? pageLimit.standard, cursor, order: 'newest' })
      }
      const pages = exportAudit(db, filter, { limit, cursor })
      // the first page before the status line: what fails at once is still told as a problem
      const first = await pages.next()
      const write = format === 'text/csv' ? toCsv : toLines
      const extension = format === 'text/csv' ? 'csv' : 'ndjson'
      reply
        .type(`${format}; charset=utf-8`)
        .header('content-disposition', `attachment; filename="audit.${extension}"`)
        .header('cache-control', 'no-store')
      return reply.send(
        Readable.from(
          (async function* () {
            if (format === 'text/csv') yield `${csvColumns.join(',')}\r\n`
            if (!first.done) yield write(first.value)
            for await (const page of pages) yield write(page)
          })(),
        ) as never,
      )
    },
  )
}

/** The first format of the Accept header that we have (RFC 9110 section 12.5.1, without weights). */
function wanted(request: FastifyRequest): (typeof formats)[number] {
  const asked = (request.headers.accept ?? '').split(',').map(part => part.split(';')[0]!.trim().toLowerCase())
  return formats.find(format => asked.includes(format) && format !== 'application/json') ?? 'application/json'
}

const toLines = (events: AuditEntry[]) => events.map(event => `${JSON.stringify(event)}\n`).join('')

const csvColumns = [
  ...['id', 'at', 'actor', 'action', 'username'],
  ...['tool', 'target', 'outcome', 'durationMs', 'requestId', 'detail'],
]

/** RFC 4180; what a tool call consists of has columns of its own. */
function toCsv(events: AuditEntry[]): string {
  return events
    .map(({ id, at, actor, action, username, detail }) => {
      const { tool, target, outcome, durationMs, requestId } = detail
      return [id, at, actor, action, username, tool, target, outcome, durationMs, requestId, JSON.stringify(detail)]
        .map(cell)
        .join(',')
        .concat('\r\n')
    })
    .join('')
}

function cell(value: unknown): string {
  if (value === null || value === undefined) return ''
  // a spreadsheet would run a text that begins like a formula
  const text = String(value).replace(/^[=+\-@\t\r]/, "'$&")
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
