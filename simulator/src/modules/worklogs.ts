import type { Call, Reply } from '../api/call.ts'
import { fail } from '../api/failure.ts'
import { rowById } from '../state.ts'
import {
  allVerbs,
  anything,
  type Change,
  duration,
  flag,
  html,
  id,
  integer,
  type Module,
  money,
  ref,
  technician,
  time,
  user,
} from './module.ts'

const hourMs = 60 * 60 * 1000

/** Duration from the times when only these were given, and the technician's cost where no charge was. */
function completeWorklog({ record, sent, before }: Change, call: Call): Reply | undefined {
  const breaksReferences = call.world.faults.switches.worklogQueryBreaksReferences
  if (breaksReferences && call.inputSource === 'query' && sent.owner) throw fail.unparsableJson('owner')
  const { start_time: start, end_time: end } = record
  if (typeof start === 'number' && typeof end === 'number') {
    if (start > end) throw fail.timeMismatch(['start_time', 'end_time'])
    const timesSent = sent.start_time !== undefined || sent.end_time !== undefined
    if (sent.time_spent == null && (timesSent || record.time_spent == null)) record.time_spent = end - start
  }
  if (typeof record.time_spent !== 'number') throw fail.mandatory(['time_spent'])
  if (sent.mark_first_response === true) {
    const request = rowById(call.portal, 'requests', record.parent)
    if (!request || request.responded_time) throw fail.cannotGive('mark_first_response')
    request.responded_time = call.world.now()
  }
  if (sent.tech_charge === undefined && !before) {
    const rate = Number(rowById(call.portal, 'users', record.owner)?.cost_per_hour ?? 0)
    record.tech_charge = Math.round((record.time_spent / hourMs) * rate * 100) / 100
  }
  return undefined
}

/** Time somebody spent on a record (docs/sdp-api.md 7.4). Keys such as `status` or `is_billable` do not exist. */
export function worklogsOf(parentKey: string, parentTable: string): Module {
  return {
    path: 'worklogs',
    table: 'worklogs',
    root: 'worklog',
    verbs: allVerbs,
    fields: {
      id,
      owner: technician({ mandatory: true }),
      description: html(),
      start_time: time(),
      end_time: time(),
      recorded_time: time(),
      time_spent: duration(),
      worklog_type: ref('worklog_types'),
      include_nonoperational_hours: flag(),
      tech_charge: money(),
      other_charge: money(),
      total_charge: money({
        readOnly: true,
        compute: row => Number(row.tech_charge ?? 0) + Number(row.other_charge ?? 0),
      }),
      currency: anything(),
      exchange_rate: integer(),
      mark_first_response: flag({ addOnly: true, writeOnly: true }),
      created_by: user({ readOnly: true }),
      created_time: time({ readOnly: true }),
      [parentKey]: ref(parentTable, { readOnly: true, compute: row => row.parent }),
    },
    defaultSort: { field: 'created_time', order: 'desc' },
    defaults: ({ world }) => ({ recorded_time: world.now(), other_charge: 0, include_nonoperational_hours: false }),
    beforeSave: completeWorklog,
  }
}
