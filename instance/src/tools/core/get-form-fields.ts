import { z } from 'zod'
import { recordModules } from '../../sdp/records.ts'
import { defineTool } from '../define.ts'
import { optionName } from '../params.ts'

const modules = ['request', 'problem', 'change', 'release', 'project', 'solution', 'asset'] as const

export const getFormFields = defineTool({
  name: 'get_form_fields',
  title: 'Read the fields of a form',
  toolset: 'core',
  description:
    'Tells which fields a form has: mandatory, additional (with key, label, type and choices) and read-only ones, for a template where given.',
  input: {
    module: z.enum(modules).optional().describe('Default request'),
    template: optionName.optional().describe('Request template'),
  },
  output: { mandatory: z.array(z.string()).optional(), additional: z.array(z.looseObject({})).optional() },
  effect: 'read',
  scopes: [],
  async run({ module = 'request', template }, call) {
    const form = await call.forms.form(call.sdp, recordModules[module].plural, module)
    const chosen = template ? await call.names.resolve(call.sdp, 'template', template) : undefined
    const byTemplate = chosen ? await call.forms.templateMandatory(call.sdp, chosen.id) : undefined
    const mandatory = new Set([
      ...form.fields.filter(field => field.isMandatory).map(field => field.key),
      ...(byTemplate ?? []),
    ])
    return {
      data: {
        module,
        template: chosen?.name,
        mandatory: [...mandatory],
        additional: form.fields
          .filter(field => field.isCustom)
          .map(({ key, label, type, allowed, takesMany }) => ({
            key,
            label,
            type,
            choices: allowed,
            many: takesMany || undefined,
          })),
        read_only: form.fields.filter(field => field.isReadOnly && !field.isCustom).map(field => field.key),
        writable: form.fields.filter(field => !field.isReadOnly && !field.isCustom).map(field => field.key),
        hint: form.complete
          ? undefined
          : 'This site does not show its form to API clients: there may be more mandatory fields; a write names the missing ones.',
      },
    }
  },
})
