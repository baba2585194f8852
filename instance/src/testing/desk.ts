import { randomUUID } from 'node:crypto'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js'
import { type Simulator, type SimulatorOptions, startSimulator } from '@sdp-mcp/simulator'
import { pino } from 'pino'
import { Agent } from 'undici'
import { AuthorizationError, type ConnectionStatus, type InstanceContext, type TokenKeeper } from '../context.ts'
import { type Toolset, toolsets } from '../contract.ts'
import type { HttpClient } from '../http-client.ts'
import { exchange } from '../http-exchange.ts'
import type { Json } from '../sdp/json.ts'
import { buildServer, type SessionOptions, type ToolCallRecord } from '../server.ts'

/** For tests: a simulator, a person's context on it, and real MCP clients. */
export type Desk = AsyncDisposable & {
  simulator: Simulator
  /** The context of one person, connected at the simulator's accounts server. */
  context(user: string, more?: Partial<Omit<InstanceContext, 'tokens'>> & { scopes?: string[] }): Promise<TestContext>
  /** A session of a real MCP client on a server of ours. */
  connect(context: InstanceContext, session?: SessionOptions & { client?: ClientOptions }): Promise<Session>
}

export type TestContext = InstanceContext & { tokens: TestKeeper }
type ClientOptions = { elicitation?: (message: string) => 'yes' | 'no' }

export type Session = {
  client: Client
  calls: ToolCallRecord[]
  /** Calls a tool that must succeed. @returns its structured content */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into results of every shape
  ok(tool: string, args?: Json): Promise<any>
  /** Calls a tool that must fail. @returns what the model reads */
  fails(tool: string, args?: Json): Promise<string>
  call(tool: string, args?: Json): Promise<CallToolResult>
}

/** Starts a desk; ends with the test file. */
export async function startDesk(options: SimulatorOptions = {}): Promise<Desk> {
  const simulator = await startSimulator(options)
  const agent = new Agent({ keepAliveTimeout: 1_000 })
  const clients: Client[] = []
  const http: HttpClient = call => exchange(agent, call)

  return {
    simulator,
    async context(user, { scopes = everyScope, ...more } = {}) {
      const tokens = await connectedKeeper(simulator, user, scopes, http)
      const person = simulator.state.people.find(({ username }) => username === user)
      return {
        user: { id: randomUUID(), username: user, displayName: person?.name ?? user, email: person?.email ?? null },
        sdp: {
          dataCenter: 'US',
          portal: simulator.state.portals[0]?.name ?? 'itdesk',
          baseUrl: simulator.url,
          accountsUrl: simulator.url,
        },
        toolsets: [...toolsets] as Toolset[],
        readOnly: false,
        tokens,
        http,
        log: pino({ level: 'silent' }),
        now: options.now ?? Date.now,
        version: '0.0.0-test',
        ...more,
      }
    },
    async connect(context, { client: clientOptions, ...session } = {}) {
      const calls: ToolCallRecord[] = []
      const server = buildServer(context, { onToolCall: record => calls.push(record), ...session })
      const [near, far] = InMemoryTransport.createLinkedPair()
      const client = new Client(
        { name: 'test', version: '1' },
        { capabilities: clientOptions?.elicitation ? { elicitation: {} } : {} },
      )
      await answerElicitation(client, clientOptions?.elicitation)
      await Promise.all([server.connect(far), client.connect(near)])
      clients.push(client)
      // from then on the client checks every result against the published output schema
      await client.listTools()
      const call = async (tool: string, args: Json = {}) =>
        (await client.callTool({ name: tool, arguments: args })) as CallToolResult
      return {
        client,
        calls,
        ...outcomesOf(call),
      }
    },
    async [Symbol.asyncDispose]() {
      for (const client of clients) await client.close()
      await agent.close()
      await simulator.close()
    },
  }
}

/** The ways a test calls a tool, whatever carries the call. */
export function outcomesOf(call: Session['call']): Pick<Session, 'call' | 'ok' | 'fails'> {
  return {
    call,
    async ok(tool, args) {
      const result = await call(tool, args)
      if (result.isError) throw new Error(`${tool} failed: ${textOf(result)}`)
      return result.structuredContent
    },
    async fails(tool, args) {
      const result = await call(tool, args)
      if (!result.isError) throw new Error(`${tool} should fail: ${textOf(result)}`)
      return textOf(result)
    },
  }
}

async function answerElicitation(client: Client, answer: ClientOptions['elicitation']): Promise<void> {
  if (!answer) return
  const { ElicitRequestSchema } = await import('@modelcontextprotocol/sdk/types.js')
  client.setRequestHandler(ElicitRequestSchema, request =>
    answer(request.params.message) === 'yes' ? { action: 'accept', content: { confirm: true } } : { action: 'decline' },
  )
}

export function textOf(result: CallToolResult): string {
  return result.content.map(part => (part.type === 'text' ? part.text : `[${part.type}]`)).join('\n')
}

export const everyScope = [
  ...['requests', 'problems', 'changes', 'releases', 'projects', 'assets', 'cmdb', 'contracts', 'purchases'],
  ...['solutions', 'setup', 'users', 'general'],
].map(module => `SDPOnDemand.${module}.ALL`)

/** A keeper that holds its tokens in memory and counts what it does. */
export type TestKeeper = TokenKeeper & {
  minted: number
  invalidated: number
  current: string
  /** makes every call fail as if the grant were gone */
  lose(error: AuthorizationError): void
}

async function connectedKeeper(
  simulator: Simulator,
  user: string,
  scopes: string[],
  http: HttpClient,
): Promise<TestKeeper> {
  // a test file makes more connections than a person in ten minutes
  simulator.faults.set({ grantCodesPer10Minutes: 1_000, newRefreshTokensPer10Minutes: 1_000 })
  const grant = simulator.createGrantCode({ user, scopes })
  const client = simulator.clients.find(({ clientId }) => clientId === grant.clientId)
  const credentials = { client_id: grant.clientId, client_secret: client?.clientSecret ?? '' }

  async function mint(form: Record<string, string>): Promise<{ access: string; refresh: string }> {
    const { bytes } = await http({
      method: 'POST',
      url: `${simulator.url}/oauth/v2/token`,
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: new URLSearchParams({ ...form, ...credentials }).toString(),
      timeoutMs: 10_000,
      maxBytes: 64 * 1024,
    })
    const answer = JSON.parse(bytes.toString()) as Record<string, string>
    if (!answer.access_token) throw new AuthorizationError('unavailable', JSON.stringify(answer), 'look at the test')
    return { access: answer.access_token, refresh: answer.refresh_token ?? '' }
  }

  const first = await mint({ grant_type: 'authorization_code', code: grant.code })
  let lost: AuthorizationError | undefined
  const keeper: TestKeeper = {
    minted: 1,
    invalidated: 0,
    current: first.access,
    async accessToken() {
      if (lost) throw lost
      return keeper.current
    },
    async invalidate(refused) {
      keeper.invalidated++
      if (refused !== keeper.current) return
      keeper.minted++
      keeper.current = (await mint({ grant_type: 'refresh_token', refresh_token: first.refresh })).access
    },
    async status(): Promise<ConnectionStatus> {
      return {
        state: !lost || lost.kind === 'unavailable' ? 'connected' : lost.kind,
        scopes: lost ? [] : scopes,
        accessTokenExpiresAt: new Date(Date.now() + 3_600_000),
        lastRefreshedAt: new Date(),
        mintsInWindow: keeper.minted,
        reason: lost?.message ?? null,
      }
    },
    lose(error) {
      lost = error
    },
  }
  return keeper
}
