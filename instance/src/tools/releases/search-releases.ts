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
import { releaseRow } from './release.ts'

export const searchReleases = defineTool({
  name: 'search_releases',
  title: 'Search releases',
  toolset: 'releases',
  description: 'Searches releases on the server; all conditions must hold.',
  input: { ...searchInputs, stage: namesInput, release_engineer: personInput },
  effect: 'read',
  scopes: ['releases.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'release',
      key: 'releases',
      input,
      row: releaseRow,
      conditions: [
        textIn(input.text, 'title', 'description'),
        await namedAny(call, 'stage', input.stage, 'release'),
        await namedAny(call, 'status', input.status, 'release'),
        await namedAny(call, 'priority', input.priority),
        await byPerson(call, 'release_engineer', input.release_engineer),
        await between(call, 'created_time', input.created_from, input.created_to),
      ],
    })
  },
})
