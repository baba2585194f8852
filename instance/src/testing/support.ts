import type { Desk, Session } from './desk.ts'

/** Calls a tool twice: for the preview, then with its token. @returns the result of the second call */
// biome-ignore lint/suspicious/noExplicitAny: results of every shape
export async function confirmed(session: Session, tool: string, args: Record<string, unknown>): Promise<any> {
  const { done, confirm_token } = await session.ok(tool, args)
  if (done !== false || !confirm_token) throw new Error(`${tool} acted without a confirmation`)
  return session.ok(tool, { ...args, confirm_token })
}

/** Calls that changed something, as the site saw them. */
export function writesOf(desk: Desk): { method: string; path: string; input?: unknown }[] {
  return desk.simulator.log
    .list()
    .filter(({ method, path }) => method !== 'GET' && !path.startsWith('/oauth'))
    .map(({ method, path, input }) => ({ method, path: path.replace(/^\/app\/[^/]+\/api\/v3/, ''), input }))
}
