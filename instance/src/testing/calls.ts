import type { InstanceContext } from '../context.ts'
import { catalogue } from '../tools/catalogue.ts'
import type { Desk, Session } from './desk.ts'
import { everyTool } from './every-tool.ts'
import { createFixtures } from './fixtures.ts'

/**
 * Calls to the site that a tool makes.
 *
 * - `warm`: in a session that has called get_my_context and the tool once before; for a tool that shows first what it
 *   would do, preview and act together. `most` is the most that one call of the tool makes of these.
 * - `cold`: the first call of a new instance, which also reads the time zone, the person's own identity, the id of each
 *   number, and lists of names.
 */
export type CallCost = { tool: string; warm: number; most: number; cold: number }

/** What a person does before, in the same session, that tells the tool what it needs. */
const before: Record<string, (session: Session) => Promise<unknown>> = {
  decide_approval: session => session.ok('list_my_approvals'),
}

/** Instead of a ticket made a moment ago: one of the seed, with mails. */
const common: Record<string, Record<string, unknown>> = {
  get_request_activity: { request_id: '61' },
}

/** @param session - of a person who may do everything, on `context` */
export async function callCosts(desk: Desk, context: InstanceContext, session: Session): Promise<CallCost[]> {
  const fixtures = await createFixtures(session)
  await session.ok('get_my_context')
  const costs: CallCost[] = []
  for (const { name } of catalogue) {
    const { works } = everyTool[name]!
    const calls: number[][] = []
    // the first round warms; a context of its own has caches of its own
    for (const caller of [session, session, await desk.connect({ ...context })]) {
      const args = common[name] ?? (await works(fixtures, name === 'revert_change' ? caller : session))
      if (caller === session) await before[name]?.(session)
      calls.push(await callsOf(caller, name, args))
    }
    const [, warm = [], cold = []] = calls
    costs.push({ tool: name, warm: sum(warm), most: Math.max(...warm), cold: sum(cold) })
  }
  return costs
}

/** For each call of the tool: one, or a preview and the act. */
async function callsOf(session: Session, name: string, args: Record<string, unknown>): Promise<number[]> {
  const from = session.calls.length
  const first = await session.ok(name, args)
  if (first.confirm_token) await session.ok(name, { ...args, confirm_token: first.confirm_token })
  if (first.plan_token) await session.ok(name, { ...args, plan_token: first.plan_token, dry_run: false })
  return session.calls.slice(from).map(({ sdpCalls }) => sdpCalls)
}

function sum(numbers: number[]): number {
  return numbers.reduce((total, one) => total + one, 0)
}
