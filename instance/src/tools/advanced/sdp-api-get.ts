import { z } from 'zod'
import { at, text } from '../../sdp/json.ts'
import { defineTool } from '../define.ts'
import { apiPath, readableAnswer } from './api-path.ts'

export const sdpApiGet = defineTool({
  name: 'sdp_api_get',
  title: 'Read the API directly',
  toolset: 'advanced',
  description: 'Reads any allowed path of the ServiceDesk Plus API v3, for what no other tool covers. Reads only.',
  input: {
    path: z.string().min(1).max(300).describe('Such as /requests/123/checklists'),
    input_data: z.record(z.string(), z.unknown()).optional().describe('Such as {"list_info": {"row_count": 20}}'),
  },
  effect: 'read',
  scopes: [],
  async run({ path, input_data }, call) {
    const answer = readableAnswer(await call.sdp.get(apiPath(path, false), input_data))
    const start = Number(
      text(at(answer, 'list_info.start_index')) ?? text(at(input_data, 'list_info.start_index')) ?? 1,
    )
    return {
      data: { answer },
      rest: ({ kind, path: place, shown }) =>
        kind === 'rows' && /^answer\.\w+$/.test(place)
          ? `for the next ones ask with "start_index": ${start + shown} in list_info, and without page`
          : 'ask for single records or with fields_required, or use the tool for such records',
    }
  },
})
