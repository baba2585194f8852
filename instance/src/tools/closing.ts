import { isSdpError, SdpError } from '../sdp/errors.ts'
import { at, flag, type Json, name, text } from '../sdp/json.ts'
import type { ToolCall } from './define.ts'
import { htmlToMarkdown, textToHtml } from './markdown.ts'

/** Writes the resolution by an edit, which is repeatable and known to work on Cloud (docs/sdp-api.md 7.1, 18.4). */
export async function setResolution(call: ToolCall, id: string, resolution: string): Promise<void> {
  await call.requests.update(call.sdp, id, { resolution: { content: textToHtml(resolution) } })
}

/** The site refused an edit that set the resolution together with the status, for want of a resolution. */
export function wantsResolutionFirst(error: SdpError): boolean {
  return isSdpError(error, 'warning-3000', 'mandatory') && error.fields.includes('resolution')
}

export function hasResolution(ticket: Json): boolean {
  return htmlToMarkdown(text(at(ticket, 'resolution.content')) ?? '') !== ''
}

/** Whether work on the ticket has ended, by the flag of its status (docs/sdp-api.md 5.1). */
export function isDone(ticket: Json): boolean {
  const inProgress = flag(at(ticket, 'status.in_progress'))
  return inProgress === undefined ? /^(closed|resolved|cancell?ed)$/i.test(name(ticket.status) ?? '') : !inProgress
}

export function isClosed(ticket: Json): boolean {
  const internal = text(at(ticket, 'status.internal_name'))
  return /^closed?$/i.test(internal ?? name(ticket.status) ?? '')
}

/** Says in front of a failure what an earlier step of the same tool already did. */
export async function after<T>(done: string | undefined, step: () => Promise<T>): Promise<T> {
  try {
    return await step()
  } catch (error) {
    if (done === undefined || !isSdpError(error)) throw error
    throw new SdpError(error.kind, `${done} But then: ${error.message}`, error.details)
  }
}
