import { type McpServer, ResourceTemplate } from '@modelcontextprotocol/sdk/server/mcp.js'
import type { ReadResourceResult } from '@modelcontextprotocol/sdk/types.js'
import { errorGuide, searchGuide } from './guides.ts'
import { lookupFields } from './sdp/names.ts'
import { recordModules } from './sdp/records.ts'
import type { Services } from './services.ts'
import type { Extra, Session } from './session.ts'
import { render } from './tools/result.ts'

/** A resource that shows what a tool answers: the same words, the same limits, the same permissions. */
type ToolResource = {
  name: string
  title: string
  description: string
  uri: string
  tool: string
  args: (variables: Record<string, string>) => Record<string, unknown>
  complete?: Record<string, (typed: string, services: Services) => Promise<string[]> | string[]>
}

const startingWith = (values: readonly string[]) => (typed: string) =>
  values.filter(value => value.startsWith(typed.toLowerCase()))

const toolResources: ToolResource[] = [
  {
    name: 'me',
    title: 'Who am I',
    description: 'Person, portal, connection and enabled tools.',
    uri: 'sdp://me',
    tool: 'get_my_context',
    args: () => ({}),
  },
  {
    name: 'my-queue',
    title: 'My open tickets',
    description: 'My open tickets, the next due first.',
    uri: 'sdp://me/queue',
    tool: 'search_requests',
    args: () => ({ view: 'mine', sort: 'due', order: 'asc', limit: 30 }),
  },
  {
    name: 'request',
    title: 'Ticket',
    description: 'One ticket by number or id.',
    uri: 'sdp://request/{id}',
    tool: 'get_request',
    args: ({ id }) => ({ request_id: id }),
    complete: { id: (typed, services) => services.completions.tickets(typed) },
  },
  {
    name: 'solution',
    title: 'Article',
    description: 'One article of the knowledge base by number or id.',
    uri: 'sdp://solution/{id}',
    tool: 'get_solution',
    args: ({ id }) => ({ solution_id: id }),
  },
  {
    name: 'schema',
    title: 'Form of a module',
    description: 'Fields of a module: mandatory, additional, read-only.',
    uri: 'sdp://schema/{module}',
    tool: 'get_form_fields',
    args: ({ module }) => ({ module }),
    complete: { module: startingWith(Object.keys(recordModules)) },
  },
  {
    name: 'options',
    title: 'Values of a field',
    description: 'Values that a field takes on this site.',
    uri: 'sdp://options/{field}',
    tool: 'list_field_options',
    args: ({ field }) => ({ field }),
    complete: { field: startingWith(lookupFields) },
  },
]

const guides = [
  { name: 'search-guide', title: 'How to write search criteria', uri: 'sdp://guide/search', text: searchGuide },
  { name: 'error-guide', title: 'What errors mean', uri: 'sdp://guide/errors', text: errorGuide },
]

export function registerResources(mcp: McpServer, session: Session, services: Services): void {
  for (const { name, title, description, uri, tool, args, complete } of toolResources) {
    const metadata = { title, description, mimeType: 'text/markdown' }
    const read = async (asked: URL, variables: Record<string, string>, extra: Extra): Promise<ReadResourceResult> => {
      const { structuredContent } = await session.read(tool, args(variables), extra)
      return { contents: [{ uri: asked.href, mimeType: 'text/markdown', text: render(structuredContent) }] }
    }
    if (!uri.includes('{')) {
      mcp.registerResource(name, uri, metadata, (asked, extra) => read(asked, {}, extra))
      continue
    }
    const completions = Object.entries(complete ?? {}).map(([variable, suggest]) => [
      variable,
      (typed: string) => suggest(typed, services),
    ])
    const template = new ResourceTemplate(uri, { list: undefined, complete: Object.fromEntries(completions) })
    mcp.registerResource(name, template, metadata, (asked, variables, extra) => read(asked, single(variables), extra))
  }
  for (const { name, title, uri, text } of guides) {
    mcp.registerResource(name, uri, { title, mimeType: 'text/markdown' }, asked => ({
      contents: [{ uri: asked.href, mimeType: 'text/markdown', text }],
    }))
  }
}

/** Our templates have single values only, percent-encoded in the URI. */
function single(variables: Record<string, string | string[]>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(variables).map(([key, value]) => [
      key,
      decodeURIComponent(Array.isArray(value) ? (value[0] ?? '') : value),
    ]),
  )
}
