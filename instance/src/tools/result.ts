import type { CallToolResult, ContentBlock } from '@modelcontextprotocol/sdk/types.js'
import { AuthorizationError } from '../context.ts'
import { SdpError } from '../sdp/errors.ts'
import { isObject, type Json, setOwn } from '../sdp/json.ts'
import { budgetTokens, type Cut, fitted, inParts, isWithin, nextPage, notes, type Rest, withNotes } from './budget.ts'
import { plainLine, visible, withoutMarks } from './clean-text.ts'
import { DateError } from './time.ts'

export { budgetTokens, cutToBudget, estimateTokens } from './budget.ts'

/**
 * What a tool hands back. `data` is shown to the model as structured content, so it is compact, with Markdown strings
 * inside and without nulls; clients that know no structured content read the same as text.
 */
export type Outcome = {
  data: Json
  /** images and links beside the data */
  content?: ContentBlock[]
  /** how to get what the budget cut away, e.g. "ask for page 2" */
  rest?: Rest
  /** `large` for one long text the person asked for */
  budget?: keyof typeof budgetTokens
  /** the list of `data` that is one page of many: what the budget cuts from it is where the next page starts */
  paged?: { key: string; page: number; limit: number }
  /** data that is given in as many answers as it needs; the tool takes `part` */
  inParts?: { tool: string; part: number | undefined }
  /** what `data` must say instead when something was cut */
  whenCut?: Json
}

/** The tool result for a success: nulls removed, cut to the budget. `requiredLists` are shown even when empty. */
export function success(outcome: Outcome, requiredLists: readonly string[] = []): CallToolResult {
  const kept = (compact(outcome.data) ?? {}) as Json
  // an empty list that the output schema promises is an answer
  for (const key of requiredLists) kept[key] ??= []
  const data = withinBudget(kept, outcome)
  // a part may leave out a list that it does not go on with
  for (const key of requiredLists) data[key] ??= []
  const content: ContentBlock[] = [{ type: 'text', text: render(data) }, ...(outcome.content ?? [])]
  return { content, structuredContent: data }
}

function withinBudget(data: Json, { budget = 'normal', rest, paged, inParts: parts, whenCut }: Outcome): Json {
  const limit = budgetTokens[budget]
  if (parts) {
    const { tool, part = 1 } = parts
    const how = (next: number) => `call ${tool} again with the same input and part=${next} for the rest`
    return part === 1 && isWithin(data, limit)
      ? data
      : inParts(data, { part, how, limits: one => (one === 1 ? limit : budgetTokens.large) })
  }
  if (isWithin(data, limit)) return data
  const said = withNotes(rest)
  const finish = paged
    ? (shown: Json, cuts: Cut[]) => goneOn(shown, cuts, paged, rest)
    : (shown: Json, cuts: Cut[]) => ({ ...said(shown, cuts), ...whenCut })
  return fitted(data, limit, finish).answer
}

/** A page that ends early says where to go on, in the words in which pages are asked for. */
function goneOn(shown: Json, cuts: Cut[], { key, page, limit }: NonNullable<Outcome['paged']>, rest?: Rest): Json {
  const place = cuts.find(({ path, kind }) => path === key && kind === 'rows')
  if (!place) return withNotes(rest)(shown, cuts)
  const next = nextPage(page, limit, place.shown)
  const how = `for the next ones ask for page=${next.page} with limit=${next.limit}`
  const told = cuts.map(one => (one === place ? { ...place, shown: next.shown } : one))
  return {
    ...shown,
    [key]: (shown[key] as unknown[]).slice(0, next.shown),
    has_more: true,
    next_page: next.page,
    next_limit: next.limit,
    cut: notes(told, one => (one.path === key ? how : typeof rest === 'function' ? rest(one) : (rest ?? recordItself))),
  }
}

const recordItself = 'read the record itself for the rest'

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
  const quoted = details.said ? `"${plainLine(details.said)}"` : undefined
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
  // names and words of the site are in it, which strangers may have chosen
  return withoutMarks(visible(parts.filter(part => part).join('\n')))
}
function fields(names: string[]): string | undefined {
  return names.length > 0 ? `Field: ${names.join(', ')}` : undefined
}
function allowed(values: string[]): string | undefined {
  return values.length > 0 ? `Allowed or close: ${values.slice(0, 20).map(plainLine).join(' | ')}` : undefined
}
function next(step: string): string | undefined {
  return step ? `Next: ${step}` : undefined
}
