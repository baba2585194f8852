import type { ToolAnnotations } from '@modelcontextprotocol/sdk/types.js'
import { z } from 'zod'
import type { Toolset } from '../contract.ts'
import type { Sdp } from '../sdp/client.ts'
import { isObject, type Json } from '../sdp/json.ts'
import { closest } from '../sdp/similar.ts'
import type { Services } from '../services.ts'
import { type Outcome, ToolError } from './result.ts'

type Shape = Record<string, z.ZodType>

/** What a tool has at hand while it runs. */
export type ToolCall = Services & {
  sdp: Sdp
  signal: AbortSignal
  /** how the session's tools are narrowed, for get_my_context */
  session: {
    toolsets: readonly Toolset[]
    readOnly: boolean
    tools: readonly string[]
    /** what the granted scopes hide: full scope name to the tools that need it */
    missingScopes: Readonly<Record<string, readonly string[]>>
  }
  /** the person's time zone */
  zone(): Promise<string>
  progress(done: number, total: number, message: string): Promise<void>
  /** Asks the person through the client. `unsupported`: the client cannot ask. */
  ask(question: string): Promise<'yes' | 'no' | 'unsupported'>
}

export type ToolDefinition<I extends Shape> = {
  /** fixed once shipped */
  name: string
  title: string
  toolset: Toolset
  /** a second toolset the administrator must allow too */
  alsoNeeds?: Toolset
  /** one sentence of purpose, one of behaviour */
  description: string
  input: I
  /** shallow; core tools only */
  output?: Shape
  /** `write` changes something that can be changed back; `destructive` cannot be, or decides for others */
  effect: 'read' | 'write' | 'destructive'
  /** the same call twice leaves the same state; reads always are */
  idempotent?: boolean
  /** reaches a person outside the desk */
  openWorld?: boolean
  /** Zoho scopes without which the tool is not offered, e.g. `requests.READ` */
  scopes: string[]
  run(input: z.output<z.ZodObject<I>>, call: ToolCall): Promise<Outcome>
}

export type PublishedTool = {
  name: string
  title: string
  description: string
  inputSchema: { type: 'object' } & Json
  outputSchema?: { type: 'object' } & Json
  annotations: ToolAnnotations
}

export type Tool = {
  name: string
  toolset: Toolset
  alsoNeeds?: Toolset
  effect: 'read' | 'write' | 'destructive'
  scopes: string[]
  /** as tools/list shows it, computed once */
  published: PublishedTool
  /** lists that the output schema promises */
  requiredLists: readonly string[]
  /** @throws ToolError for input that does not fit, with all problems at once */
  run(args: unknown, call: ToolCall): Promise<Outcome>
}

export function defineTool<const I extends Shape>(definition: ToolDefinition<I>): Tool {
  const { name, toolset, alsoNeeds, effect, scopes } = definition
  const input = z.strictObject(definition.input)
  let published: PublishedTool | undefined
  const requiredLists = Object.entries(definition.output ?? {})
    .filter(([, schema]) => schema.def.type === 'array')
    .map(([key]) => key)
  return {
    name,
    toolset,
    alsoNeeds,
    effect,
    scopes,
    requiredLists,
    get published() {
      published ??= publish(definition, input)
      return published
    },
    async run(args, call) {
      return definition.run(parse(name, input, args), call)
    },
  }
}

function publish<I extends Shape>(definition: ToolDefinition<I>, input: z.ZodObject<I>): PublishedTool {
  const { effect, idempotent, openWorld } = definition
  return {
    name: definition.name,
    title: definition.title,
    description: definition.description,
    inputSchema: jsonSchema(input, 'input'),
    ...(definition.output ? { outputSchema: jsonSchema(z.looseObject(definition.output), 'output') } : {}),
    annotations: {
      readOnlyHint: effect === 'read',
      destructiveHint: effect === 'destructive',
      idempotentHint: effect === 'read' || idempotent === true,
      openWorldHint: openWorld === true,
    },
  }
}

function jsonSchema(schema: z.ZodType, io: 'input' | 'output'): { type: 'object' } & Json {
  return slim(z.toJSONSchema(schema, { io })) as { type: 'object' } & Json
}

/** Without what costs tokens and tells nothing: the dialect, the safe-integer bounds, "anything else goes". */
function slim(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(slim)
  if (!isObject(value)) return value
  const entries = Object.entries(value).filter(([key, item]) => {
    if (key === '$schema' || key === 'propertyNames') return false
    if ((key === 'minimum' || key === 'maximum') && !Number.isSafeInteger(item)) return false
    if ((key === 'minimum' || key === 'maximum') && Math.abs(item as number) === Number.MAX_SAFE_INTEGER) return false
    return !(key === 'additionalProperties' && isObject(item) && Object.keys(item).length === 0)
  })
  return Object.fromEntries(entries.map(([key, item]) => [key, slim(item)]))
}

function parse<I extends Shape>(tool: string, schema: z.ZodObject<I>, args: unknown): z.output<z.ZodObject<I>> {
  const given = isObject(args) ? lenient(schema, args) : (args ?? {})
  const parsed = schema.safeParse(given)
  if (parsed.success) return parsed.data
  const names = Object.keys(schema.shape)
  const problems = parsed.error.issues.flatMap(issue => {
    if (issue.code !== 'unrecognized_keys') {
      const what = /received undefined$/.test(issue.message)
        ? 'is missing'
        : /expected string, received number/.test(issue.message)
          ? 'give it as a string: a number this long loses digits'
          : issue.message
      return [`${issue.path.join('.') || 'input'}: ${what}`]
    }
    return issue.keys.map(key => {
      const close = closest(key, names, 1)[0]
      return `${[...issue.path, key].join('.')}: unknown${close ? `; did you mean ${close}?` : ''}`
    })
  })
  throw new ToolError(
    `The input of ${tool} does not fit; nothing was done.\n${problems.map(problem => `- ${problem}`).join('\n')}`,
    `Correct the input. ${tool} takes: ${names.join(', ')}.`,
    { fields: parsed.error.issues.map(issue => String(issue.path[0] ?? '')).filter(field => field !== '') },
  )
}

/**
 * Reads what models mistype without a second round: a number for an id, "20" for 20, one value for a list. Never an
 * id beyond 2^53 as a number: its digits are already lost.
 */
function lenient(schema: z.ZodObject<Shape>, args: Json): Json {
  const read = Object.entries(args)
    .filter(([, value]) => value !== null)
    .map(([given, value]) => {
      const key = alias(schema, args, given)
      const known = Object.hasOwn(schema.shape, key) ? schema.shape[key] : undefined
      const type = known && baseType(known)
      if (type === 'string' && typeof value === 'number' && Number.isSafeInteger(value)) return [key, String(value)]
      if (type === 'number' && typeof value === 'string' && /^-?\d{1,15}(\.\d+)?$/.test(value))
        return [key, Number(value)]
      if (type === 'boolean' && (value === 'true' || value === 'false')) return [key, value === 'true']
      if (type === 'array' && !Array.isArray(value)) return [key, oneOrMany(value)]
      return [key, value]
    })
  return Object.fromEntries(read)
}

/** A ticket is called request_id nearly everywhere: taken also where the parent may be something else. */
function alias(schema: z.ZodObject<Shape>, args: Json, key: string): string {
  const isMeant = key === 'request_id' && !('request_id' in schema.shape) && 'parent_id' in schema.shape
  return isMeant && !('parent_id' in args) ? 'parent_id' : key
}

function oneOrMany(value: unknown): unknown {
  if (typeof value === 'string' && value.trim().startsWith('[')) {
    try {
      return JSON.parse(value)
    } catch {
      return [value]
    }
  }
  return [value]
}

function baseType(schema: z.ZodType): string {
  const inner = (schema as { unwrap?: () => z.ZodType }).unwrap
  const { type } = schema.def
  return (type === 'optional' || type === 'default' || type === 'nullable') && inner
    ? baseType(inner.call(schema))
    : type
}
