import { isSdpError } from '../../sdp/errors.ts'
import type { Json } from '../../sdp/json.ts'
import type { SdpPath } from '../../sdp/path.ts'
import { consent } from '../consent.ts'
import type { ToolCall } from '../define.ts'
import type { Outcome } from '../result.ts'

type Deletion = {
  tool: string
  path: SdpPath
  id: string
  preview: Json
  question: string
  token: string | undefined
  isPreviewOnly: boolean
  url?: string
}

/** Deletes one record after the person agreed, and looks whether it is gone. */
export async function deleteAfterConsent(call: ToolCall, deletion: Deletion): Promise<Outcome> {
  const { tool, path, id, preview, question, token, isPreviewOnly, url } = deletion
  const answer = await consent(call, { tool, subject: { path: path.path }, preview, question, token, isPreviewOnly })
  if (answer) return answer
  await call.sdp.remove(path)
  return { data: { done: await isGone(call, path), deleted: id, url } }
}

async function isGone(call: ToolCall, path: SdpPath): Promise<boolean> {
  try {
    await call.sdp.get(path)
    return false
  } catch (error) {
    if (isSdpError(error, 'not-found', 'denied')) return true
    throw error
  }
}
