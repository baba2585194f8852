import type { StoredRecord } from '../state.ts'
import { flag, group, id, type Module, money, readVerbs, ref, refs, text, user } from './module.ts'

const fields: Module['fields'] = {
  id,
  name: text({ mandatory: true }),
  first_name: text(),
  last_name: text(),
  email_id: text({ unique: true }),
  phone: text({ maxLength: 50 }),
  mobile: text({ maxLength: 50 }),
  job_title: text(),
  employee_id: text({ maxLength: 50 }),
  is_technician: flag({ readOnly: true }),
  is_vip_user: flag(),
  sms_mail: text(),
  sms_mail_id: text(),
  login_name: text({ readOnly: true }),
  user_scope: text({ readOnly: true }),
  photo_url: text({ readOnly: true }),
  site: ref('sites'),
  department: ref('departments'),
  reporting_to: user(),
  roles: refs('roles', { readOnly: true }),
  groups: refs('support_groups', { readOnly: true }),
  associated_sites: refs('sites', { readOnly: true }),
  cost_per_hour: money(),
  status: text({ readOnly: true }),
  user_type: text({ readOnly: true, compute: row => (row.is_technician === true ? 'Technician' : 'User') }),
}

/** The shape of a person inside another record (docs/sdp-api.md 5). */
const referenceFields = [
  'id',
  'name',
  'email_id',
  'first_name',
  'last_name',
  'phone',
  'mobile',
  'photo_url',
  'is_vip_user',
  'is_technician',
  'sms_mail',
  'sms_mail_id',
  'job_title',
  'employee_id',
  'user_scope',
  'department',
]

function people(path: string, root: string, scopes: string[], only?: (row: StoredRecord) => boolean): Module {
  return {
    path,
    table: 'users',
    only,
    root,
    scopes,
    verbs: ['list', 'get', 'add', 'edit'],
    adminOnly: true,
    fields,
    referenceFields,
    defaultSort: { field: 'name', order: 'asc' },
    defaults: () => ({ is_technician: path === 'technicians', is_vip_user: false, user_scope: 'internal_user' }),
    isVisible: (row, call) => call.caller.isTechnician || row.id === call.caller.row.id,
    forRequesters: readVerbs,
  }
}

/** @see docs/sdp-api.md 17.1 for which scope each path needs */
export const peopleModules: Module[] = [
  people('users', 'user', ['users']),
  people('requesters', 'requester', ['users', 'setup'], row => row.is_technician !== true),
  people('technicians', 'technician', ['users', 'technicians'], row => row.is_technician === true),
  {
    path: 'unavailability',
    table: 'unavailability',
    root: 'unavailability',
    scopes: ['users', 'technicians'],
    verbs: readVerbs,
    fields: { id, technician: user(), from: group({}), reason: text() },
  },
]
