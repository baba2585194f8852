import type { Sdp } from './client.ts'
import { isSdpError } from './errors.ts'
import { at, rows, text } from './json.ts'
import { path } from './path.ts'

/** Ids of a technician's support groups: from their own record, else from the groups' lists (docs/sdp-api.md 17.1, 17.2). */
export async function groupsOf(sdp: Sdp, technicianId: string): Promise<string[]> {
  const own = await quiet(async () => {
    const request = { method: 'GET', path: path`/technicians/${technicianId}`, probe: true } as const
    const { body } = await sdp.request(request)
    return rows(at(body, 'technician.groups')).map(row => text(row.id))
  })
  if (own?.length) return own.filter(group => group !== undefined)
  for (const list of [path`/support_groups`, path`/groups`]) {
    const found = await quiet(
      async () => (await sdp.list(list, { row_count: 100, start_index: 1 }, { probe: true })).rows,
    )
    const mine = found
      ?.filter(group => rows(group.technicians).some(one => text(one.id) === technicianId))
      .map(group => text(group.id))
    if (mine?.length) return mine.filter(group => group !== undefined)
  }
  return []
}

async function quiet<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    if (isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) return undefined
    throw error
  }
}
