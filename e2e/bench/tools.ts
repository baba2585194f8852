import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import type { InstanceContext } from '../../instance/src/context.ts'
import { buildServer } from '../../instance/src/server.ts'
import { type Session, startDesk } from '../../instance/src/testing/desk.ts'
import { everyTool } from '../../instance/src/testing/every-tool.ts'
import { createFixtures } from '../../instance/src/testing/fixtures.ts'
import { catalogue } from '../../instance/src/tools/catalogue.ts'
import { estimateTokens } from '../../instance/src/tools/result.ts'

/**
 * What the tools cost: tokens of the answers a model reads, time of tools/list, and calls to the site per tool. Runs
 * against the simulator, with the SDK's client; tokens are estimated on the high side (four ASCII characters each).
 */

const callsTarget = 3

/** Why a tool asks the site more often than the target, in the common case. */
const whyMore: Record<string, string> = {
  get_queue_summary: 'one count for each number shown, all at once: the API counts one filter at a time',
  list_my_approvals: 'the API has no list of my approvals: levels and approvals of each record that waits',
  decide_approval: 'preview and act each find the approval among the levels; then it is read back',
  request_approval: 'preview and act; a level, its approvers and the mail are calls of their own',
  merge_requests: 'preview and act each read both tickets; then one is read again, to see that it is gone',
  reply_to_requester: 'preview and act each read the ticket and what it allows; the mail is read back by its id',
  bulk_update_requests: 'one read for the plan, then read, write and read back for each ticket',
  submit_change: 'preview and act each read the change; then it is read back',
  trash_request: 'preview and act each read the ticket; then it is read again, to see that it is gone',
  delete_asset:
    'preview and act each find the asset by name and read it; then it is read again, to see that it is gone',
  delete_note: 'preview and act each read the note; then it is read again, to see that it is gone',
  delete_worklog: 'preview and act each read the worklog; then it is read again, to see that it is gone',
  delete_task: 'preview and act each read the task; then it is read again, to see that it is gone',
  resolve_request: 'the resolution is written before the status, as sites demand it to resolve; read before and after',
  close_request: 'the resolution is written before closing, as sites demand it to close; read before and after',
  link_assets: 'assets are named, not numbered: each is looked up; then the ticket is read back',
  update_asset: 'the asset is named, not numbered: it is looked up; before, write, after',
}

export async function tools(): Promise<void> {
  const desk = await startDesk()
  try {
    const context = await desk.context('carol')
    const session = await desk.connect(context)
    const report = [
      '| What | Measured | Target | Met |',
      '|---|---|---|---|',
      ...[...(await tokenCosts(session)), await listTime(context)].map(
        ({ what, measured, most, unit }) =>
          `| ${what} | ${measured.toFixed(unit === 'ms' ? 2 : 0)} ${unit} | at most ${most} ${unit} | ${measured <= most ? 'yes' : '**no**'} |`,
      ),
      '',
      `| Tool | Calls to the site | At most ${callsTarget} | Why more |`,
      '|---|---|---|---|',
      ...(await callCosts(session)).map(({ tool, calls }) => {
        const met = calls <= callsTarget
        return `| \`${tool}\` | ${calls} | ${met ? 'yes' : '**no**'} | ${met ? '' : (whyMore[tool] ?? '?')} |`
      }),
    ].join('\n')
    process.stdout.write(`\n${report}\n`)
    const folder = join(import.meta.dirname, 'results')
    await mkdir(folder, { recursive: true })
    await writeFile(join(folder, 'tools.md'), `${report}\n`)
  } finally {
    await desk[Symbol.asyncDispose]()
  }
}

type Cost = { what: string; measured: number; most: number; unit: 'tokens' | 'ms' }

async function tokenCosts(session: Session): Promise<Cost[]> {
  const tokens = async (tool: string, args: Record<string, unknown>) =>
    estimateTokens(JSON.stringify(await session.ok(tool, args)))
  const { number } = await session.ok('create_request', {
    subject: 'Mail does not arrive',
    description: sentence(0).repeat(5),
    requester: 'Ana Ferreira',
  })
  for (let entry = 1; entry <= 40; entry++)
    await session.ok('add_note', { request_id: number, text: sentence(entry).repeat(3), visibility: 'requester' })
  for (let index = 0; index < 50; index++)
    await session.ok('create_request', { subject: `Costs of a list: ticket ${index}`, requester: 'Ana Ferreira' })
  const whole =
    (await tokens('get_request', { request_id: number })) +
    (await tokens('get_request_activity', { request_id: number, limit: 40 }))
  const rows = (await session.ok('search_requests', { text: 'Costs of a list', limit: 50 })).requests
  if (rows.length !== 50) process.stdout.write(`the search shows ${rows.length} of 50 rows\n`)
  return [
    {
      what: 'a ticket with 40 conversation entries: get_request and get_request_activity',
      measured: whole,
      most: 10_000,
      unit: 'tokens',
    },
    {
      what: 'search_requests, 50 tickets',
      measured: await tokens('search_requests', { text: 'Costs of a list', limit: 50 }),
      most: 3_000,
      unit: 'tokens',
    },
  ]
}

function sentence(index: number): string {
  return `Step ${index}: we looked at the log of the gateway, restarted the service and asked the user to try again. `
}

/** From the message to its answer as JSON, without what the client does with it. */
async function listTime(context: InstanceContext): Promise<Cost> {
  const [near, far] = InMemoryTransport.createLinkedPair()
  await buildServer(context).connect(far)
  let answered = (_text: string): void => {}
  near.onmessage = message => answered(JSON.stringify(message))
  await near.start()
  const times: number[] = []
  for (let id = 1; id <= 300; id++) {
    const startedAt = performance.now()
    await new Promise<string>(done => {
      answered = done
      void near.send({ jsonrpc: '2.0', id, method: 'tools/list' })
    })
    times.push(performance.now() - startedAt)
  }
  await near.close()
  times.sort((a, b) => a - b)
  return { what: `tools/list with all ${catalogue.length} tools, median`, measured: times[150]!, most: 5, unit: 'ms' }
}

/** Caches of names, forms and the time zone are warm, as they are after the first minutes of a day. */
async function callCosts(session: Session): Promise<{ tool: string; calls: number }[]> {
  const fixtures = await createFixtures(session)
  const costs: { tool: string; calls: number }[] = []
  for (const { name } of catalogue) {
    const { works } = everyTool[name]!
    let calls = 0
    // the first round warms
    for (let round = 0; round < 2; round++) {
      const args = await works(fixtures, session)
      const from = session.calls.length
      const first = await session.ok(name, args)
      if (first.confirm_token) await session.ok(name, { ...args, confirm_token: first.confirm_token })
      if (first.plan_token) await session.ok(name, { ...args, plan_token: first.plan_token, dry_run: false })
      calls = session.calls.slice(from).reduce((sum, { sdpCalls }) => sum + sdpCalls, 0)
    }
    costs.push({ tool: name, calls })
  }
  return costs.sort((a, b) => b.calls - a.calls)
}
