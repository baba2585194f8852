import { cut } from '../cut.ts'
import type { Json } from '../sdp/json.ts'
import type { ToolCall } from './define.ts'
import { type Outcome, ToolError } from './result.ts'

export type ConsentRequest<Plan> = {
  tool: string
  /** what the consent is bound to: everything in the input that decides what happens */
  subject: Json
  token: string | undefined
  /** only show, never act */
  isPreviewOnly?: boolean
  /**
   * Reads what is needed to show and to carry out the call. Not called again when a token comes back: then the plan of
   * the preview is carried out, which is what the person agreed to.
   */
  prepare: () => Promise<Prepared<Plan>>
}

export type Prepared<Plan> = {
  /** what carrying out needs; small, it is kept for ten minutes */
  plan: Plan
  /** what the person gets to see */
  preview: Json
  /** one or two sentences with what will happen and to whom */
  question: string
}

/**
 * Gets the person's consent before something reaches other people or cannot be undone.
 *
 * Where the client can ask (elicitation) the person is asked. Where it cannot, the call ends in a preview with a
 * token, and only a second call with that token and the same input acts.
 *
 * @returns the plan when it may go on, else the preview to answer with
 * @throws ToolError when the person said no, or the token does not fit
 */
export async function consent<Plan>(
  call: ToolCall,
  request: ConsentRequest<Plan>,
): Promise<{ plan: Plan } | { answer: Outcome }> {
  const { tool, subject, token, isPreviewOnly, prepare } = request
  if (isPreviewOnly) return { answer: previewOf(call, request, await prepare()) }
  if (token !== undefined) {
    const known = call.confirmations.redeem(token, tool, subject)
    if (known) return { plan: known.plan as Plan }
    throw new ToolError(
      'The confirm_token does not fit: it is used up, older than ten minutes, or the input changed. Nothing was done.',
      'Call again without confirm_token for a new preview.',
      { fields: ['confirm_token'] },
    )
  }
  const prepared = await prepare()
  switch (await call.ask(`${prepared.question}\n\n${summary(prepared.preview)}`)) {
    case 'yes':
      return { plan: prepared.plan }
    case 'no':
      throw new ToolError('The person said no. Nothing was done.', 'Do not ask again; find out what they want instead.')
    case 'unsupported':
      return { answer: previewOf(call, request, prepared) }
  }
}

function previewOf<Plan>(call: ToolCall, request: ConsentRequest<Plan>, prepared: Prepared<Plan>): Outcome {
  const { tool, subject } = request
  return {
    data: {
      done: false,
      preview: prepared.preview,
      question: prepared.question,
      confirm_token: call.confirmations.issue(tool, subject, prepared.plan),
      next: 'Nothing was done. Show this to the person; only when they agree, call again with the same input and this confirm_token.',
    },
  }
}

function summary(preview: Json): string {
  const lines = Object.entries(preview)
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([key, value]) => `${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`)
  return cut(lines.join('\n').toWellFormed(), 2_000)
}
