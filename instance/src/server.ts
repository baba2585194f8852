import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { CallToolRequestSchema, ErrorCode, ListToolsRequestSchema, McpError } from '@modelcontextprotocol/sdk/types.js'
import type { jsonSchemaValidator } from '@modelcontextprotocol/sdk/validation/types.js'
import { createClientLog } from './client-log.ts'
import type { InstanceContext } from './context.ts'
import { instructions } from './instructions.ts'
import { registerPrompts } from './prompts/register.ts'
import { registerResources } from './resources.ts'
import { isObject } from './sdp/json.ts'
import { buildServices, type Services } from './services.ts'
import { createSession, type SessionOptions } from './session.ts'

export { buildServices, type Services } from './services.ts'
export type { SessionOptions, ToolCallRecord } from './session.ts'

const sharedServices = new WeakMap<InstanceContext, Services>()

/**
 * One MCP server for one session. Cheap: what is heavy is shared by all sessions of the context, and the tools'
 * schemas are computed once. Sharing a server between sessions would send answers to the wrong client.
 */
export function buildServer(
  context: InstanceContext,
  options: SessionOptions = {},
  services = servicesOf(context),
): McpServer {
  const mcp = new McpServer(
    { name: 'sdp-mcp', title: 'ServiceDesk Plus', version: context.version },
    { instructions, jsonSchemaValidator: yesOrNo },
  )
  const session = createSession(context, services, mcp, { ...options, clientLog: createClientLog(mcp) })

  // Not by registerTool, which converts every schema again for each list.
  mcp.server.registerCapabilities({ tools: { listChanged: true } })
  mcp.server.setRequestHandler(ListToolsRequestSchema, async () => ({
    tools: (await session.offered()).map(tool => tool.published),
  }))
  mcp.server.setRequestHandler(CallToolRequestSchema, async (request, extra) => {
    const tool = await session.find(request.params.name)
    if (!tool) throw new McpError(ErrorCode.InvalidParams, session.absence(request.params.name))
    return session.run(tool, request.params.arguments, extra)
  })
  registerResources(mcp, session, services)
  registerPrompts(mcp, session, services)

  mcp.server.onclose = services.grants.onChange(() => {
    if (mcp.isConnected()) mcp.sendToolListChanged()
  })
  return mcp
}

/**
 * The only schema an instance has answers checked against is that of its own yes/no question (session.ts). The SDK's
 * default is a general validator for each session, which costs more memory than the rest of the session.
 */
const yesOrNo: jsonSchemaValidator = {
  getValidator: <T>() => {
    return (input: unknown) =>
      isObject(input) && ['boolean', 'undefined'].includes(typeof input.confirm)
        ? { valid: true, data: input as T, errorMessage: undefined }
        : { valid: false, data: undefined, errorMessage: 'confirm must be true or false' }
  },
}

/** The services that all sessions of a context share. */
export function servicesOf(context: InstanceContext): Services {
  const known = sharedServices.get(context)
  if (known) return known
  const built = buildServices(context)
  sharedServices.set(context, built)
  return built
}
