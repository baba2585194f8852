import { z } from 'zod'
import { at, flag, type Json, text } from '../../sdp/json.ts'
import { all, any, contains, criteria, is, isNot } from '../../sdp/list-info.ts'
import { plain } from '../../sdp/similar.ts'
import { defineTool } from '../define.ts'
import { htmlToMarkdown, strangersLine } from '../markdown.ts'
import { requestId } from '../params.ts'
import { requestRow, rowFields } from '../request-view.ts'
import { ToolError } from '../result.ts'

const mostWords = 5
/** Words that tell nothing about a fault, in the languages a desk meets most. */
const empty = new Set(
  'the and for with from this that not have has can cannot could when after before please help need does doesn isn your what why how are was were will would into over under about issue problem error request ticket new all nicht und der die das mit von ist les des une est pas pour'.split(
    ' ',
  ),
)

export const findSimilarRequests = defineTool({
  name: 'find_similar_requests',
  title: 'Find similar tickets',
  toolset: 'requests_extra',
  description:
    'Finds tickets whose subjects share words with this one, most alike first, solved ones with the start of their resolution.',
  input: { request_id: requestId, solved: z.boolean().optional().describe('Only solved ones') },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ request_id, solved }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const [ticket, zone] = await Promise.all([call.requests.get(call.sdp, id), call.zone()])
    const words = tellingWords(text(ticket.subject) ?? '')
    if (words.length === 0)
      throw new ToolError('The subject has no telling words.', 'Use search_requests with words of your own.')
    const page = await call.requests.list(call.sdp, {
      row_count: 60,
      start_index: 1,
      sort_field: 'created_time',
      sort_order: 'desc',
      search_criteria: criteria(
        all(
          any(...words.map(word => contains('subject', word))),
          isNot('id', id),
          solved ? is('status.in_progress', false) : undefined,
        ),
      ),
      fields_required: [...rowFields, 'category', 'resolution'],
    })
    const category = text(at(ticket, 'category.id'))
    const ranked = page.rows
      .filter(row => text(row.id) !== id)
      .map(row => ({ row, score: likeness(row, words, category) }))
      .sort((a, b) => b.score - a.score)
      .slice(0, 10)
    return {
      data: {
        words,
        requests:
          ranked.length > 0
            ? ranked.map(({ row }) => ({ ...requestRow(row, zone), resolution: solution(row) }))
            : 'none',
      },
    }
  },
})

function tellingWords(subject: string): string[] {
  const words = plain(subject)
    .split(' ')
    .filter(word => word.length > 2 && !empty.has(word) && !/^\d+$/.test(word))
  // longer words are rarer
  return [...new Set(words)].sort((a, b) => b.length - a.length).slice(0, mostWords)
}

function likeness(row: Json, words: string[], category: string | undefined): number {
  const subject = plain(text(row.subject) ?? '')
  const shared = words.filter(word => subject.includes(word)).length / words.length
  const sameCategory = category !== undefined && text(at(row, 'category.id')) === category ? 0.3 : 0
  const isSolved = flag(at(row, 'status.in_progress')) === false ? 0.1 : 0
  return shared + sameCategory + isSolved
}

function solution(row: Json): string | undefined {
  const html = text(at(row, 'resolution.content'))
  return html ? strangersLine(htmlToMarkdown(html), 200) : undefined
}
