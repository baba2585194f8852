import { z } from 'zod'
import { tie } from '../association.ts'
import { defineTool } from '../define.ts'
import { dryRun } from '../params.ts'

export const linkRequestsToProblem = defineTool({
  name: 'link_requests_to_problem',
  title: 'Tie tickets to a problem',
  toolset: 'problems',
  description: 'Ties tickets to a problem, or unties them. Answers ticket by ticket.',
  input: {
    problem_id: z.string().min(1),
    requests: z.array(z.string().min(1)).min(1).max(25).describe('Ticket numbers or ids'),
    remove: z.boolean().optional().describe('Untie'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['problems.UPDATE', 'requests.UPDATE'],
  async run({ problem_id, requests, remove = false, dry_run }, call) {
    const id = await call.records.id(call.sdp, 'problem', problem_id)
    const head = { problem_id: id, url: call.site.link('problems', id) }
    if (dry_run)
      return { data: { ...head, dry_run: true, nothing_sent: true, would: remove ? 'untie' : 'tie', requests } }
    const results = await tie(call, 'problem', id, requests, remove)
    return { data: { ...head, done: results.every(({ tied }) => tied !== remove), requests: results } }
  },
})
