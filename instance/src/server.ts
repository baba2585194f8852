import { randomBytes } from 'node:crypto'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import type { RequestHandlerExtra } from '@modelcontextprotocol/sdk/shared/protocol.js'
import {
  CallToolRequestSchema,
  type CallToolResult,
  ErrorCode,
  ListToolsRequestSchema,
  McpError,
  type ServerNotification,
  type ServerRequest,
} from '@modelcontextprotocol/sdk/types.js'
import type { InstanceContext } from './context.ts'
import type { Toolset } from './contract.ts'
import { instructions } from './instructions.ts'
import { buildServices, type Services } from './services.ts'
import { catalogue } from './tools/catalogue.ts'
import type { Tool, ToolCall } from './tools/define.ts'
import { describeFailure, success } from './tools/result.ts'
import { authorizationSteps, covers } from './tools/scopes.ts'

export { buildServices, type Services } from './services.ts'

/** What a session narrows by header or URL; it never widens what the administrator allows. */
export type SessionOptions = {
  toolsets?: Toolset[]
  readOnly?: boolean
  /** told after each tool call, for usage counting: no bodies, no tokens */
  onToolCall?: (record: ToolCallRecord) => void
}

export type ToolCallRecord = {
  tool: string
  /** the id or number the call was about, as the client gave it */
  target?: string
  /** `ok`, or the kind of failure */
  outcome: string
  durationMs: number
  sdpCalls: number
  requestId: string
}

const sharedServices = new WeakMap<InstanceContext, Services>()

/**
 * One MCP server for one session. Cheap: what is heavy is shared by all sessions of the context.
 *
 * Effective tools = toolsets the administrator allows, narrowed by the session, by read-only and by the granted Zoho
 * scopes. A tool outside of them does not exist for this session, it is not refused at run time.
 */
export function buildServer(
  context: InstanceContext,
  session: SessionOptions = {},
  services = servicesOf(context),
): McpServer {
  const mcp = new McpServer(
    { name: 'sdp-mcp', title: 'ServiceDesk Plus', version: context.version },
    { instructions, capabilities: { tools: { listChanged: true } } },
  )
  const toolsets = context.toolsets.filter(toolset => !session.toolsets || session.toolsets.includes(toolset))
  const readOnly = context.readOnly || session.readOnly === true
  const allowed = catalogue.filter(tool => toolsets.includes(tool.toolset) && !(readOnly && tool.effect !== 'read'))

  async function offered(): Promise<Tool[]> {
    const granted = await services.grants.scopes()
    return allowed.filter(tool => tool.scopes.every(scope => covers(granted, scope)))
  }

  mcp.server.setRequestHandler(ListToolsRequestSchema, async () => ({
    tools: (await offered()).map(tool => tool.published),
  }))

  mcp.server.setRequestHandler(CallToolRequestSchema, async (request, extra): Promise<CallToolResult> => {
    const tools = await offered()
    const tool = tools.find(({ name }) => name === request.params.name)
    if (!tool) throw new McpError(ErrorCode.InvalidParams, absence(request.params.name))
    return run(tool, tools, request.params.arguments, extra)
  })

  async function run(
    tool: Tool,
    tools: Tool[],
    args: unknown,
    extra: RequestHandlerExtra<ServerRequest, ServerNotification>,
  ): Promise<CallToolResult> {
    const startedAt = performance.now()
    const requestId = randomBytes(6).toString('hex')
    let sdpCalls = 0
    let outcome = 'ok'
    const sdp = services.client.bind({ signal: extra.signal, onRequest: () => sdpCalls++ })
    const call: ToolCall = {
      ...services,
      sdp,
      signal: extra.signal,
      session: { toolsets, readOnly, tools: tools.map(({ name }) => name) },
      zone: async () => (await services.site.portal(sdp)).timeZone,
      progress: (done, total, message) => progress(extra, done, total, message),
      ask: question => ask(mcp, question, extra.signal),
    }
    try {
      return success(await tool.run(args, call), tool.requiredLists)
    } catch (error) {
      const failure = describeFailure(error, {
        authorizationSteps: authorizationSteps({ ...context, toolsets, readOnly }),
        isWrite: tool.effect !== 'read',
        reference: requestId,
      })
      outcome = failure.kind
      if (outcome === 'internal')
        context.log.error({ event: 'tool.broken', tool: tool.name, requestId, err: error }, 'a tool failed')
      return { content: [{ type: 'text', text: failure.text }], isError: true }
    } finally {
      const durationMs = Math.round(performance.now() - startedAt)
      const record = { tool: tool.name, target: target(args), outcome, durationMs, sdpCalls, requestId }
      context.log.info({ event: 'tool.called', username: context.user.username, ...record }, 'tool called')
      session.onToolCall?.(record)
    }
  }

  /** Says why a tool is missing: unknown, or known but not for this session. */
  function absence(name: string): string {
    const known = catalogue.find(tool => tool.name === name)
    if (!known) return `Unknown tool "${name}".`
    if (!context.toolsets.includes(known.toolset)) {
      return `The tool "${name}" belongs to the toolset "${known.toolset}", which the administrator has not enabled for this user.`
    }
    if (!toolsets.includes(known.toolset)) return `The tool "${name}" is switched off for this session.`
    if (readOnly && known.effect !== 'read') return `The tool "${name}" writes; this session is read-only.`
    return `The tool "${name}" needs the Zoho scopes ${known.scopes.join(', ')}, which were not granted.`
  }

  const unsubscribe = services.grants.onChange(() => {
    if (mcp.isConnected()) mcp.sendToolListChanged()
  })
  mcp.server.onclose = unsubscribe
  return mcp
}

/** The services that all sessions of a context share. */
export function servicesOf(context: InstanceContext): Services {
  const known = sharedServices.get(context)
  if (known) return known
  const built = buildServices(context)
  sharedServices.set(context, built)
  return built
}

async function progress(
  extra: RequestHandlerExtra<ServerRequest, ServerNotification>,
  done: number,
  total: number,
  message: string,
): Promise<void> {
  const progressToken = extra._meta?.progressToken
  if (progressToken === undefined) return
  await extra.sendNotification({
    method: 'notifications/progress',
    params: { progressToken, progress: done, total, message },
  })
}

/** Elicitation with one yes/no field; a client without it cannot ask. */
async function ask(mcp: McpServer, question: string, signal: AbortSignal): Promise<'yes' | 'no' | 'unsupported'> {
  if (!mcp.server.getClientCapabilities()?.elicitation) return 'unsupported'
  const answer = await mcp.server.elicitInput(
    {
      message: question,
      requestedSchema: {
        type: 'object',
        properties: { confirm: { type: 'boolean', title: 'Go ahead', default: false } },
        required: ['confirm'],
      },
    },
    { signal, timeout: 10 * 60_000 },
  )
  return answer.action === 'accept' && answer.content?.confirm === true ? 'yes' : 'no'
}

const targets = [
  'request_id',
  'task_id',
  'problem_id',
  'change_id',
  'release_id',
  'asset_id',
  'project_id',
  'solution_id',
  'id',
]

function target(args: unknown): string | undefined {
  const given = args as Record<string, unknown> | undefined
  const value = targets.map(key => given?.[key]).find(found => typeof found === 'string' || typeof found === 'number')
  return value === undefined ? undefined : String(value).slice(0, 60)
}
