import { z } from 'zod'
import { defineTool } from '../define.ts'
import { date } from '../params.ts'
import { between, namedAny, namesInput, pagingInputs, searchRecords, textIn } from '../record-search.ts'
import { contractRow } from './purchasing.ts'

export const searchContracts = defineTool({
  name: 'search_contracts',
  title: 'Search contracts',
  toolset: 'purchasing',
  description: 'Searches contracts by words in the name, vendor or end, the next to end first.',
  input: {
    text: z.string().min(1).optional(),
    vendor: namesInput,
    ends_from: date.optional().describe('ISO or relative: today, +30d'),
    ends_to: date.optional(),
    ...pagingInputs,
  },
  effect: 'read',
  scopes: ['contracts.READ'],
  async run(input, call) {
    return searchRecords(call, {
      module: 'contract',
      key: 'contracts',
      input,
      row: contractRow,
      sort: { field: 'active_till', order: 'asc' },
      conditions: [
        textIn(input.text, 'name'),
        await namedAny(call, 'vendor', input.vendor),
        await between(call, 'active_till', input.ends_from, input.ends_to),
      ],
    })
  },
})
