import { allVerbs, anything, flag, html, id, type Module, readVerbs, text, time, user } from './module.ts'

/** Recurring tickets and changes, read only (docs/sdp-api.md 17.2). */
function maintenances(path: string, root: string, scope: string): Module {
  return {
    path,
    table: path,
    root,
    scopes: [scope, 'setup'],
    verbs: readVerbs,
    fields: { id, name: text(), description: html(), schedule: anything(), next_run: time(), inactive: flag() },
  }
}

export const extraModules: Module[] = [
  maintenances('request_maintenances', 'request_maintenance', 'requests'),
  maintenances('change_maintenances', 'change_maintenance', 'changes'),
  /** A custom module, reached by its API name (17.2). */
  {
    path: 'cm_visitors',
    table: 'cm_visitors',
    root: 'cm_visitor',
    scopes: ['custommodule'],
    verbs: allVerbs,
    fields: {
      id,
      name: text({ mandatory: true }),
      txt_company: text(),
      host: user(),
      date_visit: time(),
      created_by: user({ readOnly: true }),
      created_time: time({ readOnly: true }),
    },
  },
]
