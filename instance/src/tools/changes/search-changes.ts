import { defineTool } from '../define.ts'
import { date } from '../params.ts'
import {
  between,
  byPerson,
  namedAny,
  namesInput,
  personInput,
  searchInputs,
  searchRecords,
  textIn,
} from '../record-search.ts'
import { changeRow } from './change.ts'

export const searchChanges = defineTool({
  name: 'search_changes',
  title: 'Search changes',
  toolset: 'changes',
  description: 'Searches changes on the server; all conditions must hold.',
  input: {
    ...searchInputs,
    stage: namesInput,
    change_type: namesInput,
    change_owner: personInput,
    change_requester: personInput,
    group: namesInput,
    start_from: date.optional(),
    start_to: date.optional(),
  },
  effect: 'read',
  scopes: ['changes.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'change',
      key: 'changes',
      input,
      row: changeRow,
      conditions: [
        textIn(input.text, 'title', 'description'),
        await namedAny(call, 'stage', input.stage, 'change'),
        await namedAny(call, 'status', input.status, 'change'),
        await namedAny(call, 'change_type', input.change_type),
        await namedAny(call, 'priority', input.priority),
        await namedAny(call, 'group', input.group),
        await byPerson(call, 'change_owner', input.change_owner),
        await byPerson(call, 'change_requester', input.change_requester, 'any'),
        await between(call, 'created_time', input.created_from, input.created_to),
        await between(call, 'scheduled_start_time', input.start_from, input.start_to),
      ],
    })
  },
})
