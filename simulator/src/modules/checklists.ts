import { allVerbs, flag, id, type Module, ref, rows, text, time, user } from './module.ts'

/** Checklists of a ticket (docs/sdp-api.md 7.4). */
export const checklists: Module = {
  path: 'checklists',
  table: 'checklists',
  root: 'checklist',
  verbs: allVerbs,
  fields: {
    id,
    name: text({ mandatory: true }),
    items: rows({ name: text({ mandatory: true }), is_completed: flag() }, { mandatory: true, maxItems: 50 }),
    template: ref('checklist_templates'),
    created_by: user({ readOnly: true }),
    created_time: time({ readOnly: true }),
    request: ref('requests', { readOnly: true, compute: row => row.parent }),
  },
}
