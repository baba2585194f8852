import { z } from 'zod'
import { consent } from '../consent.ts'
import { defineTool } from '../define.ts'
import { dryRun } from '../params.ts'
import { apiPath, readableAnswer } from './api-path.ts'

export const sdpApiWrite = defineTool({
  name: 'sdp_api_write',
  title: 'Write to the API directly',
  toolset: 'advanced',
  // a raw write can do what the destructive tools do
  alsoNeeds: 'destructive',
  description:
    'Sends any write to an allowed path of the API v3, for what no other tool covers. Unchecked; may not be undoable. Asks the person first.',
  input: {
    method: z.enum(['POST', 'PUT', 'DELETE']),
    path: z.string().min(1).max(300),
    input_data: z.record(z.string(), z.unknown()).optional().describe('With the root key, such as {"request": {...}}'),
    confirm_token: z.string().optional().describe('From the preview'),
    dry_run: dryRun,
  },
  effect: 'destructive',
  openWorld: true,
  scopes: [],
  async run({ method, path, input_data, confirm_token, dry_run }, call) {
    const target = apiPath(path, true)
    const agreed = await consent(call, {
      tool: 'sdp_api_write',
      subject: { method, path: target.path, input_data: JSON.stringify(input_data) },
      prepare: async () => ({
        plan: undefined,
        preview: { method, path: target.path, input_data },
        question: `Send ${method} ${target.path} to ServiceDesk Plus?`,
      }),
      token: confirm_token,
      isPreviewOnly: dry_run === true,
    })
    if ('answer' in agreed) return agreed.answer
    const { body, messages } = await call.sdp.request({ method, path: target, input: input_data, repeatable: false })
    return { data: { done: true, messages, answer: readableAnswer(body) }, rest: 'read the record for the rest' }
  },
})
