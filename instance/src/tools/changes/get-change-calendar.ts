import { text } from '../../sdp/json.ts'
import { all, atLeast, atMost, criteria, isNot, largestPage } from '../../sdp/list-info.ts'
import { defineTool } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { date } from '../params.ts'
import { namedAny, namesInput } from '../record-search.ts'
import { nameLine, time } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { formatInstant, parseInstant } from '../time.ts'

const longestMs = 93 * 24 * 3_600_000

export const getChangeCalendar = defineTool({
  name: 'get_change_calendar',
  title: 'Read the change calendar',
  toolset: 'changes',
  description: 'Lists the changes whose window touches a period, by start, and which of them overlap.',
  input: {
    from: date.optional().describe('Default today'),
    to: date.optional().describe('Default +14d'),
    group: namesInput,
  },
  effect: 'read',
  scopes: ['changes.READ'],
  async run({ from = 'today', to = '+14d', group }, call) {
    const zone = await call.zone()
    const clock = { now: call.context.now(), zone }
    const [start, end] = [parseInstant(from, clock, 'start'), parseInstant(to, clock, 'end')]
    if (end <= start || end - start > longestMs) {
      throw new ToolError(
        'The period is empty or longer than three months.',
        'Give from and to at most 93 days apart.',
        { fields: ['from', 'to'] },
      )
    }
    const page = await call.records.list(call.sdp, 'change', {
      row_count: largestPage,
      start_index: 1,
      sort_field: 'scheduled_start_time',
      sort_order: 'asc',
      // a window touches the period when it starts before its end and ends after its start
      search_criteria: criteria(
        all(
          atMost('scheduled_start_time', end),
          atLeast('scheduled_end_time', start),
          isNot('status.name', 'Canceled', 'Cancelled', 'Rejected'),
          await namedAny(call, 'group', group),
        ),
      ),
    })
    const changes = page.rows.map(row => ({
      number: text(row.display_id),
      id: text(row.id),
      title: strangersLine(row.title),
      stage: nameLine(row.stage),
      status: nameLine(row.status),
      owner: nameLine(row.change_owner),
      risk: nameLine(row.risk),
      start: time(row.scheduled_start_time, zone),
      end: time(row.scheduled_end_time, zone),
    }))
    return {
      data: {
        from: formatInstant(start, zone),
        to: formatInstant(end, zone),
        changes: changes.length > 0 ? changes : 'none',
        overlaps: overlaps(changes),
        more: page.hasMore || undefined,
      },
      rest: 'ask for a shorter period',
    }
  },
})

type Window = { number?: string; start?: string; end?: string }

/** Pairs of changes that run at the same time, as "12 and 15". */
function overlaps(changes: Window[]): string[] | undefined {
  const timed = changes.filter(({ start, end }) => start && end)
  const at = (value: string | undefined) => Date.parse(value ?? '')
  const found = timed.flatMap((one, index) =>
    timed
      .slice(index + 1)
      .filter(other => at(other.start) < at(one.end) && at(one.start) < at(other.end))
      .map(other => `${one.number} and ${other.number}`),
  )
  return found.length > 0 ? found.slice(0, 30) : undefined
}
