import type { Call, Reply } from '../api/call.ts'
import { done, one } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { parseFields } from '../api/fields.ts'
import { editRecord, isReply, recordOf, rootInput, show } from '../api/verbs.ts'
import { flag, html, type Operations, refs, technician } from '../modules/module.ts'
import { rowByName } from '../state.ts'
import { refuseInput } from './refuse-input.ts'
import { linkOperations } from './request-links.ts'
import { requestSummary } from './request-summary.ts'
import { templateWithLayout } from './templates.ts'
import { trashOperations } from './trash.ts'
import { uploadOperations } from './uploads.ts'

/** `PUT /requests/{id}/_close` with an optional `closure_info`; without what closing requires it answers 3000 (7.1, 18.4). */
function close(call: Call): Reply {
  const { closure_info: closureField } = call.module.fields
  const given = call.input === undefined ? {} : rootInput(call)
  const sent = parseFields(given, { closure_info: closureField ?? { type: 'any' } }, call)
  const closed = editRecord(call, recordOf(call), { ...sent, status: rowByName(call.portal, 'statuses', 'Closed')?.id })
  return isReply(closed) ? closed : done('Request(s) closed')
}

/** `PUT /requests/{id}/_pickup`: the caller becomes the technician. */
function pickup(call: Call): Reply {
  refuseInput(call)
  const picked = editRecord(call, recordOf(call), { technician: call.caller.row.id })
  return isReply(picked) ? picked : one('request', show(picked, call))
}

/** `PUT /requests/{id}/_assign`: an edit of technician and group. */
function assign(call: Call): Reply {
  const { group } = call.module.fields
  const sent = parseFields(rootInput(call), { technician: technician(), group: group ?? { type: 'any' } }, call)
  const assigned = editRecord(call, recordOf(call), sent)
  return isReply(assigned) ? assigned : one('request', show(assigned, call))
}

function resolutionOf(call: Call): unknown {
  return show(recordOf(call), call, ['resolution']).resolution
}

function getResolution(call: Call): Reply {
  return one('resolution', resolutionOf(call))
}

/** `POST /requests/{id}/resolutions` with `{"resolution":{"content", "add_to_linked_requests"}}`. */
function setResolution(call: Call): Reply {
  const given = rootInput(call, ['resolution'])
  const fields = { content: html({ mandatory: true }), add_to_linked_requests: flag() }
  const resolution = parseFields(given, fields, call)
  if (!resolution.content) throw fail.mandatory(['content'])
  const edited = editRecord(call, recordOf(call), { resolution })
  return isReply(edited) ? edited : one('resolution', resolutionOf({ ...call, record: edited }))
}

/** `PUT /requests/{id}/tag` with `{"tags":[{"id"}]}`: these tags and no others. */
function tag(call: Call): Reply {
  for (const key of Object.keys(call.input ?? {})) if (key !== 'tags') throw fail.extraKey(key)
  if (call.input?.tags === undefined) throw fail.mandatory(['tags'])
  const tagged = editRecord(call, recordOf(call), parseFields(call.input, { tags: refs('tags') }, call))
  return isReply(tagged) ? tagged : one('request', show(tagged, call))
}

export const requestOperations: Operations = {
  'PUT close': close,
  'PUT pickup': pickup,
  'PUT assign': assign,
  'GET /resolutions': getResolution,
  'POST /resolutions': setResolution,
  'PUT /resolutions': setResolution,
  'GET summary': requestSummary,
  'PUT tag': tag,
  ...trashOperations,
  ...linkOperations,
  ...uploadOperations,
  'GET /template/:templateId/_get_template_with_layout': call =>
    templateWithLayout(call, call.params.templateId ?? '', call.module),
}
