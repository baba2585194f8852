import { z } from 'zod'
import type { Json } from '../../sdp/json.ts'
import { holds, settled } from '../../sdp/settle.ts'
import { defineTool } from '../define.ts'
import { diff } from '../diff.ts'
import { textToHtml } from '../markdown.ts'
import { dryRun } from '../params.ts'
import { ToolError } from '../result.ts'
import { ciPath, ciRow, ciType, readCi } from './ci.ts'

export const updateCi = defineTool({
  name: 'update_ci',
  title: 'Change a configuration item',
  toolset: 'cmdb',
  description: 'Changes name, description or attributes of a configuration item; answers with asked and actual.',
  input: {
    ci_type: z.string().min(1).describe('Such as ci_server'),
    ci_id: z.string().min(1),
    name: z.string().min(1).max(250).optional(),
    description: z.string().optional().describe('Markdown'),
    attributes: z.record(z.string(), z.unknown()).optional().describe('By key, as get_ci shows them; null empties'),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['cmdb.UPDATE'],
  async run({ ci_type, ci_id, name, description, attributes, dry_run }, call) {
    const type = ciType(ci_type)
    const [before, zone] = await Promise.all([readCi(call, type, ci_id), call.zone()])
    const asked: Record<string, string | null> = {}
    if (name !== undefined) asked.name = name
    if (description !== undefined) asked.description = description
    for (const [key, value] of Object.entries(attributes ?? {})) {
      asked[`ci_attributes.${key}`] =
        value === null ? null : typeof value === 'object' ? JSON.stringify(value) : String(value)
    }
    if (Object.keys(asked).length === 0)
      throw new ToolError('There is nothing to change.', 'Give name, description or attributes.')
    const record: Json = {
      ...(name === undefined ? {} : { name }),
      ...(description === undefined ? {} : { description: textToHtml(description) }),
      ...(attributes === undefined ? {} : { ci_attributes: attributes }),
    }
    if (dry_run) return { data: { ...ciRow(before, zone), dry_run: true, nothing_sent: true, would_send: record } }
    await settled<unknown>(
      () => call.sdp.put(ciPath(type, ci_id), { [type]: record }),
      async () => holds(await readCi(call, type, ci_id), record) || undefined,
    )
    const after = await readCi(call, type, ci_id)
    const changes = diff(asked, before, after, zone)
    return { data: { done: changes.every(({ note }) => note === undefined), ...ciRow(after, zone), changes } }
  },
})
