import type { Json } from '../sdp/json.ts'
import type { ToolCall } from './define.ts'
import { type Outcome, ToolError } from './result.ts'

export type ConsentRequest = {
  tool: string
  /** what the consent is bound to: everything that decides what happens */
  subject: Json
  /** what the person gets to see */
  preview: Json
  /** one or two sentences with what will happen and to whom */
  question: string
  token: string | undefined
  /** only show, never act */
  isPreviewOnly?: boolean
}

/**
 * Gets the person's consent before something reaches other people or cannot be undone.
 *
 * Where the client can ask (elicitation) the person is asked. Where it cannot, the call ends in a preview with a
 * token, and only a second call with that token and the same input acts.
 *
 * @returns undefined when it may go on, else the preview to answer with
 * @throws ToolError when the person said no, or the token does not fit
 */
export async function consent(call: ToolCall, request: ConsentRequest): Promise<Outcome | undefined> {
  const { tool, subject, preview, question, token } = request
  if (request.isPreviewOnly) return previewOf(call, request)
  if (token !== undefined) {
    if (call.confirmations.redeem(token, tool, subject)) return undefined
    throw new ToolError(
      'The confirm_token does not fit: it is used up, older than ten minutes, or the input changed. Nothing was done.',
      'Call again without confirm_token for a new preview.',
      { fields: ['confirm_token'] },
    )
  }
  switch (await call.ask(`${question}\n\n${summary(preview)}`)) {
    case 'yes':
      return undefined
    case 'no':
      throw new ToolError('The person said no. Nothing was done.', 'Do not ask again; find out what they want instead.')
    case 'unsupported':
      return previewOf(call, request)
  }
}

function previewOf(call: ToolCall, { tool, subject, preview, question }: ConsentRequest): Outcome {
  return {
    data: {
      done: false,
      preview,
      question,
      confirm_token: call.confirmations.issue(tool, subject),
      next: 'Nothing was done. Show this to the person; only when they agree, call again with the same input and this confirm_token.',
    },
  }
}

function summary(preview: Json): string {
  const lines = Object.entries(preview)
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([key, value]) => `${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`)
  return lines.join('\n').slice(0, 2_000)
}
