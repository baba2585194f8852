import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { instant, type Json } from '../../sdp/json.ts'
import { all, atLeast, atMost, type Condition, criteria, is, isEmpty, largestPage } from '../../sdp/list-info.ts'
import { personIs } from '../../sdp/people.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { optionName } from '../params.ts'
import { nameLine } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { today } from '../time.ts'

const scopes = ['mine', 'my_groups', 'unassigned', 'all'] as const
type Scope = (typeof scopes)[number]
/** Values beyond these are summed up as "other". */
const mostValues = 8
/** A queue of up to so many pages is counted from its rows: exact, and fewer calls than one for each number. */
const mostPages = 3

export const getQueueSummary = defineTool({
  name: 'get_queue_summary',
  title: 'Summarize the queue',
  toolset: 'core',
  description:
    'Counts open tickets by status, priority, overdue, due today and still without first response. Counts only, no rows; search_requests lists them.',
  input: {
    scope: z.enum(scopes).optional().describe('Default mine'),
    group: optionName.optional(),
  },
  output: { open: z.number(), by_status: z.looseObject({}).optional(), by_priority: z.looseObject({}).optional() },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ scope = 'mine', group }, call) {
    const base = all(
      is('status.in_progress', true),
      await scopeCondition(call, scope),
      await groupCondition(call, group),
    )
    const clock = { now: call.context.now(), zone: await call.zone() }
    const day = { now: clock.now, ...today(clock) }
    const rows = await openTickets(call, base)
    const counted = rows ? countRows(rows, scope, day) : await countBySite(call, base, scope, day)
    return { data: { scope, ...counted } }
  },
})

async function scopeCondition(call: ToolCall, scope: Scope): Promise<Condition | undefined> {
  switch (scope) {
    case 'all':
      return undefined
    case 'unassigned':
      return isEmpty('technician')
    case 'mine': {
      const { reference } = await call.people.resolve(call.sdp, 'me', 'technician', 'scope')
      return personIs('technician', reference)
    }
    case 'my_groups': {
      const groups = await call.people.myGroups(call.sdp)
      if (groups.length > 0) return is('group.id', ...groups)
      throw new ToolError('It is not known which groups you belong to.', 'Name one with group and scope=all.', {
        fields: ['scope'],
      })
    }
  }
}

async function groupCondition(call: ToolCall, group: string | undefined): Promise<Condition | undefined> {
  return group ? is('group.id', (await call.names.resolve(call.sdp, 'group', group)).id) : undefined
}

type Day = { now: number; start: number; end: number }

const countedFields = ['id', 'status', 'priority', 'technician', 'due_by_time', 'responded_time']

/**
 * The few fields that are counted, of every open ticket: one page, or two more at once.
 * @returns undefined for a queue that is longer, or where the site does not give these fields
 */
async function openTickets(call: ToolCall, base: Condition | undefined): Promise<Json[] | undefined> {
  const page = (number: number) =>
    call.requests.list(call.sdp, {
      row_count: largestPage,
      start_index: (number - 1) * largestPage + 1,
      sort_field: 'id',
      sort_order: 'asc',
      search_criteria: criteria(base),
      fields_required: countedFields,
      ...(number === 1 ? { get_total_count: true } : {}),
    })
  try {
    const first = await page(1)
    if (!first.hasMore) return first.rows
    const pages = Math.ceil((first.total ?? Number.POSITIVE_INFINITY) / largestPage)
    if (pages > mostPages) return undefined
    const others = await Promise.all(Array.from({ length: pages - 1 }, (_, index) => page(index + 2)))
    return others.at(-1)?.hasMore ? undefined : [first, ...others].flatMap(({ rows }) => rows)
  } catch (error) {
    if (isSdpError(error, 'invalid-value')) return undefined
    throw error
  }
}

function countRows(rows: Json[], scope: Scope, { now, start, end }: Day): Json {
  if (rows.length === 0) return { open: 0 }
  const due = rows.map(row => instant(row.due_by_time)).filter(at => at !== undefined)
  // a field that no row has is one the site does not give
  const tells = (field: string) => rows.some(row => field in row)
  const without = (field: string) => rows.filter(row => (row[field] ?? null) === null).length
  return {
    open: rows.length,
    overdue: due.filter(at => at <= now).length,
    due_today: due.filter(at => at >= start && at < end).length,
    without_first_response: tells('responded_time') ? without('responded_time') : undefined,
    unassigned: scope === 'mine' ? undefined : without('technician'),
    by_status: tally(rows.map(row => nameLine(row.status))),
    by_priority: tally(rows.map(row => nameLine(row.priority))),
  }
}

function tally(values: (string | undefined)[]): Json {
  const counts = new Map<string, number>()
  for (const value of values) if (value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1)
  const shown = [...counts].sort(([, a], [, b]) => b - a).slice(0, mostValues)
  const rest = values.length - shown.reduce((sum, [, count]) => sum + count, 0)
  return Object.fromEntries(rest > 0 ? [...shown, ['other or none', rest]] : shown)
}

/** A long queue: one count for each number, because the API counts one filter at a time. */
async function countBySite(call: ToolCall, base: Condition | undefined, scope: Scope, day: Day): Promise<Json> {
  const count = (condition?: Condition) => call.requests.count(call.sdp, all(base, condition))
  const open = await count()
  const [overdue, dueToday, unanswered, unassigned, byStatus, byPriority] = await Promise.all([
    count(atMost('due_by_time', day.now)),
    count(all(atLeast('due_by_time', day.start), atMost('due_by_time', day.end - 1))),
    // not every site can search for an empty time
    count(isEmpty('responded_time')).catch(error => {
      if (isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) return undefined
      throw error
    }),
    scope === 'unassigned' ? open : scope === 'mine' ? undefined : count(isEmpty('technician')),
    byValue(call, base, 'status', open),
    byValue(call, base, 'priority', open),
  ])
  return {
    open,
    overdue,
    due_today: dueToday,
    without_first_response: unanswered,
    unassigned,
    by_status: byStatus,
    by_priority: byPriority,
  }
}

async function byValue(call: ToolCall, base: Condition | undefined, field: string, total: number): Promise<Json> {
  const { options } = await call.names.options(call.sdp, field)
  const open = options.filter(({ note }) => note !== 'ends the work').slice(0, mostValues)
  const counts = await Promise.all(
    open.map(
      async ({ id, name }) => [name, await call.requests.count(call.sdp, all(base, is(`${field}.id`, id)))] as const,
    ),
  )
  const rest = total - counts.reduce((sum, [, number]) => sum + number, 0)
  const found = counts.filter(([, number]) => number > 0)
  return Object.fromEntries(rest > 0 ? [...found, ['other or none', rest]] : found)
}
