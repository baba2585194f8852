import { z } from 'zod'
import { at, flag, type Json, text } from '../../sdp/json.ts'
import { all, atLeast, criteria, is } from '../../sdp/list-info.ts'
import { personIs } from '../../sdp/people.ts'
import { plain } from '../../sdp/similar.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { diff } from '../diff.ts'
import { dryRun, optionName } from '../params.ts'
import { type RequestFieldInput, requestFieldInputs, resolveFields } from '../request-fields.ts'
import { requestRow, rowFields } from '../request-view.ts'
import { ToolError } from '../result.ts'

const lookBackMs = 14 * 24 * 3_600_000

export const createRequest = defineTool({
  name: 'create_request',
  title: 'Create a ticket',
  toolset: 'core',
  description:
    'Creates a ticket, for you when no requester is given. Missing mandatory fields are listed and nothing is created; an open ticket of the same requester with the same subject stops it unless allow_duplicate. The site may mail the requester.',
  input: {
    ...requestFieldInputs,
    subject: z.string().min(1).max(250),
    template: optionName.optional(),
    assets: z.array(z.string()).optional().describe('Names of assets'),
    allow_duplicate: z.boolean().optional(),
    dry_run: dryRun,
  },
  output: {
    number: z.string().optional(),
    id: z.string().optional(),
    url: z.string().optional(),
    changes: z.array(z.looseObject({})).optional(),
  },
  effect: 'write',
  scopes: ['requests.CREATE'],
  async run(input, call) {
    const zone = await call.zone()
    const template = input.template ? await call.names.resolve(call.sdp, 'template', input.template) : undefined
    const { payload, asked } = await resolveFields(call, input)
    if (template) {
      payload.template = { id: template.id }
      asked.template = template.name
    }
    if (input.assets) payload.assets = input.assets.map(name => ({ name }))
    await refuseIncomplete(call, payload, template?.id)
    if (!input.allow_duplicate) await refuseDuplicate(call, input, payload, zone)
    if (input.dry_run) return { data: { dry_run: true, nothing_sent: true, would_create: payload } }
    const created = await call.requests.create(call.sdp, payload)
    const id = text(created.id)
    const after = id ? await call.requests.get(call.sdp, id) : created
    return {
      data: {
        done: true,
        ...requestRow(after, zone),
        url: id && call.site.link('requests', id),
        changes: diff(asked, undefined, after, zone).filter(({ note }) => note),
      },
    }
  },
})

/** What the template demands, asked before SDP refuses; a site that does not tell answers 4012 itself (docs/sdp-api.md 18.2). */
async function refuseIncomplete(call: ToolCall, payload: Json, templateId: string | undefined): Promise<void> {
  const id = templateId ?? (await defaultTemplate(call))
  const mandatory = id ? await call.forms.templateMandatory(call.sdp, id) : undefined
  const missing = (mandatory ?? []).filter(
    field => !(field in payload) && at(payload, `udf_fields.${field}`) === undefined && !filledBySite.has(field),
  )
  if (missing.length === 0) return
  throw new ToolError(
    `Mandatory fields are missing; nothing was created: ${missing.join(', ')}.`,
    'Ask the person, look up values with list_field_options (additional fields: get_form_fields), and send all in one call.',
    { fields: missing },
  )
}

/** SDP fills these by itself (docs/sdp-api.md 7.2). */
const filledBySite = new Set(['requester', 'status', 'created_time', 'template'])

async function defaultTemplate(call: ToolCall): Promise<string | undefined> {
  const { options } = await call.names.options(call.sdp, 'template').catch(() => ({ options: [] }))
  return options.find(({ name }) => plain(name) === 'default request')?.id
}

/** Open tickets of the same requester from the last two weeks with the same subject. */
async function refuseDuplicate(
  call: ToolCall,
  input: RequestFieldInput & { subject: string },
  payload: Json,
  zone: string,
): Promise<void> {
  const requester = payload.requester as { id: string } | { email_id: string } | undefined
  const who =
    requester ??
    (await call.people.me(call.sdp).then(
      ({ id }) => (id ? { id } : undefined),
      () => undefined,
    ))
  if (!who) return
  const page = await call.requests.list(call.sdp, {
    row_count: 100,
    start_index: 1,
    sort_field: 'created_time',
    sort_order: 'desc',
    search_criteria: criteria(
      all(
        personIs('requester', who),
        is('status.in_progress', true),
        atLeast('created_time', call.context.now() - lookBackMs),
      ),
    ),
    fields_required: rowFields,
  })
  const same = page.rows.filter(row => plain(text(row.subject) ?? '') === plain(input.subject))
  if (same.length === 0) return
  const shown = same.slice(0, 3).map(row => {
    const { number, status, created } = requestRow(row, zone)
    return `#${number} (${status}, ${created}${flag(row.is_overdue) ? ', overdue' : ''})`
  })
  throw new ToolError(
    `The same requester has an open ticket with this subject: ${shown.join('; ')}. Nothing was created.`,
    'Work on that ticket (get_request, add_note), or repeat with allow_duplicate=true when the person wants a second one.',
    { fields: ['subject'] },
  )
}
