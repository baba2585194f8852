import { one } from '../api/envelope.ts'
import { recordOf } from '../api/verbs.ts'
import { layoutsOf, templateWithLayout } from '../operations/templates.ts'
import { anything, flag, group, id, type Module, readVerbs, ref, text } from './module.ts'
import { requests } from './requests.ts'

function template(path: string, root: string): Module {
  return {
    path,
    table: path,
    root,
    scopes: ['setup'],
    verbs: readVerbs,
    forRequesters: readVerbs,
    fields: {
      id,
      name: text(),
      comments: text(),
      is_service_template: flag(),
      inactive: flag(),
      is_default: flag(),
      show_to_requester: flag(),
      service_category: ref('service_categories'),
      image: text(),
      workflow: anything(),
      lifecycle: anything(),
    },
    referenceFields: ['id', 'name'],
  }
}

/** Templates and additional fields (docs/sdp-api.md 7.6, 17.2). */
export const templateModules: Module[] = [
  {
    ...template('request_templates', 'request_template'),
    referenceFields: ['id', 'name', 'is_service_template'],
    operations: {
      'GET _get_template_with_layout': call => templateWithLayout(call, recordOf(call).id, requests),
      'GET /layouts': call => one('layouts', layoutsOf(recordOf(call), { ...call, module: requests })),
    },
  },
  template('problem_templates', 'problem_template'),
  template('change_templates', 'change_template'),
  template('release_templates', 'release_template'),
  template('task_templates', 'task_template'),
  {
    path: 'udf_fields',
    table: 'udf_fields',
    root: 'udf_field',
    scopes: ['setup'],
    verbs: readVerbs,
    fields: {
      id,
      field_key: text(),
      name: text(),
      type: text(),
      field_type: text(),
      constraints: anything(),
      allowed_values: anything(),
      module: group({ name: text() }),
      sub_module: anything(),
    },
  },
]
