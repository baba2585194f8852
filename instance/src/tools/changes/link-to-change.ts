import { z } from 'zod'
import { tie } from '../association.ts'
import { defineTool } from '../define.ts'
import { dryRun } from '../params.ts'

export const linkToChange = defineTool({
  name: 'link_to_change',
  title: 'Tie tickets to a change',
  toolset: 'changes',
  description: 'Ties tickets to a change, as its cause or as caused by it, or unties them. Answers ticket by ticket.',
  input: {
    change_id: z.string().min(1),
    requests: z.array(z.string().min(1)).min(1).max(25).describe('Ticket numbers or ids'),
    relation: z.enum(['initiated', 'caused_by']).optional().describe('Default initiated: the ticket led to the change'),
    remove: z.boolean().optional().describe('Untie'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['changes.UPDATE', 'requests.UPDATE'],
  async run({ change_id, requests, relation = 'initiated', remove = false, dry_run }, call) {
    const id = await call.records.id(call.sdp, 'change', change_id)
    const head = { change_id: id, url: call.site.link('changes', id) }
    if (dry_run)
      return { data: { ...head, dry_run: true, nothing_sent: true, would: remove ? 'untie' : 'tie', requests } }
    const association = relation === 'initiated' ? 'request_initiated_change' : 'request_caused_by_change'
    const results = await tie(call, association, id, requests, remove)
    return { data: { ...head, done: results.every(({ tied }) => tied !== remove), requests: results } }
  },
})
