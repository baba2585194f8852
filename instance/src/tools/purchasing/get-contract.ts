import { z } from 'zod'
import { defineTool } from '../define.ts'
import { detail } from '../record-view.ts'

export const getContract = defineTool({
  name: 'get_contract',
  title: 'Read a contract',
  toolset: 'purchasing',
  description: 'Reads one contract.',
  input: { contract_id: z.string().min(1).describe('Id from search_contracts') },
  effect: 'read',
  scopes: ['contracts.READ'],
  async run({ contract_id }, call) {
    const id = await call.records.id(call.sdp, 'contract', contract_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'contract', id), call.zone()])
    return { data: detail(raw, zone) }
  },
})
