import { z } from 'zod'
import { cut } from '../../cut.ts'
import { isSdpError, SdpError } from '../../sdp/errors.ts'
import type { Json } from '../../sdp/json.ts'
import type { Reference } from '../../sdp/names.ts'
import { path } from '../../sdp/path.ts'
import { plain } from '../../sdp/similar.ts'
import { after, hasResolution, isDone, setResolution, wantsResolutionFirst } from '../closing.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { textToHtml } from '../markdown.ts'
import { dryRun, optionName, requestId } from '../params.ts'
import { nameLine, number } from '../request-view.ts'
import { ToolError } from '../result.ts'
import { addWorklog, planWorklog } from '../worklog.ts'

export const resolveRequest = defineTool({
  name: 'resolve_request',
  title: 'Resolve a ticket',
  toolset: 'core',
  description:
    'Writes the resolution, sets the status to resolved and can log time in the same step; checks that it took. The site may mail the requester.',
  input: {
    request_id: requestId,
    resolution: z.string().min(1).max(60_000).describe('Markdown; the requester may read it'),
    status: optionName.optional().describe('Default the resolved status'),
    log_minutes: z.int().min(1).max(1_440).optional().describe('Also log time for you'),
    dry_run: dryRun,
  },
  output: { number: z.string().optional(), id: z.string(), status: z.string().optional(), url: z.string() },
  effect: 'write',
  scopes: ['requests.UPDATE'],
  async run({ request_id, resolution, status, log_minutes, dry_run }, call) {
    const id = await call.requests.id(call.sdp, request_id)
    const [before, target] = await Promise.all([call.requests.get(call.sdp, id), resolvedStatus(call, status)])
    const planned = log_minutes
      ? await planWorklog(call, { minutes: log_minutes, description: cut(resolution.split('\n')[0] ?? '', 200) })
      : undefined
    const head = { number: number(before), id, url: call.site.link('requests', id) }
    if (dry_run) {
      return {
        data: {
          ...head,
          dry_run: true,
          nothing_sent: true,
          status_before: nameLine(before.status),
          status: target.name,
          resolution,
          log_minutes,
        },
      }
    }
    const ticket = await resolve(call, id, resolution, target, planned !== undefined)
    refuseUnlessTaken(ticket, target)
    const worklog =
      planned &&
      (await after(`Ticket #${head.number} is ${target.name}.`, () => addWorklog(call, path`/requests/${id}`, planned)))
    return {
      data: {
        ...head,
        done: true,
        status_before: nameLine(before.status),
        status: nameLine(ticket.status),
        resolution_set: hasResolution(ticket),
        time_logged: worklog,
      },
    }
  },
})

/**
 * Resolution and status in one edit (docs/sdp-api.md 7.1); one after the other where the site wants the resolution to be
 * there before. @returns the ticket after it
 *
 * @param isBusy - more is to be written: the site's own answer to the edit is proof enough
 */
async function resolve(
  call: ToolCall,
  id: string,
  resolution: string,
  target: Reference,
  isBusy: boolean,
): Promise<Json> {
  const status = { id: target.id }
  try {
    const edit = { resolution: { content: textToHtml(resolution) }, status }
    if (isBusy) return await call.requests.change(call.sdp, id, edit)
    await call.requests.update(call.sdp, id, edit)
  } catch (error) {
    if (!isSdpError(error) || !wantsResolutionFirst(error)) throw error
    await setResolution(call, id, resolution)
    await after('The resolution is set.', () => call.requests.update(call.sdp, id, { status }))
  }
  return after('The site took resolution and status.', () => call.requests.get(call.sdp, id))
}

/** The status asked for; else the one called Resolved; else the only other one that ends the work without closing. */
async function resolvedStatus(call: ToolCall, asked: string | undefined): Promise<Reference> {
  if (asked) return call.names.resolve(call.sdp, 'status', asked)
  const { options } = await call.names.options(call.sdp, 'status')
  const ending = options.filter(
    ({ note, name }) => note === 'ends the work' && !/^(closed|cancell?ed)$/i.test(plain(name)),
  )
  const found = options.find(({ name }) => plain(name) === 'resolved') ?? (ending.length === 1 ? ending[0] : undefined)
  if (found) return { id: found.id, name: found.name }
  throw new ToolError('This site has no status called Resolved.', 'Name the status to set.', {
    fields: ['status'],
    allowed: (ending.length > 0 ? ending : options).map(({ name }) => name),
  })
}

function refuseUnlessTaken(ticket: Json, target: Reference): void {
  const actual = nameLine(ticket.status)
  if (plain(actual ?? '') === plain(target.name) || isDone(ticket)) return
  throw new SdpError('warning-3000', `The resolution is set, but the ticket is "${actual}", not "${target.name}".`, {
    nextStep:
      'A rule of the site decided otherwise. Read the ticket with include=["allowed_actions"] and tell the person.',
  })
}
