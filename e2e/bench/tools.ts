import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import type { InstanceContext } from '../../instance/src/context.ts'
import { buildServer } from '../../instance/src/server.ts'
import { callCosts } from '../../instance/src/testing/calls.ts'
import { type Session, startDesk } from '../../instance/src/testing/desk.ts'
import { catalogue } from '../../instance/src/tools/catalogue.ts'
import { estimateTokens } from '../../instance/src/tools/result.ts'

/**
 * What the tools cost: tokens of the answers a model reads, time of tools/list, and calls to the site per tool. Runs
 * against the simulator, with the SDK's client; tokens are estimated on the high side (four ASCII characters each).
 */

const callsTarget = 3

/** What makes a tool ask the site more often than the target: each reason is a fact of the API, see docs/sdp-api.md. */
const forced: Record<string, string> = {
  request_approval:
    'a level, each approver and the mail are three calls of the API (7.4); before them the levels are read, so that no level is taken twice',
}

/** More calls than shown, outside of the common case, and what of the API makes them. */
const further = [
  'bulk_update_requests: one edit for each ticket, as the API edits one record a call (6); all are read in one call before, and each edit is read back from its own answer',
  'list_my_approvals: cold, two calls for each record that waits, as the API lists approvals only below a level of a record (7.4); kept for two minutes while the record is unchanged',
  'get_request_activity: cold, one call for each mail shown, as the list of a conversation has no texts (7.5); a mail is kept for an hour, as it never changes',
  'get_queue_summary: a page of 100 open tickets a call, up to 300; beyond, one count for each number, as the API counts one filter at a time (3.1)',
  'merge_requests, get_request with include, get_asset with include and the like: one call for each list that is asked for',
]

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
      'Calls to the site. Warm: a session that has called get_my_context and the tool once before; for a tool that asks',
      'first, preview and act together (the most that one call of it makes in brackets). Cold: the first call ever of a new',
      'instance, which also reads time zone, own identity, the id of each number, and lists of names.',
      '',
      `| Tool | Warm | At most ${callsTarget} | Cold | Why more |`,
      '|---|---|---|---|---|',
      ...(await callCosts(desk, context, session))
        .sort((a, b) => b.warm - a.warm)
        .map(({ tool, warm, most, cold }) => {
          const met = warm <= callsTarget
          const shown = most === warm ? String(warm) : `${warm} (${most})`
          return `| \`${tool}\` | ${shown} | ${met ? 'yes' : '**no**'} | ${cold} | ${met ? '' : (forced[tool] ?? '?')} |`
        }),
      '',
      'More, outside of the common case:',
      '',
      ...further.map(line => `- ${line}`),
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
