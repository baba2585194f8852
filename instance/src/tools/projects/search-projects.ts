import { defineTool } from '../define.ts'
import { between, byPerson, namedAny, personInput, searchInputs, searchRecords, textIn } from '../record-search.ts'
import { projectRow } from './project.ts'

export const searchProjects = defineTool({
  name: 'search_projects',
  title: 'Search projects',
  toolset: 'projects',
  description: 'Searches projects on the server; all conditions must hold.',
  input: { ...searchInputs, owner: personInput },
  effect: 'read',
  scopes: ['projects.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'project',
      key: 'projects',
      input,
      row: projectRow,
      conditions: [
        textIn(input.text, 'title', 'project_code', 'description'),
        await namedAny(call, 'status', input.status, 'project'),
        await namedAny(call, 'priority', input.priority),
        await byPerson(call, 'owner', input.owner),
        await between(call, 'created_time', input.created_from, input.created_to),
      ],
    })
  },
})
