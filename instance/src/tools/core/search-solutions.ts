import { z } from 'zod'
import { type Json, text } from '../../sdp/json.ts'
import { all, any, contains, criteria, is, paging } from '../../sdp/list-info.ts'
import { defineTool } from '../define.ts'
import { htmlToMarkdown, strangersLine } from '../markdown.ts'
import { limit, optionName, page } from '../params.ts'
import { nameLine, time } from '../request-view.ts'

const defaultRows = 10
const rowFields = [
  ...['id', 'display_id', 'title', 'topic', 'keywords', 'approval_status'],
  ...['last_updated_time', 'created_time', 'description'],
]

export const searchSolutions = defineTool({
  name: 'search_solutions',
  title: 'Search the knowledge base',
  toolset: 'core',
  description:
    'Finds articles of the knowledge base by words in title, keywords or text, with a snippet. Read one with get_solution.',
  input: { text: z.string().min(1), topic: optionName.optional(), page, limit: limit.describe('Rows, default 10') },
  output: { solutions: z.array(z.looseObject({})), has_more: z.boolean(), next_page: z.number().optional() },
  effect: 'read',
  scopes: ['solutions.READ'],
  async run({ text: words, topic, page: number = 1, limit: size = defaultRows }, call) {
    const zone = await call.zone()
    const under = topic ? await call.names.resolve(call.sdp, 'topic', topic) : undefined
    const found = await call.records.list(call.sdp, 'solution', {
      ...paging(number, size),
      sort_field: 'id',
      sort_order: 'desc',
      fields_required: rowFields,
      search_criteria: criteria(
        all(
          any(contains('title', words), contains('keywords', words), contains('description', words)),
          under ? is('topic.id', under.id) : undefined,
        ),
      ),
    })
    return {
      data: {
        solutions: found.rows.map(row => ({
          ...solutionRow(row, zone),
          snippet: snippet(text(row.description), words),
        })),
        has_more: found.hasMore,
        next_page: found.hasMore ? number + 1 : undefined,
        hint: found.rows.length === 0 ? 'No article fits: try one word, or another.' : undefined,
      },
      rest: 'get_solution shows the whole of it',
      paged: { key: 'solutions', page: number, limit: size },
    }
  },
})

export function solutionRow(row: Json, zone: string): Json {
  return {
    id: text(row.id),
    number: text(row.display_id),
    title: strangersLine(row.title),
    topic: nameLine(row.topic),
    status: nameLine(row.approval_status),
    keywords: strangersLine(row.keywords),
    updated: time(row.last_updated_time, zone) ?? time(row.created_time, zone),
  }
}

/** About 200 characters around the first hit. */
function snippet(html: string | undefined, words: string): string | undefined {
  if (html === undefined) return undefined
  const plain = htmlToMarkdown(html).replace(/\s+/g, ' ')
  const hit = Math.max(0, plain.toLowerCase().indexOf(words.toLowerCase()) - 60)
  return strangersLine(`${hit > 0 ? '…' : ''}${plain.slice(hit, hit + 200)}`, 210)
}
