import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { at, flag, instant, isObject, type Json, rows, text } from '../../sdp/json.ts'
import { child, path } from '../../sdp/path.ts'
import { untrusted } from '../clean-text.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { htmlToMarkdown, strangersLine } from '../markdown.ts'
import { date, limit, page, requestId } from '../params.ts'
import { nameLine, plainValue } from '../request-view.ts'
import { formatInstant, parseInstant } from '../time.ts'

const kinds = ['conversation', 'notes', 'history'] as const
const defaultKinds: (typeof kinds)[number][] = ['conversation', 'notes']
const defaultEntries = 10

export const getRequestActivity = defineTool({
  name: 'get_request_activity',
  title: 'Read what happened on a ticket',
  toolset: 'core',
  description:
    'Mails, notes and history of a ticket in one timeline, newest first, each with author and whether the requester sees it. Quoted mail is trimmed.',
  input: {
    request_id: requestId,
    kinds: z.array(z.enum(kinds)).optional().describe('Default conversation and notes'),
    since: date.optional(),
    page,
    limit: limit.describe('Entries, default 10'),
    part: z.int().min(1).optional().describe('Next part of a long answer'),
  },
  output: { entries: z.array(z.looseObject({})), more: z.string().optional() },
  effect: 'read',
  scopes: ['requests.READ'],
  async run(
    { request_id, kinds: wanted = defaultKinds, since, page: number = 1, limit: size = defaultEntries, part },
    call,
  ) {
    const id = await call.requests.id(call.sdp, request_id)
    const zone = await call.zone()
    const from = since === undefined ? undefined : parseInstant(since, { now: call.context.now(), zone })
    const found = await Promise.all(wanted.map(kind => read(kind, call, id, zone)))
    const all = found
      .flatMap(part => part.entries)
      .filter(entry => from === undefined || entry.at >= from)
      .sort((a, b) => b.at - a.at)
    const older = Math.max(0, all.length - number * size)
    const shown = all.slice((number - 1) * size, number * size)
    // bodies are read only of what is shown: each mail is a call of its own
    const entries = await Promise.all(
      shown.map(async ({ at, show }) => ({ at: at > 0 ? formatInstant(at, zone) : undefined, ...(await show()) })),
    )
    const missing = found.map(({ problem }) => problem).filter(problem => problem !== undefined)
    return {
      data: {
        id,
        entries,
        more: older > 0 ? `${older} older entries: page=${number + 1} with the same limit` : undefined,
        not_available: missing,
        url: call.site.link('requests', id),
      },
      inParts: { tool: 'get_request_activity', part },
    }
  },
})

type Entry = { at: number; show: () => Promise<Json> }
type Part = { entries: Entry[]; problem?: string }

async function read(kind: (typeof kinds)[number], call: ToolCall, id: string, zone: string): Promise<Part> {
  try {
    switch (kind) {
      case 'conversation':
        return { entries: await conversation(call, id) }
      case 'notes':
        return { entries: await notes(call, id) }
      case 'history':
        return { entries: await history(call, id, zone) }
    }
  } catch (error) {
    if (!isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) throw error
    return { entries: [], problem: `${kind}: ${error.message}` }
  }
}

/** docs/sdp-api.md 7.5: the list has no bodies, each mail is read by its id. */
async function conversation(call: ToolCall, id: string): Promise<Entry[]> {
  const page = await call.sdp.list(path`/requests/${id}/conversations`, {
    row_count: 100,
    start_index: 1,
    sort_field: 'created_time',
    sort_order: 'desc',
  })
  return page.rows
    .filter(row => !/^notes$/i.test(text(row.type) ?? ''))
    .map(row => ({ at: instant(row.created_time) ?? 0, show: () => mail(call, id, row) }))
}

const mailKinds: Record<string, string> = {
  REQREPLY: 'reply',
  REQFORWARD: 'forward',
  ApprovalComments: 'approval comment',
}

async function mail(call: ToolCall, id: string, row: Json): Promise<Json> {
  const type = text(row.type) ?? ''
  const isFromDesk = flag(at(row, 'created_by.is_technician'))
  const head = {
    kind:
      (Object.hasOwn(mailKinds, type) ? mailKinds[type] : undefined) ??
      (isFromDesk === false ? 'mail from requester' : type.toLowerCase() || 'mail'),
    id: text(row.id),
    author: nameLine(row.created_by) ?? 'system',
  }
  const own = text(row.description) ?? text(row.content)
  const body = own === undefined ? await mailBody(call, id, text(row.id) ?? '') : { description: own }
  return {
    ...head,
    to: addresses(body.to),
    cc: addresses(body.cc),
    public: flag(body.is_public) ?? true,
    subject: strangersLine(body.subject),
    text: trimmed(text(body.description)),
  }
}

async function mailBody(call: ToolCall, id: string, mailId: string): Promise<Json> {
  try {
    return await call.requests.mail(call.sdp, id, mailId)
  } catch (error) {
    if (isSdpError(error, 'not-found', 'denied', 'missing-scope', 'invalid-value')) return {}
    throw error
  }
}

function addresses(value: unknown): string[] | undefined {
  if (!Array.isArray(value)) return text(value) === undefined ? undefined : [strangersLine(String(value)) ?? '']
  return value.map(one => strangersLine(isObject(one) ? text(one.email_id) : text(one)) ?? '').filter(one => one !== '')
}

async function notes(call: ToolCall, id: string): Promise<Entry[]> {
  const found = await call.requests.notes(call.sdp, id)
  return found.map(row => ({
    at: instant(row.created_time) ?? instant(row.added_time) ?? 0,
    show: async () => {
      // list rows may lack the text (docs/sdp-api.md 7.3)
      const whole =
        text(row.description) === undefined ? { ...row, ...(await noteBody(call, id, text(row.id) ?? '')) } : row
      return {
        kind: 'note',
        id: text(row.id),
        author: nameLine(whole.created_by) ?? nameLine(whole.added_by),
        public: flag(whole.show_to_requester) ?? false,
        text: trimmed(text(whole.description)),
      }
    },
  }))
}

async function noteBody(call: ToolCall, id: string, noteId: string): Promise<Json> {
  try {
    return await call.requests.note(call.sdp, id, noteId)
  } catch (error) {
    if (isSdpError(error, 'not-found', 'denied', 'missing-scope', 'drift')) return {}
    throw error
  }
}

/** Known on premises as `history` (docs/sdp-api.md 7.1); on Cloud under either name, if at all. */
async function history(call: ToolCall, id: string, zone: string): Promise<Entry[]> {
  const parent = path`/requests/${id}`
  const list = async (segment: string) => (await call.sdp.list(child(parent, segment), undefined, { probe: true })).rows
  const found = await list('_history').catch(error => {
    if (isSdpError(error, 'not-found', 'missing-scope', 'invalid-value')) return list('history')
    throw error
  })
  return found.map(row => ({
    at: instant(row.time) ?? instant(row.created_time) ?? 0,
    show: async () => ({
      kind: 'history',
      author: nameLine(row.by),
      action: strangersLine(text(row.operation) ?? text(row.description)),
      changes: rows(row.diff).map(
        part => `${nameLine(part.field)}: ${show(part.previous_value, zone)} -> ${show(part.current_value, zone)}`,
      ),
    }),
  }))
}

function show(value: unknown, zone: string): string {
  const shown = plainValue(value, zone)
  if (shown === undefined || shown === null || shown === '') return 'empty'
  return strangersLine(typeof shown === 'object' ? JSON.stringify(shown) : String(shown), 100) ?? 'empty'
}

const quoteStarts = [
  /^-{2,}\s*(original message|forwarded message|urspr\u00fcngliche nachricht|message d'origine)/i,
  /^on .{5,120} wrote:$/i,
  /^am .{5,120} schrieb.{0,80}:$/i,
  /^le .{5,120} a \u00e9crit\s?:$/i,
  /^_{10,}$/,
  /^\**(from|von|de):\**\s.{2,200}$/i,
]

/** The new part of a mail: everything from the first sign of quoted mail on is left out, and said so. */
export function trimmed(html: string | undefined): string | undefined {
  if (html === undefined) return undefined
  const lines = htmlToMarkdown(html).split('\n')
  const start = lines.findIndex((line, index) => index > 0 && quoteStarts.some(pattern => pattern.test(line.trim())))
  const own = (start > 0 ? lines.slice(0, start) : lines).filter(line => !/^\s*>/.test(line))
  const body = own
    .join('\n')
    .replace(/\n{3,}/g, '\n\n')
    .trim()
  const isCut = own.length < lines.length
  return untrusted(`${body}${isCut ? '\n[quoted mail left out]' : ''}`) || undefined
}
