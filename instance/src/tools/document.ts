import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { type Role, roleNames, roles, scopesFor, type Toolset, toolsets } from '../contract.ts'
import type { Json } from '../sdp/json.ts'
import { catalogue } from './catalogue.ts'
import type { Tool } from './define.ts'

/** Writes docs/tools.md from the catalogue: `node instance/src/tools/document.ts`. */
export const toolsPage = fileURLToPath(new URL('../../../docs/tools.md', import.meta.url))

const about: Record<Toolset, string> = {
  core: 'Tickets, notes, mails, time, tasks, people and knowledge base. On by default.',
  requests_extra: 'More for tickets: approvals, links, undo, bulk changes.',
  approvals: 'Deciding what waits for one.',
  problems: 'Problem management.',
  changes: 'Change management and the change calendar.',
  releases: 'Release management.',
  assets: 'Assets.',
  cmdb: 'Configuration items and their relations.',
  projects: 'Projects, milestones and tasks.',
  solutions: 'Writing to the knowledge base; reading is in core.',
  purchasing: 'Contracts and purchase orders, to read.',
  announcements: 'Announcements.',
  destructive: 'What cannot be undone, or only while the trash keeps it.',
  advanced: 'The API directly, for what no other tool covers. Its write also needs `destructive`.',
}

export function renderDocument(): string {
  return `# The tools

Written from the catalogue by \`node instance/src/tools/document.ts\`; do not edit by hand.

The administrator chooses the toolsets of each person. A session can [narrow them](clients.md#fewer-tools-for-a-session), and
only tools whose Zoho scopes were granted are offered. **R** reads, **W** writes, **D** cannot be undone or decides for others, **I** may be
repeated without harm, **O** reaches people outside of the desk. What is **D** or **O** asks the person first: by a
question of the client where it can ask, otherwise by a preview with a token.

A \`?\` marks optional parameters. Anywhere a ticket is asked for, its number, \`#57\`, \`RE-57\`, the long id or the
address of its page will do; anywhere a person, \`me\`, e-mail, name or id. Dates are ISO or relative: \`today\`,
\`-7d\`, \`tomorrow 17:00\`.

An answer that would be too long says under \`cut\` what it leaves out and how to get that: lists go on with
\`next_page\`, together with \`next_limit\` where a page had to end early, and tickets, their activity and articles with
\`part\`. Who follows it sees everything once, in order.

ServiceDesk Plus limits calls per minute, so no tool makes more than three in the common case, preview and act
together: warm, that is in a session that has called \`get_my_context\` and the tool once before. Lists of names, forms, the
person's own identity and the numbers of tickets are kept per user for minutes to hours; the first call of a new
instance (cold) reads them and makes two to five more. \`npm run bench tools\` prints warm and cold for each tool. More by
the API's own shape (see [sdp-api.md](sdp-api.md)): \`request_approval\` makes four (levels, level, approver, mail);
\`bulk_update_requests\` one edit for each ticket; \`list_my_approvals\` two for each record that waits, kept for two minutes;
\`get_request_activity\` one for each mail not read before; \`get_queue_summary\` one for each number in queues above 300; parts
asked for with \`include\` one each.

A write is read back: from its own answer where that holds the whole record, else by reading. When its answer is lost, the
tool looks once for what it would have left; if that is not there, the outcome is *indeterminate*, and nothing is sent
again.

| Toolset | Tools | Tokens of its list | For |
| --- | --- | --- | --- |
${toolsets.map(summary).join('\n')}

Roles are ready-made choices: \`"role": "technician"\` in \`POST /v1/users\` or \`PATCH /v1/users/:username\`, or
\`SDP_ROLE=technician\` for a stand-alone instance, in place of toolsets. A role is expanded when it is given: the
user then shows \`toolsets\` and \`readOnly\`. \`"readOnly": true\` beside a role narrows it to its reads.

| Role | Tools | Toolsets |
| --- | --- | --- |
${roleNames.map(roleRow).join('\n')}

${toolsets.map(section).join('\n')}`
}

function of(toolset: Toolset): Tool[] {
  return catalogue.filter(tool => tool.toolset === toolset)
}

function summary(toolset: Toolset): string {
  const tools = of(toolset)
  const tokens = Math.round(JSON.stringify(tools.map(tool => tool.published)).length / 40) * 10
  return `| \`${toolset}\` | ${tools.length} | ${tokens} | ${about[toolset]} |`
}

function roleRow(role: Role): string {
  const { toolsets: named, readOnly } = roles[role]
  const tools = catalogue.filter(
    ({ toolset, alsoNeeds, effect }) =>
      named.some(name => name === toolset) &&
      (alsoNeeds === undefined || named.some(name => name === alsoNeeds)) &&
      !(readOnly && effect !== 'read'),
  )
  const isMost = named.length === toolsets.length - 1
  const which = isMost ? 'all but `destructive`' : named.map(name => `\`${name}\``).join(', ')
  return `| \`${role}\` | ${tools.length} | ${which}${readOnly ? '; reads only' : ''} |`
}

function section(toolset: Toolset): string {
  return `## ${toolset}

${about[toolset]} Zoho scopes: ${scopesFor([toolset], false)
    .map(scope => `\`${scope}\``)
    .join(', ')}.

| Tool | | Parameters | Does |
| --- | --- | --- | --- |
${of(toolset).map(row).join('\n')}
`
}

function row({ name, published }: Tool): string {
  const { inputSchema, description } = published
  const required = new Set((inputSchema.required as string[] | undefined) ?? [])
  const parameters = Object.keys(inputSchema.properties as Json).map(key => (required.has(key) ? key : `${key}?`))
  return `| \`${name}\` | ${letters(published)} | ${parameters.join(', ') || '–'} | ${description.replaceAll('|', '\\|')} |`
}

function letters({ annotations }: Tool['published']): string {
  const { readOnlyHint, destructiveHint, idempotentHint, openWorldHint } = annotations
  const effect = readOnlyHint ? 'R' : destructiveHint ? 'D' : 'W'
  return [effect, idempotentHint ? 'I' : '', openWorldHint ? 'O' : ''].filter(letter => letter !== '').join(' ')
}

if (import.meta.main) await writeFile(toolsPage, renderDocument())
