import { cut } from '../../cut.ts'
import { isObject, type Json } from '../../sdp/json.ts'
import { encodeStrictly, type SdpPath } from '../../sdp/path.ts'
import { isPlain, untrusted, visible, withoutMarks } from '../clean-text.ts'
import { htmlToMarkdown } from '../markdown.ts'
import { ToolError } from '../result.ts'

/** First segments that may be addressed freely: modules and lists of values, nothing that manages people or the site. */
const readable = new Set(
  (
    'requests problems changes releases projects assets workstations solutions topics contracts purchase_orders announcements tasks cmdb ' +
    'categories subcategories items priorities urgencies impacts levels modes request_types statuses support_groups groups sites departments ' +
    'regions user_groups closure_codes request_templates change_templates problem_templates release_templates task_templates service_categories ' +
    'worklog_types task_types project_statuses project_types tags udf_fields products product_types vendors asset_states software ' +
    'change_types change_risks change_stages change_statuses reason_for_changes release_stages release_statuses release_types ' +
    'technicians requesters users request_maintenances change_maintenances'
  ).split(' '),
)
const writable = new Set(
  'requests problems changes releases projects assets solutions contracts purchase_orders announcements tasks cmdb'.split(
    ' ',
  ),
)

/**
 * Reads a path of the API as a model writes it.
 * @throws ToolError for anything but plain segments below an allowed module
 */
export function apiPath(given: string, isWrite: boolean): SdpPath {
  const segments = given
    .trim()
    .replace(/^(https?:\/\/[^/]+)?(\/app\/[^/]+)?\/api\/v3/i, '')
    .replace(/^\/+|\/+$/g, '')
    .split('/')
  const allowed = isWrite ? writable : readable
  const first = segments[0] ?? ''
  const isCustomModule = /^cm_[a-z0-9_]+$/.test(first)
  if (!allowed.has(first) && !isCustomModule) {
    throw new ToolError(`The path may not start with "${cut(first, 40)}".`, 'Use a path below an allowed module.', {
      fields: ['path'],
      allowed: [...allowed],
    })
  }
  if (!segments.every(segment => /^[A-Za-z0-9_-]{1,80}$/.test(segment))) {
    throw new ToolError(
      'The path has a segment that is not a plain name or id.',
      'Put list_info and other parameters into input_data, not into the path.',
      {
        fields: ['path'],
      },
    )
  }
  return {
    path: `/${segments.map(encodeStrictly).join('/')}`,
    template: `/${segments.map(segment => (/\d{4,}/.test(segment) ? '{}' : segment)).join('/')}`,
  }
}

/**
 * An answer as it is, but without HTML and invisible characters. `short_description` is left out: SDP makes it from the HTML of
 * a ticket, with what the HTML hides.
 * @param body - is changed: an answer belongs to who asked, and few of its texts need anything
 */
export function readableAnswer(body: Json): Json {
  clean(body)
  body.response_status = undefined
  return body
}

function clean(value: unknown): unknown {
  if (typeof value === 'string') return isPlain(value) ? value : readableText(value)
  if (Array.isArray(value)) for (let index = 0; index < value.length; index++) value[index] = clean(value[index])
  else if (isObject(value))
    // not Object.keys: its lists of names were half of the work
    for (const key in value) {
      const item = value[key]
      const cleaned = key === 'short_description' ? undefined : clean(item)
      if (cleaned !== item) value[key] = cleaned
    }
  return value
}

function readableText(text: string): string {
  return /<[a-z!/]/i.test(text) ? untrusted(htmlToMarkdown(text)) : withoutMarks(visible(text))
}
