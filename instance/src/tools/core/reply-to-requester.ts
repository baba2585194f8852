import { z } from 'zod'
import { cut } from '../../cut.ts'
import { isSdpError, SdpError } from '../../sdp/errors.ts'
import { at, instant, isObject, type Json, rows, text } from '../../sdp/json.ts'
import { child, path } from '../../sdp/path.ts'
import { linksIn } from '../../sdp/requests.ts'
import { alike, settled } from '../../sdp/settle.ts'
import { plainLine } from '../clean-text.ts'
import { consent } from '../consent.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine, textToHtml } from '../markdown.ts'
import { requestId } from '../params.ts'
import { number } from '../request-view.ts'
import { ToolError } from '../result.ts'

const address = z.string().regex(/^[^\s@<>,;]+@[^\s@<>,;]+$/, 'is not an e-mail address')

export const replyToRequester = defineTool({
  name: 'reply_to_requester',
  title: 'Mail the requester',
  toolset: 'core',
  description:
    'Sends an e-mail reply on a ticket. mode=preview (default) only shows it; mode=send mails real people after the person confirmed, and cannot be undone. Answers with the id of the mail; without one nothing was sent.',
  input: {
    request_id: requestId,
    text: z.string().min(1).max(60_000).describe('Markdown'),
    to: z.array(address).optional().describe('Default the requester'),
    cc: z.array(address).optional(),
    mode: z.enum(['preview', 'send']).optional(),
    confirm_token: z.string().optional().describe('From the preview'),
  },
  output: { sent: z.boolean().optional(), mail_id: z.string().optional(), url: z.string().optional() },
  effect: 'write',
  openWorld: true,
  scopes: ['requests.CREATE'],
  async run({ request_id, text: body, to, cc, mode = 'preview', confirm_token }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const agreed = await consent(call, {
      tool: 'reply_to_requester',
      subject: { id, to, cc, body },
      async prepare() {
        const [ticket] = await Promise.all([
          call.records.head(call.sdp, 'request', id, ['display_id', 'subject', 'requester']),
          refuseWhereNotOffered(call, id),
        ])
        const mail = compose(ticket, id, body, to, cc)
        return {
          plan: mail,
          preview: { to: mail.to, cc: mail.cc, subject: mail.subject, text: body },
          question: `Send this e-mail on ticket #${number(ticket)} to ${[...mail.to, ...mail.cc].join(', ')}?`,
        }
      },
      token: confirm_token,
      isPreviewOnly: mode === 'preview',
    })
    if ('answer' in agreed) return { data: { sent: false, ...agreed.answer.data } }
    const mail = agreed.plan
    const startedAt = call.context.now()
    const created = await settled(
      () => send(call, id, mail),
      () => sentSince(call, id, mail, startedAt),
    ).catch(error => {
      throw isSdpError(error, 'indeterminate')
        ? new SdpError(error.kind, error.message, { ...error.details, nextStep: lost })
        : error
    })
    const found = await readBack(call, id, created, startedAt)
    return {
      data: {
        sent: found !== undefined,
        mail_id: found?.id,
        to: mail.to,
        cc: mail.cc,
        subject: strangersLine(mail.subject),
        warning: found
          ? undefined
          : 'The site took the call, but no such mail is on the ticket yet. Do not say it was sent; look with get_request_activity.',
        url: call.site.link('requests', id),
      },
    }
  },
})

type Mail = { to: string[]; cc: string[]; subject: string; description: string; in_reply_to: { id: string } }

function compose(ticket: Json, id: string, body: string, to: string[] | undefined, cc: string[] = []): Mail {
  // cleaned before it is used, so that what the preview shows is where the mail goes
  const requester = strangersLine(at(ticket, 'requester.email_id'))
  const recipients = to && to.length > 0 ? to : requester ? [requester] : []
  if (recipients.length === 0) {
    throw new ToolError(
      'The requester of this ticket has no e-mail address.',
      'Give to, or use add_note with visibility=requester.',
      {
        fields: ['to'],
      },
    )
  }
  // mails thread by the number between the marks (docs/sdp-api.md 7.5)
  const key = text(at(ticket, 'display_key.display_value')) ?? number(ticket) ?? id
  return {
    to: recipients,
    cc,
    subject: cut(`Re: [Request ID :##${key}##] : ${plainLine(text(ticket.subject) ?? '')}`, 250),
    description: textToHtml(body),
    in_reply_to: { id },
  }
}

const offer = 'Nothing was sent. Offer add_note with visibility=requester instead, and say that it is not an e-mail.'

/** Asks the site whether this person may mail on this ticket; a site that does not tell is tried. */
async function refuseWhereNotOffered(call: ToolCall, id: string): Promise<void> {
  const parent = path`/requests/${id}/notifications`
  let body: Json
  try {
    const request = {
      method: 'GET',
      path: child(parent, '_links'),
      input: { operations_required: ['add'] },
      probe: true,
    } as const
    body = (await call.sdp.request(request)).body
  } catch (error) {
    if (isSdpError(error, 'not-found', 'missing-scope', 'denied', 'drift', 'invalid-value')) return
    throw error
  }
  const links = linksIn(body)
  if (links && !links.some(({ name }) => name === 'add')) {
    throw new ToolError('This site does not let you mail from this ticket.', offer)
  }
}

async function send(call: ToolCall, id: string, mail: Mail): Promise<Json> {
  const notification = { ...mail, bcc: [], is_public: true, type: 'REQREPLY' }
  try {
    return await call.sdp.post(path`/requests/${id}/notifications`, { notification })
  } catch (error) {
    if (!(error instanceof SdpError)) throw error
    const nextStep = error.kind === 'indeterminate' ? lost : `${offer} (Reason: ${error.message})`
    throw new SdpError(error.kind, replyFailed(error), { ...error.details, nextStep })
  }
}

const lost = 'The mail may have been sent. Look with get_request_activity; never send it again before.'

/** A mail of this very text on the ticket, sent by the desk since: the call whose answer was lost did send it. */
async function sentSince(call: ToolCall, id: string, mail: Mail, startedAt: number): Promise<Json | undefined> {
  for (const mailId of await repliesSince(call, id, startedAt)) {
    const found = await call.requests.mail(call.sdp, id, mailId)
    if (alike(found.description, mail.description)) return { notification: { ...found, id: mailId } }
  }
  return undefined
}

/** Newest first. */
async function repliesSince(call: ToolCall, id: string, startedAt: number): Promise<string[]> {
  const body = await call.sdp.get(path`/requests/${id}/conversations`, {
    list_info: { row_count: 5, start_index: 1, sort_field: 'created_time', sort_order: 'desc' },
  })
  return rows(body.conversations)
    .filter(row => /^REQREPLY$/i.test(text(row.type) ?? '') && (instant(row.created_time) ?? 0) >= startedAt - 60_000)
    .map(row => text(row.id))
    .filter(mailId => mailId !== undefined)
}

function replyFailed(error: SdpError): string {
  return error.kind === 'indeterminate'
    ? 'No answer came in time: the e-mail may have been sent or not.'
    : 'The e-mail was not sent: the site refused the reply call.'
}

/** The mail as the ticket shows it: only then it was sent. */
async function readBack(
  call: ToolCall,
  id: string,
  created: Json,
  startedAt: number,
): Promise<{ id: string } | undefined> {
  const known = text(at(created, 'notification.id'))
  try {
    if (known) {
      const body = await call.sdp.get(path`/requests/${id}/notifications/${known}`)
      return isObject(body.notification) ? { id: known } : undefined
    }
    const [mailId] = await repliesSince(call, id, startedAt)
    return mailId ? { id: mailId } : undefined
  } catch (error) {
    if (isSdpError(error, 'cancelled')) throw error
    return undefined
  }
}
