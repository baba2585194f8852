import { z } from 'zod'
import { flag } from '../../sdp/json.ts'
import { defineTool } from '../define.ts'
import { strangersHtml } from '../markdown.ts'
import { nameLine, time } from '../request-view.ts'
import { attachments } from '../rows.ts'
import { solutionRow } from './search-solutions.ts'

export const getSolution = defineTool({
  name: 'get_solution',
  title: 'Read an article',
  toolset: 'core',
  description: 'Reads one article of the knowledge base as Markdown. Long articles come in parts.',
  input: {
    solution_id: z.string().min(1).describe('Id or number'),
    part: z.int().min(1).optional().describe('Default 1'),
  },
  output: { title: z.string().optional(), text: z.string().optional(), url: z.string() },
  effect: 'read',
  scopes: ['solutions.READ'],
  async run({ solution_id, part }, call) {
    const id = await call.records.id(call.sdp, 'solution', solution_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'solution', id), call.zone()])
    return {
      data: {
        ...solutionRow(raw, zone),
        public: flag(raw.is_public),
        author: nameLine(raw.created_by),
        review: time(raw.review_date, zone),
        expires: time(raw.expiry_date, zone),
        text: strangersHtml(raw.description),
        attachments: attachments(raw),
        url: call.site.link('solutions', id),
      },
      budget: 'large',
      inParts: { tool: 'get_solution', part },
    }
  },
})
