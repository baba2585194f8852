import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js'

/**
 * `npm run smoke`: looks with the real tools at a real ServiceDesk Plus Cloud account. For who has one; tests never run
 * it. It starts one instance from the environment, over stdio, and prints what each step said, without bodies.
 *
 *   SDP_LIVE_INSTANCE_NAME   the portal, the part after /app/
 *   SDP_LIVE_CLIENT_ID       of a self client of your own
 *   SDP_LIVE_CLIENT_SECRET
 *   SDP_LIVE_REFRESH_TOKEN   or SDP_LIVE_GRANT_CODE, which works once
 *   SDP_LIVE_DATA_CENTER     default US; SDP_LIVE_BASE_URL and SDP_LIVE_ACCOUNTS_URL where yours differ
 *   SDP_LIVE_WRITE=true      also makes one ticket of its own, notes on it, and closes it; otherwise only reads
 */

const root = dirname(dirname(import.meta.dirname))
const passedOn = [
  ...['INSTANCE_NAME', 'CLIENT_ID', 'CLIENT_SECRET', 'REFRESH_TOKEN', 'GRANT_CODE'],
  ...['DATA_CENTER', 'BASE_URL', 'ACCOUNTS_URL', 'ALLOW_INSECURE_UPSTREAM'],
]
const live = (name: string) => process.env[`SDP_LIVE_${name}`]?.trim() || undefined

const missing = ['INSTANCE_NAME', 'CLIENT_ID', 'CLIENT_SECRET']
  .filter(name => !live(name))
  .map(name => `SDP_LIVE_${name}`)
if (!live('REFRESH_TOKEN') && !live('GRANT_CODE')) missing.push('SDP_LIVE_REFRESH_TOKEN (or SDP_LIVE_GRANT_CODE)')
if (missing.length > 0) {
  process.stderr.write(
    `smoke: nothing was done. This talks to a real ServiceDesk Plus Cloud account and needs ${missing.join(', ')}.\n` +
      'Make a Self Client at the Zoho API console of your data center, set these variables and run it again; see docs/live-smoke.md.\n',
  )
  process.exit(64)
}

const writes = live('WRITE') === 'true'
const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-smoke-'))
const environment: Record<string, string> = {
  PATH: process.env.PATH ?? '',
  SDP_USERNAME: 'smoke',
  SDP_STATE_DIR: folder,
  ...(writes ? { SDP_TOOLSETS: 'core' } : { SDP_TOOLSETS: 'core', SDP_READ_ONLY: 'true' }),
}
for (const name of passedOn) {
  const value = live(name)
  if (value) environment[`SDP_${name}`] = value
}
const client = new Client({ name: 'sdp-mcp-smoke', version: '1.0.0' })
let failed = 0
try {
  await client.connect(
    new StdioClientTransport({
      command: process.execPath,
      args: [join(root, 'instance/src/main.ts'), '--stdio'],
      env: environment,
      stderr: 'inherit',
    }),
  )
  const { tools } = await client.listTools()
  say(`${tools.length} tools, ${writes ? 'reads and writes' : 'reads only'}`)
  await step('get_my_context')
  await step('get_queue_summary', { scope: 'all' })
  const found = await step('search_requests', { view: 'all', limit: 5, total: true })
  const number = (found?.requests as { number?: string }[] | undefined)?.[0]?.number
  if (number) {
    await step('get_request', { request_id: number, include: ['description', 'sla', 'custom', 'allowed_actions'] })
    await step('get_request_activity', { request_id: number })
  }
  for (const field of ['status', 'priority', 'category', 'group', 'closure_code'])
    await step('list_field_options', { field })
  await step('get_form_fields')
  await step('search_solutions', { text: 'password' })
  await step('list_my_approvals')
  if (writes) await writeAndClose()
} finally {
  await client.close()
  await rm(folder, { recursive: true, force: true })
}
process.stdout.write(failed === 0 ? 'smoke: all steps passed\n' : `smoke: ${failed} steps failed\n`)
process.exit(failed === 0 ? 0 : 1)

async function writeAndClose(): Promise<void> {
  const subject = `Smoke test of the MCP server, ${new Date().toISOString()}; may be deleted`
  const created = await step('create_request', { subject, description: 'Made by a test; it closes this itself.' })
  const request_id = created?.number as string | undefined
  if (!request_id) return
  await step('add_note', { request_id, text: 'A private note.' })
  await step('update_request', { request_id, priority: 'Low' })
  await step('close_request', { request_id, resolution: 'A test.' })
}

/** Runs one tool. Values stay out of what is printed: it may be pasted into an issue. */
async function step(name: string, args: Record<string, unknown> = {}): Promise<Record<string, unknown> | undefined> {
  const startedAt = performance.now()
  const result = (await client.callTool({ name, arguments: args })) as CallToolResult
  const ms = Math.round(performance.now() - startedAt)
  if (result.isError) {
    failed += 1
    say(`FAILED ${name} (${ms} ms)\n${result.content.map(part => (part.type === 'text' ? part.text : '')).join('\n')}`)
    return undefined
  }
  const shape = Object.entries(result.structuredContent ?? {}).map(([key, value]) =>
    Array.isArray(value) ? `${key}[${value.length}]` : key,
  )
  say(`passed ${name} (${ms} ms): ${shape.join(', ')}`)
  return result.structuredContent
}

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}
