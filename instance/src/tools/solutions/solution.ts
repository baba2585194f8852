import type { Json } from '../../sdp/json.ts'
import { solutionRow } from '../core/search-solutions.ts'
import type { ToolCall } from '../define.ts'
import { fieldSet, flag, line, markdown, moment, option } from '../field-set.ts'

/** docs/sdp-api.md 12. */
export const solutionFields = fieldSet('solution', {
  title: line(),
  text: markdown('description'),
  topic: option('topic'),
  keywords: line({ longest: 500, about: 'Comma separated' }),
  public: flag('is_public'),
  review_on: moment('review_date'),
  expires_on: moment('expiry_date', 'end'),
})

export function showSolution(call: ToolCall): (raw: Json, zone: string) => Json {
  return (raw, zone) => ({ ...solutionRow(raw, zone), url: call.site.link('solutions', String(raw.id)) })
}
