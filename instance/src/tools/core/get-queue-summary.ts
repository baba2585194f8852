import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { at, type Json, rows, text } from '../../sdp/json.ts'
import { all, atLeast, atMost, type Condition, is, isEmpty } from '../../sdp/list-info.ts'
import { path } from '../../sdp/path.ts'
import { personIs } from '../../sdp/people.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { optionName } from '../params.ts'
import { ToolError } from '../result.ts'
import { today } from '../time.ts'

const scopes = ['mine', 'my_groups', 'unassigned', 'all'] as const
/** Values beyond these are summed up as "other". */
const mostValues = 8

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
    const open = await call.requests.count(call.sdp, base)
    if (open === 0) return { data: { scope, open } }
    const clock = { now: call.context.now(), zone: await call.zone() }
    const { start, end } = today(clock)
    const [overdue, dueToday, unanswered, unassigned, byStatus, byPriority] = await Promise.all([
      call.requests.count(call.sdp, all(base, atMost('due_by_time', clock.now))),
      call.requests.count(call.sdp, all(base, atLeast('due_by_time', start), atMost('due_by_time', end - 1))),
      // not every site can search for an empty time
      quiet(() => call.requests.count(call.sdp, all(base, isEmpty('responded_time')))),
      scope === 'unassigned'
        ? open
        : scope === 'mine'
          ? undefined
          : call.requests.count(call.sdp, all(base, isEmpty('technician'))),
      byValue(call, base, 'status', open),
      byValue(call, base, 'priority', open),
    ])
    return {
      data: {
        scope,
        open,
        overdue,
        due_today: dueToday,
        without_first_response: unanswered,
        unassigned,
        by_status: byStatus,
        by_priority: byPriority,
      },
    }
  },
})

async function scopeCondition(call: ToolCall, scope: (typeof scopes)[number]): Promise<Condition | undefined> {
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
      const groups = await myGroups(call)
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

/** From the technician's own record, else from the groups' lists of technicians (fact sheet 17.1, 17.2). */
async function myGroups(call: ToolCall): Promise<string[]> {
  const { id } = await call.people.me(call.sdp)
  if (!id) return []
  const own = await quiet(async () => {
    const request = { method: 'GET', path: path`/technicians/${id}`, probe: true } as const
    const { body } = await call.sdp.request(request)
    return rows(at(body, 'technician.groups')).map(row => text(row.id))
  })
  if (own?.length) return own.filter(group => group !== undefined)
  for (const list of [path`/support_groups`, path`/groups`]) {
    const found = await quiet(
      async () => (await call.sdp.list(list, { row_count: 100, start_index: 1 }, { probe: true })).rows,
    )
    const mine = found
      ?.filter(group => rows(group.technicians).some(one => text(one.id) === id))
      .map(group => text(group.id))
    if (mine?.length) return mine.filter(group => group !== undefined)
  }
  return []
}

async function quiet<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    if (isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) return undefined
    throw error
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
