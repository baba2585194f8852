import { z } from 'zod'
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
    const body = await call.sdp.get(apiPath(path, false), input_data)
    return { data: { answer: readableAnswer(body) }, rest: 'ask for fewer rows or fields_required' }
  },
})
