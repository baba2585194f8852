import { z } from 'zod'
import { cut } from '../../cut.ts'
import { text } from '../../sdp/json.ts'
import { all, atLeast, atMost, criteria, paging } from '../../sdp/list-info.ts'
import { untrusted } from '../clean-text.ts'
import { defineTool } from '../define.ts'
import { htmlToMarkdown, strangersLine } from '../markdown.ts'
import { limit, page } from '../params.ts'
import { plainValue, time } from '../request-view.ts'

const defaultRows = 10
const longestText = 600

export const listAnnouncements = defineTool({
  name: 'list_announcements',
  title: 'List announcements',
  toolset: 'announcements',
  description: 'Lists announcements, the newest first; by default those in force now.',
  input: {
    all: z.boolean().optional().describe('Also past and coming ones'),
    page,
    limit: limit.describe('Rows, default 10'),
  },
  effect: 'read',
  scopes: [],
  async run({ all: every = false, page: number = 1, limit: size = defaultRows }, call) {
    const zone = await call.zone()
    const now = call.context.now()
    const found = await call.records.list(call.sdp, 'announcement', {
      ...paging(number, size),
      sort_field: 'from_date',
      sort_order: 'desc',
      search_criteria: criteria(every ? undefined : all(atMost('from_date', now), atLeast('to_date', now))),
    })
    const announcements = found.rows.map(row => ({
      id: text(row.id),
      title: strangersLine(row.title),
      state: plainValue(row.state, zone),
      from: time(row.from_date, zone),
      to: time(row.to_date, zone),
      by: plainValue(row.created_by, zone),
      text: row.description ? untrusted(cut(htmlToMarkdown(String(row.description)), longestText)) : undefined,
    }))
    return {
      data: {
        announcements: announcements.length > 0 ? announcements : 'none',
        has_more: found.hasMore,
        next_page: found.hasMore ? number + 1 : undefined,
      },
      paged: { key: 'announcements', page: number, limit: size },
    }
  },
})
