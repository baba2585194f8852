import { z } from 'zod'
import { lookupFields, type Module } from '../../sdp/names.ts'
import { defineTool } from '../define.ts'

const modules = ['request', 'problem', 'change', 'release', 'project', 'asset', 'task'] as const satisfies Module[]
const parents: Record<string, string> = { subcategory: 'category', item: 'subcategory' }
const most = 200

export const listFieldOptions = defineTool({
  name: 'list_field_options',
  title: 'List values of a field',
  toolset: 'core',
  description:
    'Lists the values a field takes on this site: status, priority, category, subcategory, item, group, site, closure_code, template, urgency, impact, mode, level, request_type, worklog_type, task_type and more. Use before guessing a value.',
  input: {
    field: z.string().min(1),
    parent: z.string().optional().describe('Category of a subcategory, subcategory of an item'),
    query: z.string().optional().describe('Part of the name'),
    module: z.enum(modules).optional(),
  },
  output: { options: z.array(z.looseObject({})), complete: z.boolean().optional() },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ field, parent, query, module }, call) {
    const key = field
      .trim()
      .toLowerCase()
      .replace(/[\s-]+/g, '_')
    const above = Object.hasOwn(parents, key) ? parents[key] : undefined
    const under = parent && above ? await call.names.resolve(call.sdp, above, parent) : undefined
    const found = await call.names.options(call.sdp, key, { module, query, parent: under })
    const options = found.options.slice(0, most)
    const isWhole = found.complete && options.length === found.options.length
    return {
      data: {
        options: options.map(({ id, name, parent: group, note }) => ({
          name,
          id,
          parent: under ? undefined : group,
          note,
        })),
        complete: isWhole,
        hint:
          found.options.length === 0
            ? `No value found. Known fields: ${lookupFields.join(', ')}.`
            : isWhole
              ? undefined
              : 'There may be more: narrow with query.',
      },
      rest: 'narrow with query',
      whenCut: { complete: false, hint: 'There may be more: narrow with query.' },
    }
  },
})
