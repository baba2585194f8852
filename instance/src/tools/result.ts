import type { CallToolResult, ContentBlock } from '@modelcontextprotocol/sdk/types.js'
import { AuthorizationError } from '../context.ts'
import { SdpError } from '../sdp/errors.ts'
import { isObject, type Json, setOwn } from '../sdp/json.ts'
import { DateError } from './time.ts'

/**
 * What a tool hands back. `data` is shown to the model as structured content, so it is compact, with Markdown strings
 * inside and without nulls; clients that know no structured content read the same as text.
 */
export type Outcome = {
  data: Json
  /** images and links beside the data */
  content?: ContentBlock[]
  /** how to get what the budget cut away, e.g. "ask for page 2" */
  rest?: string
  /** `large` for one long text the person asked for */
  budget?: 'normal' | 'large'
}

/** A result above about 25k tokens never reaches the model; these stay far below. */
export const budgetTokens = { normal: 6_000, large: 9_500 } as const

/** A rough count that errs high: four ASCII characters a token, other scripts about one and a half. */
export function estimateTokens(text: string): number {
  let others = 0
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    if ((code < 0x20 && code !== 0x0a) || code > 0x7e) others++
  }
  return Math.ceil((text.length - others) / 4 + others / 1.5)
}

/** The tool result for a success: nulls removed, cut to the budget. `requiredLists` are shown even when empty. */
export function success(outcome: Outcome, requiredLists: readonly string[] = []): CallToolResult {
  const limit = budgetTokens[outcome.budget ?? 'normal']
  const kept = (compact(outcome.data) ?? {}) as Json
  // an empty list that the output schema promises is an answer
  for (const key of requiredLists) kept[key] ??= []
  const data = cutToBudget(kept, limit, outcome.rest)
  const content: ContentBlock[] = [{ type: 'text', text: render(data) }, ...(outcome.content ?? [])]
  return { content, structuredContent: data }
}

/** Without null, undefined, empty strings, empty lists and empty objects. `false` and `0` stay. */
export function compact(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(compact).filter(item => item !== undefined)
  if (!isObject(value)) return value === null || value === '' ? undefined : value
  let kept: Json | undefined
  // every result is walked by this: without lists of names, and without a function for each object
  for (const key in value) {
    const left = compact(value[key])
    if (left === undefined || (Array.isArray(left) && left.length === 0)) continue
    kept ??= {}
    setOwn(kept, key, left)
  }
  return kept
}

/** Lists that must be there even when empty, because "none" is the answer. */
export function orNone<T>(list: T[], none = 'none'): T[] | string {
  return list.length > 0 ? list : none
}

type Holder = { holder: Json | unknown[]; key: string | number; path: string; size: number }

/**
 * Cuts data to a budget: the largest part goes first, lists at row borders, texts with a mark that says how much is
 * shown and how to get the rest.
 */
export function cutToBudget(data: Json, limit: number, rest = 'narrow the question to get the rest'): Json {
  const text = JSON.stringify(data)
  // no text is estimated at more than this, so most need not be counted
  if (Math.ceil(text.length / 1.5) <= limit || estimateTokens(text) <= limit) return data
  const copy = structuredClone(data)
  const cuts = new Map<string, string>()
  // each round removes a fifth or more of the largest part, so this ends soon
  for (let round = 0; round < 200; round++) {
    if (estimateTokens(JSON.stringify(copy)) + 40 * cuts.size + 20 <= limit) break
    const largest = parts(copy).sort((a, b) => b.size - a.size)[0]
    if (!largest) break
    shrink(largest, data, cuts, rest)
  }
  return { ...copy, cut: [...cuts.values()] }
}

/** Strings over 400 characters and lists of more than one row, with their sizes. */
function parts(value: unknown, path = ''): Holder[] {
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([name, item]) => {
    const key = Array.isArray(value) ? Number(name) : name
    const here = path === '' ? name : `${path}.${name}`
    const own = { holder: value as Json | unknown[], key, path: here }
    if (typeof item === 'string') return item.length > 400 ? [{ ...own, size: estimateTokens(item) }] : []
    const inner = parts(item, here)
    // rows are dropped before the texts inside them are cut to pieces
    return Array.isArray(item) && item.length > 1
      ? [
          { ...own, size: estimateTokens(JSON.stringify(item)) },
          ...inner.map(part => ({ ...part, size: part.size / 2 })),
        ]
      : inner
  })
}

function shrink({ holder, key, path }: Holder, original: Json, cuts: Map<string, string>, rest: string): void {
  const value = (holder as Record<string | number, unknown>)[key]
  const name = path.replace(/\.\d+(?=\.|$)/g, '')
  if (Array.isArray(value)) {
    value.length = Math.max(1, Math.floor(value.length * 0.8))
    const whole = at(original, path)
    const total = Array.isArray(whole) ? whole.length : value.length
    cuts.set(path, `${name}: ${value.length} of ${total} rows shown; ${rest}`)
    return
  }
  const text = value as string
  const shown = text.replace(/\n\u2026 \[cut\](<\/untrusted>)?$/, '')
  const kept = shown.slice(0, Math.floor(shown.length * 0.7)).replace(/[\ud800-\udbff]$/, '')
  const tail = text.endsWith('</untrusted>') ? '</untrusted>' : ''
  ;(holder as Record<string | number, unknown>)[key] = `${kept}\n… [cut]${tail}`
  const whole = at(original, path)
  cuts.set(
    path,
    `${name}: ${kept.length} of ${typeof whole === 'string' ? whole.length : '?'} characters shown; ${rest}`,
  )
}

function at(value: unknown, path: string): unknown {
  return path
    .split('.')
    .reduce<unknown>((current, key) => (current as Record<string, unknown> | undefined)?.[key], value)
}

/** The text form: one line a row, nested parts indented. */
export function render(value: unknown, indent = ''): string {
  if (!isObject(value)) return scalar(value)
  let lines = ''
  for (const key in value) {
    const item = value[key]
    lines += `${lines === '' ? '' : '\n'}${indent}${key}:`
    if (Array.isArray(item)) {
      lines += '\n'
      for (let at = 0; at < item.length; at++) lines += `${at === 0 ? '' : '\n'}${indent}- ${inline(item[at], indent)}`
    } else if (isObject(item)) lines += `\n${render(item, `${indent}  `)}`
    else {
      const text = scalar(item)
      lines += text.includes('\n') ? `\n${text}` : ` ${text}`
    }
  }
  return lines
}

function inline(row: unknown, indent: string): string {
  if (!isObject(row)) return scalar(row)
  let line = ''
  for (const key in row) {
    const item = row[key]
    const text = typeof item === 'object' ? undefined : String(scalar(item))
    // a row of a list is one line if it can be
    if (text === undefined || text.includes('\n')) return render(row, `${indent}  `).trimStart()
    line += `${line === '' ? '' : ' | '}${key}: ${text}`
  }
  return line
}

function scalar(value: unknown): string {
  if (typeof value === 'string') return value
  return typeof value === 'boolean' ? String(value) : JSON.stringify(value)
}

/** A refusal of ours, before anything was sent. `nextStep` says how to do it right. */
export class ToolError extends Error {
  readonly fields: string[]
  readonly allowed: string[]
  readonly nextStep: string
  constructor(message: string, nextStep: string, more: { fields?: string[]; allowed?: string[] } = {}) {
    super(message)
    this.name = 'ToolError'
    this.nextStep = nextStep
    this.fields = more.fields ?? []
    this.allowed = more.allowed ?? []
  }
}

export type Failure = {
  /** for the log: never shown with more than a reference */
  kind: string
  text: string
}

export type FailureContext = {
  /** how to authorize again, in full sentences */
  authorizationSteps: string
  isWrite: boolean
  /** names a failure of ours in the log */
  reference: string
}

/** What failed, which field, what is allowed, what SDP said, and what to do next. Three kinds: the model can mend it, a person must act, we are broken. */
export function describeFailure(error: unknown, context: FailureContext): Failure {
  if (error instanceof SdpError) return { kind: error.kind, text: describeSdp(error, context) }
  if (error instanceof AuthorizationError) return describeAuthorization(error, context)
  if (error instanceof ToolError) {
    return {
      kind: 'refused',
      text: lines(error.message, fields(error.fields), allowed(error.allowed), next(error.nextStep)),
    }
  }
  if (error instanceof DateError) return { kind: 'refused', text: error.message }
  return {
    kind: 'internal',
    text: `This server failed, not you and not ServiceDesk Plus. Reference ${context.reference}. ${
      context.isWrite
        ? 'Read the record before trying again: the change may have been made.'
        : 'Try once more, then tell the administrator the reference.'
    }`,
  }
}

function describeSdp(error: SdpError, context: FailureContext): string {
  const { details } = error
  const codes = [
    details.httpStatus === undefined ? undefined : `HTTP ${details.httpStatus}`,
    details.statusCode === undefined ? undefined : `status code ${details.statusCode}`,
  ].filter(code => code !== undefined)
  const quoted = details.said ? `"${details.said.replace(/\s+/g, ' ')}"` : undefined
  const source = [codes.join(', '), quoted].filter(part => part).join(': ')
  return lines(
    `${error.message}`,
    fields(error.fields),
    allowed(details.allowed ?? []),
    source ? `ServiceDesk Plus said: ${source}` : undefined,
    next(details.nextStep ?? nextStep(error, context)),
  )
}

function nextStep(error: SdpError, context: FailureContext): string {
  switch (error.kind) {
    case 'not-found':
      return 'Check the id or number. The record may be deleted, merged, or not visible to this person.'
    case 'denied':
      return error.fields.length > 0
        ? 'Leave these fields out, or ask somebody who may set them. Closed tickets and priority matrices also lock fields.'
        : 'Ask an administrator of ServiceDesk Plus for the permission, or somebody who has it to do this.'
    case 'missing-scope':
      return `The authorization lacks a scope for this, or the site does not offer it. ${context.authorizationSteps}`
    case 'mandatory':
      return 'Ask the person for these fields, look up values with list_field_options, and send them all in one call.'
    case 'invalid-value':
      return 'Look up the allowed values with list_field_options (or get_form_fields for field types) and send again.'
    case 'conflict':
      return 'Read the record, then choose another value or remove the reference first.'
    case 'limited':
      return error.details.retryAfterSeconds === undefined
        ? 'Wait; the site usually locks for five minutes. Do not repeat the call before.'
        : `Wait ${error.details.retryAfterSeconds} seconds before the next call.`
    case 'warning-3000':
      return 'Read the record to see its state, supply the named fields, then try again.'
    case 'down':
      return context.isWrite
        ? 'The change was not made. Try again in a minute.'
        : 'Try again in a minute; if it lasts, the site or the network is down.'
    case 'drift':
      return context.isWrite
        ? 'Read the record to see whether the change was made, then tell the administrator.'
        : 'Tell the administrator: base URL or portal name may be wrong, or a proxy answers in place of ServiceDesk Plus.'
    case 'indeterminate':
      return 'Do not repeat it blindly. Read the record first; repeat only if the change is not there.'
    case 'cancelled':
      return context.isWrite ? 'Read the record to see whether the change was made.' : 'Ask again when needed.'
  }
}

function describeAuthorization(error: AuthorizationError, context: FailureContext): Failure {
  const steps = error.kind === 'unavailable' ? error.nextStep : context.authorizationSteps
  const wait = error.retryAfterSeconds === undefined ? undefined : `Retry after ${error.retryAfterSeconds} seconds.`
  return { kind: error.kind, text: lines(error.message, wait, next(steps)) }
}

function lines(...parts: (string | undefined)[]): string {
  return parts.filter(part => part).join('\n')
}
function fields(names: string[]): string | undefined {
  return names.length > 0 ? `Field: ${names.join(', ')}` : undefined
}
function allowed(values: string[]): string | undefined {
  return values.length > 0 ? `Allowed or close: ${values.slice(0, 20).join(' | ')}` : undefined
}
function next(step: string): string | undefined {
  return step ? `Next: ${step}` : undefined
}
