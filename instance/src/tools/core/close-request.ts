import { z } from 'zod'
import { isSdpError, SdpError } from '../../sdp/errors.ts'
import { at, type Json } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { settled } from '../../sdp/settle.ts'
import { plain } from '../../sdp/similar.ts'
import { after, hasResolution, isClosed, setResolution, wantsResolutionFirst } from '../closing.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { textToHtml } from '../markdown.ts'
import { dryRun, optionName, requestId } from '../params.ts'
import { nameLine, number } from '../request-view.ts'

export const closeRequest = defineTool({
  name: 'close_request',
  title: 'Close a ticket',
  toolset: 'core',
  description:
    'Closes a ticket, with resolution when given, closure code and comments; checks that it is closed. When the site wants more fields it stays open and they are named. The site may mail the requester.',
  input: {
    request_id: requestId,
    closure_code: optionName.optional(),
    comments: z.string().max(250).optional().describe('Plain text'),
    resolution: z.string().max(60_000).optional().describe('Markdown'),
    acknowledged: z.boolean().optional().describe('Requester acknowledged the resolution'),
    dry_run: dryRun,
  },
  output: {
    number: z.string().optional(),
    id: z.string(),
    closed: z.boolean(),
    status: z.string().optional(),
    url: z.string(),
  },
  effect: 'write',
  idempotent: true,
  scopes: ['requests.UPDATE'],
  async run({ request_id, closure_code, comments, resolution, acknowledged, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const before = await call.requests.get(call.sdp, id)
    const head = { number: number(before), id, url: call.site.link('requests', id) }
    if (isClosed(before))
      return { data: { ...head, closed: true, status: nameLine(before.status), hint: 'It was closed before.' } }
    const code = closure_code ? await call.names.resolve(call.sdp, 'closure_code', closure_code) : undefined
    const info: Json = {
      ...(code ? { closure_code: { id: code.id } } : {}),
      ...(comments ? { closure_comments: comments.replace(/\s+/g, ' ').trim() } : {}),
      ...(acknowledged === undefined ? {} : { requester_ack_resolution: acknowledged }),
    }
    if (dry_run) {
      const known = hasResolution(before) || resolution !== undefined
      return {
        data: {
          ...head,
          closed: false,
          dry_run: true,
          nothing_sent: true,
          would_set: { closure_code: code?.name, comments, resolution, acknowledged },
          hint: known ? undefined : 'The ticket has no resolution; many sites refuse to close it so.',
        },
      }
    }
    if (!(resolution && (await closeByEdit(call, id, info, resolution)))) {
      if (resolution) await setResolution(call, id, resolution)
      await after(resolution && 'The resolution is set.', () =>
        settled<unknown>(
          () => close(call, id, info),
          async () => isClosed(await call.requests.get(call.sdp, id)) || undefined,
        ),
      )
    }
    const ticket = await after('The site took the closing.', () => call.requests.get(call.sdp, id))
    if (!isClosed(ticket)) throw notClosed(ticket)
    return {
      data: {
        ...head,
        closed: true,
        status_before: nameLine(before.status),
        status: nameLine(ticket.status),
        closure_code: nameLine(at(ticket, 'closure_info.closure_code')),
      },
    }
  },
})

/**
 * Resolution and closing in one edit, which sites take as well as the operation (docs/sdp-api.md 7.1).
 *
 * @returns false when it has to go step by step: the site has no status called Closed, wants the resolution to be there
 *   before, or takes the closing only as an operation. Then nothing was changed.
 */
async function closeByEdit(call: ToolCall, id: string, info: Json, resolution: string): Promise<boolean> {
  const { options } = await call.names.options(call.sdp, 'status')
  const closed = options.find(({ name }) => plain(name) === 'closed')
  if (!closed) return false
  try {
    await call.requests.update(call.sdp, id, {
      status: { id: closed.id },
      resolution: { content: textToHtml(resolution) },
      ...(Object.keys(info).length > 0 ? { closure_info: info } : {}),
    })
    return true
  } catch (error) {
    if (!isSdpError(error)) throw error
    if (wantsResolutionFirst(error)) return false
    if (error.kind === 'denied' && error.fields.some(field => stepwise.has(field))) return false
    if (error.kind !== 'warning-3000') throw error
    // a warning may have kept a part of the edit
    const isKept = hasResolution(await call.requests.get(call.sdp, id))
    return after(isKept ? 'The resolution is set.' : undefined, () => Promise.reject(stillOpen(error)))
  }
}

const stepwise = new Set(['status', 'closure_info'])

/** `_close`, else an edit to the closed status (docs/sdp-api.md 7.1). 3000 means that it stayed open (18.5). */
async function close(call: ToolCall, id: string, info: Json): Promise<void> {
  try {
    const body = Object.keys(info).length > 0 ? { request: { closure_info: info } } : undefined
    await call.sdp.operate(path`/requests/${id}`, 'close', body)
  } catch (error) {
    if (isSdpError(error, 'warning-3000')) throw stillOpen(error)
    if (!isSdpError(error, 'not-found')) throw error
    const closed = await call.names.resolve(call.sdp, 'status', 'Closed')
    const edit = { status: { id: closed.id }, ...(Object.keys(info).length > 0 ? { closure_info: info } : {}) }
    await call.requests.update(call.sdp, id, edit).catch(reason => {
      throw isSdpError(reason, 'warning-3000') ? stillOpen(reason) : reason
    })
  }
}

function stillOpen(error: SdpError): SdpError {
  const wanted = error.fields.length > 0 ? `; it wants: ${error.fields.join(', ')}` : ''
  return new SdpError('warning-3000', `Not closed: the site answered with a warning${wanted}.`, {
    ...error.details,
    nextStep: error.fields.includes('resolution')
      ? 'Ask the person what solved it and call close_request again with resolution.'
      : 'Set the named fields with update_request, then close again.',
  })
}

function notClosed(ticket: Json): SdpError {
  return new SdpError(
    'warning-3000',
    `Not closed: the site took the call, but the ticket is "${nameLine(ticket.status)}".`,
    {
      nextStep:
        'A rule of the site keeps it open: look at open tasks, approvals and mandatory fields with get_request.',
    },
  )
}
