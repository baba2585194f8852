import { z } from 'zod'
import { at, type Json, text } from '../../sdp/json.ts'
import { settled } from '../../sdp/settle.ts'
import { plain } from '../../sdp/similar.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { dryRun } from '../params.ts'
import { ToolError } from '../result.ts'
import { ciPath, ciType, known, relationRow } from './ci.ts'

export const relateCis = defineTool({
  name: 'relate_cis',
  title: 'Relate configuration items',
  toolset: 'cmdb',
  description: 'Relates one configuration item to another, or removes the relation.',
  input: {
    ci_type: z.string().min(1).describe('Such as ci_server'),
    ci_id: z.string().min(1),
    other_ci_id: z.string().min(1),
    relation: z.string().optional().describe('Such as "Depends on"; needed to add'),
    remove: z.boolean().optional(),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['cmdb.UPDATE'],
  async run({ ci_type, ci_id, other_ci_id, relation, remove = false, dry_run }, call) {
    const type = ciType(ci_type)
    if (!remove && !relation)
      throw new ToolError('It is not said how they relate.', 'Give relation.', { fields: ['relation'] })
    const present = (await relations(call, type, ci_id)).find(row => matches(row, other_ci_id, relation))
    const head = { ci_id, other_ci_id, relation: relation ?? present?.relation }
    if ((present !== undefined) !== remove) return { data: { ...head, done: true, hint: 'It was so before.' } }
    if (dry_run) return { data: { ...head, dry_run: true, nothing_sent: true, would: remove ? 'remove' : 'add' } }
    const ci_relationship = { relationship_type: { name: relation }, ci: { id: other_ci_id } }
    const write = () =>
      remove
        ? call.sdp.remove(ciPath(type, ci_id, 'ci_relationships', text(present?.relation_id) ?? ''))
        : call.sdp.post(ciPath(type, ci_id, 'ci_relationships'), { ci_relationship })
    const isDone = async () =>
      (await relations(call, type, ci_id)).some(row => matches(row, other_ci_id, relation)) !== remove
    await settled<unknown>(write, async () => (await isDone()) || undefined)
    return { data: { ...head, done: await isDone() } }
  },
})

async function relations(call: ToolCall, type: string, id: string): Promise<Json[]> {
  const page = await known(
    type,
    call.sdp.list(ciPath(type, id, 'ci_relationships'), { row_count: 100, start_index: 1 }),
  )
  return page.rows.map(relationRow)
}

function matches(row: Json, other: string, relation: string | undefined): boolean {
  return (
    text(at(row, 'ci_id')) === other && (relation === undefined || plain(text(row.relation) ?? '') === plain(relation))
  )
}
