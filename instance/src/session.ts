import { randomUUID } from 'node:crypto'
import type { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import type { RequestHandlerExtra } from '@modelcontextprotocol/sdk/shared/protocol.js'
import type {
  CallToolResult,
  LoggingLevel,
  ServerNotification,
  ServerRequest,
} from '@modelcontextprotocol/sdk/types.js'
import type { ClientLog } from './client-log.ts'
import type { InstanceContext } from './context.ts'
import type { Toolset } from './contract.ts'
import { cut } from './cut.ts'
import type { Services } from './services.ts'
import { catalogue } from './tools/catalogue.ts'
import type { Tool, ToolCall } from './tools/define.ts'
import { describeFailure, type Outcome, success } from './tools/result.ts'
import { authorizationSteps, covers } from './tools/scopes.ts'

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

export type Extra = RequestHandlerExtra<ServerRequest, ServerNotification>

/** One client's view of the tools: which there are, and running them. */
export interface Session {
  /** The tools of this session, as granted at the moment. */
  offered(): Promise<readonly Tool[]>
  /** One of these tools; undefined when it is not among them. */
  find(name: string): Promise<Tool | undefined>
  /** Runs a tool for a client; never throws, failures are results. */
  run(tool: Tool, args: unknown, extra: Extra): Promise<CallToolResult>
  /** Runs a tool on behalf of a resource or a prompt. @throws Error with the text a model can act on */
  read(toolName: string, args: unknown, extra: Pick<Extra, 'signal'>): Promise<CallToolResult>
  /** Whether a tool is within the session's toolsets, whatever scopes are granted. */
  mayOffer(name: string): boolean
  /** Says why a tool is missing: unknown, or known but not for this session. */
  absence(name: string): string
}

/**
 * Effective tools = toolsets the administrator allows, narrowed by the session, by read-only and by the granted Zoho
 * scopes. A tool outside of them does not exist for this session; it is not refused at run time.
 */
export function createSession(
  context: InstanceContext,
  services: Services,
  mcp: McpServer,
  options: SessionOptions & { clientLog: ClientLog },
): Session {
  const toolsets = context.toolsets.filter(toolset => !options.toolsets || options.toolsets.includes(toolset))
  const readOnly = context.readOnly || options.readOnly === true
  const isAllowed = ({ toolset, alsoNeeds }: Tool, by: readonly Toolset[]) =>
    by.includes(toolset) && (alsoNeeds === undefined || by.includes(alsoNeeds))
  const allowed = catalogue.filter(tool => isAllowed(tool, toolsets) && !(readOnly && tool.effect !== 'read'))

  let judged: { granted: readonly string[]; offered: ReadonlyMap<string, Tool>; call: ToolCall['session'] } | undefined

  /** What the granted scopes leave of the tools; worked out again when they were read again. */
  async function judge(): Promise<NonNullable<typeof judged>> {
    const granted = await services.grants.scopes()
    if (judged?.granted !== granted) {
      const covered = allowed.filter(tool => tool.scopes.every(scope => covers(granted, scope)))
      const offered = new Map(covered.map(tool => [tool.name, tool]))
      const tools = [...offered.keys()]
      judged = { granted, offered, call: { toolsets, readOnly, tools, missingScopes: missingScopes(granted) } }
    }
    return judged
  }

  function missingScopes(granted: readonly string[]): Record<string, string[]> {
    const missing: Record<string, string[]> = {}
    for (const { name, scopes } of allowed)
      for (const scope of scopes.filter(needed => !covers(granted, needed))) {
        const full = `SDPOnDemand.${scope}`
        missing[full] = [...(missing[full] ?? []), name]
      }
    return missing
  }

  /** Runs a tool once, with everything it needs, and shows its outcome; logs and counts it whatever happens. */
  async function perform(
    tool: Tool,
    args: unknown,
    extra: Partial<Extra> & Pick<Extra, 'signal'>,
    show: (outcome: Outcome) => CallToolResult,
  ): Promise<CallToolResult> {
    const startedAt = performance.now()
    const id = randomUUID()
    const requestId = id.slice(0, 8) + id.slice(9, 13)
    let sdpCalls = 0
    let outcome = 'ok'
    const sdp = services.client.bind({ signal: extra.signal, onRequest: () => sdpCalls++ })
    const call: ToolCall = {
      ...services,
      sdp,
      signal: extra.signal,
      session: (await judge()).call,
      zone: async () => (await services.site.portal(sdp)).timeZone,
      progress: (done, total, message) => progress(extra, done, total, message),
      ask: question => ask(mcp, question, extra.signal),
    }
    try {
      return show(await tool.run(args, call))
    } catch (error) {
      const failure = describeFailure(error, {
        authorizationSteps: authorizationSteps({ ...context, toolsets, readOnly }),
        isWrite: tool.effect !== 'read',
        reference: requestId,
      })
      outcome = failure.kind
      if (outcome === 'internal') {
        context.log.error({ tool: tool.name, requestId, err: error }, 'tool.broken')
      }
      throw new ToolFailure(failure.text)
    } finally {
      const durationMs = Math.round(performance.now() - startedAt)
      const record = { tool: tool.name, target: target(args), outcome, durationMs, sdpCalls, requestId }
      context.log.info(record, 'tool.called')
      options.onToolCall?.(record)
      await options.clientLog.tell(extra, severityOf(outcome), { event: 'tool.called', ...record })
    }
  }

  function absence(name: string): string {
    const known = catalogue.find(tool => tool.name === name)
    if (!known) return `Unknown tool "${name}".`
    if (!isAllowed(known, context.toolsets)) {
      const needed = [known.toolset, known.alsoNeeds].filter(toolset => toolset !== undefined).join('" and "')
      return `The tool "${name}" needs the toolset "${needed}", which the administrator has not enabled for this user.`
    }
    if (!isAllowed(known, toolsets)) return `The tool "${name}" is switched off for this session.`
    if (readOnly && known.effect !== 'read') return `The tool "${name}" writes; this session is read-only.`
    return `The tool "${name}" needs the Zoho scopes ${known.scopes.join(', ')}, which were not granted.`
  }

  return {
    offered: async () => [...(await judge()).offered.values()],
    find: async name => (await judge()).offered.get(name),
    mayOffer: name => allowed.some(tool => tool.name === name),
    absence,
    async run(tool, args, extra) {
      try {
        const result = await perform(tool, args, extra, shown => success(shown, tool.requiredLists))
        return knowsLinks(extra) ? result : withoutLinks(result)
      } catch (error) {
        if (!(error instanceof ToolFailure)) throw error
        return { content: [{ type: 'text', text: error.message }], isError: true }
      }
    },
    async read(toolName, args, extra) {
      const tool = (await judge()).offered.get(toolName)
      if (!tool) throw new ToolFailure(absence(toolName))
      return perform(tool, args, extra, outcome => success(outcome))
    },
  }
}

/**
 * Clients of protocol versions before 2025-06-18 refuse a whole result with a resource link in it. Later ones say
 * their version in a header; without headers (stdio) the client runs beside us and is taken to be current.
 */
function knowsLinks({ requestInfo }: Extra): boolean {
  if (!requestInfo) return true
  const version = requestInfo.headers['mcp-protocol-version']
  return typeof version === 'string' && version >= '2025-06-18'
}

function withoutLinks(result: CallToolResult): CallToolResult {
  return { ...result, content: result.content.filter(({ type }) => type !== 'resource_link') }
}

/** What a client that asked for log messages is told of a call. */
function severityOf(outcome: string): LoggingLevel {
  if (outcome === 'ok') return 'debug'
  if (outcome === 'internal') return 'error'
  return ['down', 'limited', 'drift', 'indeterminate', 'unavailable'].includes(outcome) ? 'warning' : 'info'
}

/** A failure already put into words for the model. */
export class ToolFailure extends Error {}

async function progress(extra: Partial<Extra>, done: number, total: number, message: string): Promise<void> {
  const progressToken = extra._meta?.progressToken
  if (progressToken === undefined) return
  await extra.sendNotification?.({
    method: 'notifications/progress',
    params: { progressToken, progress: done, total, message },
  })
}

const askedForMs = 10 * 60_000

/** Elicitation with one yes/no field; a client without it cannot ask. */
async function ask(mcp: McpServer, question: string, signal: AbortSignal): Promise<'yes' | 'no' | 'unsupported'> {
  if (!mcp.server.getClientCapabilities()?.elicitation) return 'unsupported'
  const requestedSchema = {
    type: 'object' as const,
    properties: { confirm: { type: 'boolean' as const, title: 'Go ahead', default: false } },
    required: ['confirm'],
  }
  let answer: Awaited<ReturnType<typeof mcp.server.elicitInput>>
  try {
    answer = await mcp.server.elicitInput({ message: question, requestedSchema }, { signal, timeout: askedForMs })
  } catch (error) {
    if (signal.aborted) throw error
    // it said that it can ask and then did not, or nobody answered: the preview is left
    return 'unsupported'
  }
  return answer.action === 'accept' && answer.content?.confirm === true ? 'yes' : 'no'
}

const targets = [
  ...['request_id', 'parent_id', 'task_id', 'problem_id', 'change_id', 'release_id', 'asset_id', 'ci_id'],
  ...['project_id', 'solution_id', 'contract_id', 'purchase_order_id', 'approval_id'],
]

function target(args: unknown): string | undefined {
  const given = args as Record<string, unknown> | undefined
  const value = targets.map(key => given?.[key]).find(found => typeof found === 'string' || typeof found === 'number')
  return value === undefined ? undefined : cut(String(value).toWellFormed(), 60)
}
