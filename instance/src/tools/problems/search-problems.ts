import { defineTool } from '../define.ts'
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
import { problemRow } from './problem.ts'

export const searchProblems = defineTool({
  name: 'search_problems',
  title: 'Search problems',
  toolset: 'problems',
  description: 'Searches problems on the server; all conditions must hold.',
  input: { ...searchInputs, technician: personInput, group: namesInput, category: namesInput },
  effect: 'read',
  scopes: ['problems.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'problem',
      key: 'problems',
      input,
      row: problemRow,
      conditions: [
        textIn(input.text, 'title', 'description'),
        await namedAny(call, 'status', input.status, 'problem'),
        await namedAny(call, 'priority', input.priority),
        await namedAny(call, 'group', input.group),
        await namedAny(call, 'category', input.category),
        await byPerson(call, 'technician', input.technician),
        await between(call, 'created_time', input.created_from, input.created_to),
      ],
    })
  },
})
