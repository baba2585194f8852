import { randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { Server } from '@modelcontextprotocol/sdk/server/index.js'
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import type { RequestHandlerExtra } from '@modelcontextprotocol/sdk/shared/protocol.js'
import {
  CallToolRequestSchema,
  CompleteRequestSchema,
  type ContentBlock,
  CreateMessageResultSchema,
  ElicitResultSchema,
  GetPromptRequestSchema,
  type JSONRPCMessage,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListToolsRequestSchema,
  ReadResourceRequestSchema,
  type ServerNotification,
  type ServerRequest,
  SetLevelRequestSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema,
} from '@modelcontextprotocol/sdk/types.js'
import { openDoor } from '../bench/proxy/door.ts'
import { patternAt } from './pattern.ts'

/**
 * A sample server on the official SDK, behind the door of an instance: everything that the conformance suite asks a server
 * for, by the names its requirements give, over both transports. Without a boot line (`node sample-instance.ts <port>`) it
 * serves everybody. Beside MCP:
 *
 *     POST .../mcp?bytes=N    streams N bytes, those of {@link patternAt}
 *     POST .../mcp?mark=M     is never answered
 *     GET  .../mcp?closed=M   when the exchange that carried ?mark=M was closed (µs of the monotonic clock), or null
 */

const door = await openDoor(Number(process.argv[2]))
type Extra = RequestHandlerExtra<ServerRequest, ServerNotification>

// one red pixel, and a sound of no length
const pixel = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=='
const silence = 'UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA='

const text = (value: string): ContentBlock => ({ type: 'text', text: value })
const image: ContentBlock = { type: 'image', data: pixel, mimeType: 'image/png' }
const resource = (uri: string, mimeType: string, content: string): ContentBlock => ({
  type: 'resource',
  resource: { uri, mimeType, text: content },
})
const nothing = { type: 'object' as const, properties: {} }

type Tool = {
  inputSchema?: Record<string, unknown>
  run(input: Record<string, unknown>, extra: Extra): ContentBlock[] | Promise<ContentBlock[]>
}

const log = (extra: Extra, data: string) =>
  extra.sendNotification({ method: 'notifications/message', params: { level: 'info', data } })

async function progress(extra: Extra, value: number): Promise<void> {
  const progressToken = extra._meta?.progressToken
  if (progressToken === undefined) return
  await extra.sendNotification({
    method: 'notifications/progress',
    params: { progressToken, progress: value, total: 100, message: `${value} of 100` },
  })
}

async function elicit(extra: Extra, message: string, properties: Record<string, unknown>, required: string[] = []) {
  const requestedSchema = { type: 'object', properties, required }
  return extra.sendRequest(
    { method: 'elicitation/create', params: { mode: 'form', message, requestedSchema } } as ServerRequest,
    ElicitResultSchema,
  )
}

async function elicitAll(extra: Extra, properties: Record<string, unknown>) {
  const { action, content } = await elicit(extra, 'Please look through these fields', properties)
  return [text(`Elicitation completed: action=${action}, content=${JSON.stringify(content ?? {})}`)]
}

const choices = (...titles: string[]) => titles.map((title, index) => ({ const: `value${index + 1}`, title }))

const tools: Record<string, Tool> = {
  test_simple_text: { run: () => [text('This is a simple text response for testing.')] },
  test_image_content: { run: () => [image] },
  test_audio_content: { run: () => [{ type: 'audio', data: silence, mimeType: 'audio/wav' }] },
  test_embedded_resource: {
    run: () => [resource('test://embedded-resource', 'text/plain', 'This is an embedded resource content.')],
  },
  test_multiple_content_types: {
    run: () => [
      text('Multiple content types test:'),
      image,
      resource('test://mixed-content-resource', 'application/json', '{"test":"data","value":123}'),
    ],
  },
  test_tool_with_logging: {
    async run(_input, extra) {
      for (const line of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
        await log(extra, line)
        await delay(50)
      }
      return [text('Tool with logging executed')]
    },
  },
  test_tool_with_progress: {
    async run(_input, extra) {
      for (const value of [0, 50, 100]) {
        await progress(extra, value)
        await delay(50)
      }
      return [text('Tool with progress executed')]
    },
  },
  test_error_handling: {
    run() {
      throw new Error('This tool intentionally returns an error for testing')
    },
  },
  test_sampling: {
    inputSchema: { type: 'object', properties: { prompt: { type: 'string' } }, required: ['prompt'] },
    async run({ prompt }, extra) {
      const messages = [{ role: 'user' as const, content: { type: 'text' as const, text: String(prompt) } }]
      const { content } = await extra.sendRequest(
        { method: 'sampling/createMessage', params: { messages, maxTokens: 100 } },
        CreateMessageResultSchema,
      )
      return [text(`LLM response: ${content.type === 'text' ? content.text : ''}`)]
    },
  },
  test_elicitation: {
    inputSchema: { type: 'object', properties: { message: { type: 'string' } }, required: ['message'] },
    async run({ message }, extra) {
      const field = (description: string) => ({ type: 'string', description })
      const properties = { username: field("User's response"), email: field("User's email address") }
      const { action, content } = await elicit(extra, String(message), properties, ['username', 'email'])
      return [text(`User response: action=${action}, content=${JSON.stringify(content ?? {})}`)]
    },
  },
  test_elicitation_sep1034_defaults: {
    run: (_input, extra) =>
      elicitAll(extra, {
        name: { type: 'string', default: 'John Doe' },
        age: { type: 'integer', default: 30 },
        score: { type: 'number', default: 95.5 },
        status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
        verified: { type: 'boolean', default: true },
      }),
  },
  test_elicitation_sep1330_enums: {
    run: (_input, extra) =>
      elicitAll(extra, {
        untitledSingle: { type: 'string', enum: ['option1', 'option2', 'option3'] },
        titledSingle: { type: 'string', oneOf: choices('First Option', 'Second Option', 'Third Option') },
        legacyEnum: {
          type: 'string',
          enum: ['opt1', 'opt2', 'opt3'],
          enumNames: ['Option One', 'Option Two', 'Option Three'],
        },
        untitledMulti: { type: 'array', items: { type: 'string', enum: ['option1', 'option2', 'option3'] } },
        titledMulti: { type: 'array', items: { anyOf: choices('First Choice', 'Second Choice', 'Third Choice') } },
      }),
  },
  json_schema_2020_12_tool: {
    inputSchema: {
      $schema: 'https://json-schema.org/draft/2020-12/schema',
      type: 'object',
      $defs: { address: { type: 'object', properties: { street: { type: 'string' }, city: { type: 'string' } } } },
      properties: { name: { type: 'string' }, address: { $ref: '#/$defs/address' } },
      additionalProperties: false,
    },
    run: input => [text(JSON.stringify(input))],
  },
  test_reconnection: {
    async run(_input, extra) {
      // the client comes back with Last-Event-ID, and finds the answer
      extra.closeSSEStream?.()
      await delay(100)
      return [text('Reconnection test completed successfully')]
    },
  },
}

const prompts = [
  { name: 'test_simple_prompt', description: 'Without arguments' },
  {
    name: 'test_prompt_with_arguments',
    description: 'With two arguments',
    arguments: ['arg1', 'arg2'].map(name => ({ name, description: `The argument ${name}`, required: true })),
  },
  {
    name: 'test_prompt_with_embedded_resource',
    description: 'With a resource',
    arguments: [{ name: 'resourceUri', description: 'The resource to embed', required: true }],
  },
  { name: 'test_prompt_with_image', description: 'With an image' },
]

function prompt(name: string, given: Record<string, string>): ContentBlock[] {
  switch (name) {
    case 'test_simple_prompt':
      return [text('This is a simple prompt for testing.')]
    case 'test_prompt_with_arguments':
      return [text(`Prompt with arguments: arg1='${given.arg1}', arg2='${given.arg2}'`)]
    case 'test_prompt_with_embedded_resource':
      return [
        resource(given.resourceUri ?? '', 'text/plain', 'Embedded resource content for testing.'),
        text('Please process the embedded resource above.'),
      ]
    case 'test_prompt_with_image':
      return [image, text('Please analyze the image above.')]
    default:
      throw new Error(`There is no prompt "${name}".`)
  }
}

const resources = [
  { uri: 'test://static-text', name: 'static text', description: 'A text', mimeType: 'text/plain' },
  { uri: 'test://static-binary', name: 'static binary', description: 'An image', mimeType: 'image/png' },
  { uri: 'test://watched-resource', name: 'watched', description: 'To subscribe to', mimeType: 'text/plain' },
]

function read(uri: string) {
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1]
  if (id !== undefined)
    return {
      uri,
      mimeType: 'application/json',
      text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }),
    }
  if (uri === 'test://static-binary') return { uri, mimeType: 'image/png', blob: pixel }
  if (uri === 'test://static-text')
    return { uri, mimeType: 'text/plain', text: 'This is the content of the static text resource.' }
  if (uri === 'test://watched-resource') return { uri, mimeType: 'text/plain', text: 'Watched.' }
  throw new Error(`There is no resource "${uri}".`)
}

function buildServer(): Server {
  const server = new Server(
    { name: 'sample-instance', version: '1.0.0' },
    { capabilities: { tools: {}, resources: { subscribe: true }, prompts: {}, logging: {}, completions: {} } },
  )
  server.setRequestHandler(ListToolsRequestSchema, () => ({
    tools: Object.entries(tools).map(([name, { inputSchema }]) => ({
      name,
      description: `For the conformance suite: ${name}`,
      inputSchema: (inputSchema ?? nothing) as typeof nothing,
    })),
  }))
  server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => {
    const tool = tools[params.name]
    if (!tool) throw new Error(`There is no tool "${params.name}".`)
    try {
      return { content: await tool.run(params.arguments ?? {}, extra) }
    } catch (error) {
      return { isError: true, content: [text((error as Error).message)] }
    }
  })
  server.setRequestHandler(ListPromptsRequestSchema, () => ({ prompts }))
  server.setRequestHandler(GetPromptRequestSchema, ({ params }) => ({
    messages: prompt(params.name, params.arguments ?? {}).map(content => ({ role: 'user' as const, content })),
  }))
  server.setRequestHandler(ListResourcesRequestSchema, () => ({ resources }))
  server.setRequestHandler(ListResourceTemplatesRequestSchema, () => ({
    resourceTemplates: [{ uriTemplate: 'test://template/{id}/data', name: 'template', mimeType: 'application/json' }],
  }))
  server.setRequestHandler(ReadResourceRequestSchema, ({ params }) => ({ contents: [read(params.uri)] }))
  server.setRequestHandler(SubscribeRequestSchema, () => ({}))
  server.setRequestHandler(UnsubscribeRequestSchema, () => ({}))
  server.setRequestHandler(SetLevelRequestSchema, () => ({}))
  server.setRequestHandler(CompleteRequestSchema, () => ({ completion: { values: ['paris', 'park', 'party'] } }))
  return server
}

/** Keeps everything: a run is short. */
function eventStore() {
  const events: { id: string; stream: string; message: JSONRPCMessage }[] = []
  return {
    async storeEvent(stream: string, message: JSONRPCMessage) {
      const id = `${stream}_${events.length}`
      events.push({ id, stream, message })
      return id
    },
    async replayEventsAfter(last: string, { send }: { send: (id: string, message: JSONRPCMessage) => Promise<void> }) {
      const at = events.findIndex(({ id }) => id === last)
      const stream = events[at]?.stream ?? ''
      // an event without a message primes the client with an id, and is not sent again
      for (const event of events.slice(at + 1))
        if (event.stream === stream && Object.keys(event.message).length > 0) await send(event.id, event.message)
      return stream
    },
  }
}

const sessions = new Map<string, StreamableHTTPServerTransport>()
const legacySessions = new Map<string, SSEServerTransport>()
const closedAt = new Map<string, number>()

/** @returns false: it is MCP */
function answerBesides(query: URLSearchParams, response: ServerResponse): boolean {
  const [bytes, mark, closed] = ['bytes', 'mark', 'closed'].map(name => query.get(name))
  if (bytes) streamBytes(response, Number(bytes))
  else if (mark) response.once('close', () => closedAt.set(mark, Number(process.hrtime.bigint() / 1000n)))
  else if (closed) response.end(JSON.stringify(closedAt.get(closed) ?? null))
  else return false
  return true
}

function streamBytes(response: ServerResponse, bytes: number): void {
  let sent = 0
  const more = () => {
    while (sent < bytes) {
      const part = patternAt(sent, Math.min(64 * 1024, bytes - sent))
      sent += part.length
      if (!response.write(part)) return void response.once('drain', more)
    }
    response.end()
  }
  response.writeHead(200, { 'content-type': 'application/octet-stream' })
  more()
}

async function serveLegacy(request: IncomingMessage, response: ServerResponse, query: URLSearchParams): Promise<void> {
  const known = legacySessions.get(query.get('sessionId') ?? '')
  if (request.method === 'POST') {
    if (known) await known.handlePostMessage(request, response)
    else response.writeHead(404).end()
    return
  }
  const prefix = String(request.headers['x-forwarded-prefix'] ?? '')
  const transport = new SSEServerTransport(`${prefix}/messages`, response)
  legacySessions.set(transport.sessionId, transport)
  response.once('close', () => legacySessions.delete(transport.sessionId))
  await buildServer().connect(transport)
}

async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (door.answers(request, response)) return
  if (!door.admits(request)) return void response.writeHead(401).end()
  const [path = '', search = ''] = request.url!.split('?')
  const query = new URLSearchParams(search)
  if (answerBesides(query, response)) return void request.resume()
  if (/^\/(sse|messages)$/.test(path)) return serveLegacy(request, response, query)
  const known = sessions.get(String(request.headers['mcp-session-id']))
  if (known) return known.handleRequest(request, response)
  if (request.headers['mcp-session-id'] !== undefined) return void response.writeHead(404).end()
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    eventStore: eventStore(),
    retryInterval: 500,
    enableDnsRebindingProtection: true,
    allowedHosts: [`127.0.0.1:${door.port}`, `localhost:${door.port}`],
    allowedOrigins: [
      'http://localhost',
      'http://127.0.0.1',
      `http://localhost:${door.port}`,
      `http://127.0.0.1:${door.port}`,
    ],
    onsessioninitialized: id => void sessions.set(id, transport),
  })
  await buildServer().connect(transport)
  await transport.handleRequest(request, response)
}

createServer((request, response) => {
  serve(request, response).catch(error => {
    process.stderr.write(`${error}\n`)
    response.destroy()
  })
}).listen(door.port, door.host)
