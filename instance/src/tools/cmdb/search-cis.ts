import { z } from 'zod'
import { contains, criteria, paging } from '../../sdp/list-info.ts'
import { defineTool } from '../define.ts'
import { defaultLimit } from '../params.ts'
import { pagingInputs } from '../record-search.ts'
import { ciPath, ciRow, ciType, known } from './ci.ts'

export const searchCis = defineTool({
  name: 'search_cis',
  title: 'Search configuration items',
  toolset: 'cmdb',
  description: 'Searches the configuration items of one type by name.',
  input: {
    ci_type: z.string().min(1).describe('Such as ci_server'),
    text: z.string().min(1).optional(),
    ...pagingInputs,
  },
  effect: 'read',
  scopes: ['cmdb.READ'],
  async run({ ci_type, text, page = 1, limit = defaultLimit, total }, call) {
    const type = ciType(ci_type)
    const zone = await call.zone()
    const found = await known(
      type,
      call.sdp.list(ciPath(type), {
        ...paging(page, limit),
        sort_field: 'name',
        sort_order: 'asc',
        ...(total ? { get_total_count: true } : {}),
        search_criteria: criteria(text ? contains('name', text) : undefined),
      }),
    )
    return {
      data: {
        cis: found.rows.length > 0 ? found.rows.map(row => ciRow(row, zone)) : 'none',
        total: found.total,
        has_more: found.hasMore,
        next_page: found.hasMore ? page + 1 : undefined,
      },
      paged: { key: 'cis', page, limit },
    }
  },
})
