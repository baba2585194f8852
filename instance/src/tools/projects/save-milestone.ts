import { z } from 'zod'
import { text } from '../../sdp/json.ts'
import { path } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import { holds, settled } from '../../sdp/settle.ts'
import { plain } from '../../sdp/similar.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { diff } from '../diff.ts'
import { dryRun } from '../params.ts'
import { milestoneFields, milestoneRow } from './project.ts'

export const saveMilestone = defineTool({
  name: 'save_milestone',
  title: 'Save a milestone',
  toolset: 'projects',
  description: 'Changes the milestone with this id or title, or creates it when the project has none such.',
  input: {
    project_id: z.string().min(1),
    milestone_id: z.string().optional(),
    ...milestoneFields.inputs,
    title: z.string().min(1).max(250),
    dry_run: dryRun,
  },
  effect: 'write',
  idempotent: true,
  scopes: ['projects.UPDATE'],
  async run({ project_id, milestone_id, dry_run, ...input }, call) {
    const project = await call.records.id(call.sdp, 'project', project_id)
    const zone = await call.zone()
    const id = milestone_id ?? (await byTitle(call, project, input.title))
    const { payload, asked } = await milestoneFields.resolve(call, input)
    const head = { project_id: project, url: call.site.link('projects', project) }
    if (dry_run)
      return {
        data: { ...head, dry_run: true, nothing_sent: true, would: id ? 'change' : 'create', milestone: payload },
      }
    const list = path`/projects/${project}/milestones`
    const one = (of: string) => path`/projects/${project}/milestones/${of}`
    const before = id ? entity(await call.sdp.get(one(id)), 'milestone') : undefined
    const read = async (of: string) => entity(await call.sdp.get(one(of)), 'milestone')
    const write = () =>
      id ? call.sdp.put(one(id), { milestone: payload }) : call.sdp.post(list, { milestone: payload })
    const answer = await settled(
      async () => entity(await write(), 'milestone'),
      async () => {
        const made = id ?? (await byTitle(call, project, input.title))
        const present = made ? await read(made) : undefined
        return present && holds(present, payload) ? present : undefined
      },
    )
    const saved = id ?? text(answer.id)
    const after = saved ? await read(saved) : answer
    const changes = diff(asked, before, after, zone)
    return {
      data: {
        done: changes.every(({ note }) => note === undefined),
        what: id ? 'changed' : 'created',
        milestone: milestoneRow(after, zone),
        changes,
        ...head,
      },
    }
  },
})

/** So that the same call twice does not make two. */
async function byTitle(call: ToolCall, project: string, title: string): Promise<string | undefined> {
  const page = await call.sdp.list(path`/projects/${project}/milestones`, { row_count: 100, start_index: 1 })
  return text(page.rows.find(row => plain(text(row.title) ?? '') === plain(title))?.id)
}
