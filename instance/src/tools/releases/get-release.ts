import { z } from 'zod'
import { recordPath } from '../../sdp/records.ts'
import { defineTool } from '../define.ts'
import { below, detail } from '../record-view.ts'
import { noteRow, taskRow, worklogRow } from '../rows.ts'

const includes = ['tasks', 'notes', 'worklogs'] as const

export const getRelease = defineTool({
  name: 'get_release',
  title: 'Read a release',
  toolset: 'releases',
  description: 'Reads one release with plans and schedule; include adds tasks, notes or worklogs.',
  input: { release_id: z.string().min(1).describe('Number, id or URL'), include: z.array(z.enum(includes)).optional() },
  effect: 'read',
  scopes: ['releases.READ'],
  async run({ release_id, include = [] }, call) {
    const id = await call.records.id(call.sdp, 'release', release_id)
    const [raw, zone] = await Promise.all([call.records.get(call.sdp, 'release', id), call.zone()])
    const show = { tasks: taskRow, notes: noteRow, worklogs: worklogRow }
    const parts = await Promise.all(
      include.map(async part => [part, await below(call, recordPath('release', id), part, show[part])]),
    )
    return {
      data: { ...detail(raw, zone), ...Object.fromEntries(parts), url: call.site.link('releases', id) },
      rest: 'open the release in the portal',
    }
  },
})
