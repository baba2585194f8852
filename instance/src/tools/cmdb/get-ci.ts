import { z } from 'zod'
import { defineTool } from '../define.ts'
import { below } from '../record-view.ts'
import { ciDetail, ciPath, ciType, readCi, relationRow } from './ci.ts'

export const getCi = defineTool({
  name: 'get_ci',
  title: 'Read a configuration item',
  toolset: 'cmdb',
  description: 'Reads one configuration item with attributes and relations.',
  input: { ci_type: z.string().min(1).describe('Such as ci_server'), ci_id: z.string().min(1) },
  effect: 'read',
  scopes: ['cmdb.READ'],
  async run({ ci_type, ci_id }, call) {
    const type = ciType(ci_type)
    const [raw, zone] = await Promise.all([readCi(call, type, ci_id), call.zone()])
    const relations = await below(call, ciPath(type, ci_id), 'ci_relationships', relationRow)
    return { data: { ...ciDetail(raw, zone), relations } }
  },
})
