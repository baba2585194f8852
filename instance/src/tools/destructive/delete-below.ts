import { isSdpError } from '../../sdp/errors.ts'
import type { Json } from '../../sdp/json.ts'
import type { SdpPath } from '../../sdp/path.ts'
import { settled } from '../../sdp/settle.ts'
import { consent } from '../consent.ts'
import type { ToolCall } from '../define.ts'
import type { Outcome } from '../result.ts'

type Deletion = {
  tool: string
  /** what is deleted, as the input names it */
  subject: Json
  /** finds and reads it, once for preview and deletion */
  prepare: () => Promise<{ plan: { path: SdpPath; id: string }; preview: Json; question: string }>
  token: string | undefined
  isPreviewOnly: boolean
  url?: string
}

/** Deletes one record after the person agreed, and looks whether it is gone. */
export async function deleteAfterConsent(call: ToolCall, deletion: Deletion): Promise<Outcome> {
  const { url, ...request } = deletion
  const agreed = await consent(call, request)
  if ('answer' in agreed) return agreed.answer
  const { path, id } = agreed.plan
  // gone already when its answer was lost and it is not there any more
  const wasLost = await settled(
    async () => {
      await call.sdp.remove(path)
      return false
    },
    async () => ((await isGone(call, path)) ? true : undefined),
  )
  return { data: { done: wasLost || (await isGone(call, path)), deleted: id, url } }
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
