import { wholeCharacters } from '../cut.ts'
import { isObject, type Json, setOwn } from '../sdp/json.ts'

/** A result above about 25k tokens never reaches the model; these stay far below. */
export const budgetTokens = { normal: 6_000, large: 9_500 } as const

/** A place where something was left out. `path` has the keys from the top, with dots between. */
export type Cut = { path: string; kind: 'rows' | 'characters' | 'fields'; shown: number; total: number }
/** How to get what was left out at a place. */
export type Rest = string | ((cut: Cut) => string)

/** A part of a value that fits, and what it leaves out; `left` is missing when nothing is. */
type Fit = { shown: unknown; left?: unknown }
/** Makes the answer of what fits, with all that is said about it: that takes room too. */
type Finish = (shown: Json, cuts: Cut[]) => Json

/** A rough count that errs high: four ASCII characters a token, other scripts about one and a half. */
export function estimateTokens(text: string): number {
  let others = 0
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    if ((code < 0x20 && code !== 0x0a) || code > 0x7e) others++
  }
  return Math.ceil((text.length - others) / 4 + others / 1.5)
}

/** Cuts data to a budget and says where; see {@link fitted}. Data that fits comes back as it is. */
export function cutToBudget(data: Json, limit: number, rest?: Rest): Json {
  return isWithin(data, limit) ? data : fitted(data, limit, withNotes(rest)).answer
}

export function isWithin(data: Json, limit: number): boolean {
  const text = JSON.stringify(data)
  // no text is estimated at more than this, so most need not be counted
  return Math.ceil(text.length / 1.5) <= limit || estimateTokens(text) <= limit
}

/** What the note and the other additions of an answer take, more or less. */
const additions = 60

/**
 * Divides a budget among the parts of data, from the top down: what is small is kept, what is large shares the room
 * that is left. Lists end at row borders, texts at words with a mark, and objects of too many fields lose the last ones.
 */
export function fitted(data: Json, limit: number, finish: Finish): { answer: Json; left: Json | undefined } {
  let room = limit - additions
  for (let attempt = 1; ; attempt++) {
    const cuts: Cut[] = []
    const { shown, left } = fitTo(data, room, '', cuts)
    const answer = finish(shown as Json, cuts)
    const over = estimateTokens(JSON.stringify(answer)) - limit
    if (over <= 0 || attempt === 5) return { answer, left: left as Json | undefined }
    room -= over + 10
  }
}

const mostNotes = 8

/** One line for each place, or for the first of very many. */
export function withNotes(rest: Rest = 'narrow the question to get the rest'): Finish {
  return (shown, cuts) => ({ ...shown, cut: notes(cuts, rest) })
}

export function notes(cuts: Cut[], rest: Rest): string[] {
  const lines = cuts.slice(0, mostNotes).map(place => {
    const name = place.path.replace(/\.\d+(?=\.|$)/g, '') || 'all'
    const how = typeof rest === 'string' ? rest : rest(place)
    return `${name}: ${place.shown} of ${place.total} ${place.kind} shown; ${how}`
  })
  return cuts.length > mostNotes ? [...lines, `and ${cuts.length - mostNotes} more places`] : lines
}

function fitTo(value: unknown, room: number, path: string, cuts: Cut[]): Fit {
  if (cost(value, room) <= room) return { shown: value }
  if (typeof value === 'string') return fitText(value, room, path, cuts)
  if (Array.isArray(value)) return fitRows(value, room, path, cuts)
  return isObject(value) ? fitFields(value, room, path, cuts) : { shown: value }
}

const [opening, closing] = ['<untrusted>\n', '\n</untrusted>']
const marksCost = 14
const shortestText = 20

function fitText(text: string, room: number, path: string, cuts: Cut[]): Fit {
  const isMarked = text.startsWith(opening) && text.endsWith(closing)
  const inner = isMarked ? text.slice(opening.length, -closing.length) : text
  const length = lengthWithin(inner, Math.max(room - marksCost, shortestText))
  // a text that its marks alone made too long
  if (length >= inner.length) return { shown: text }
  cuts.push({ path, kind: 'characters', shown: length, total: inner.length })
  const shown = `${inner.slice(0, length)}\n… [cut]`
  const left = inner.slice(length)
  return isMarked
    ? { shown: `${opening}${shown}${closing.trim()}`, left: `${opening}${left}${closing}` }
    : { shown, left }
}

/** How much of a text costs so much at most: up to the last word that is whole, unless a word is very long. */
function lengthWithin(text: string, room: number): number {
  let sum = 0
  let length = 0
  while (length < text.length) {
    sum += costOf(text.charCodeAt(length))
    if (sum > room) break
    length++
  }
  if (length === text.length) return length
  for (let end = length; end > length * 0.8; end--) if (/\s/.test(text.charAt(end - 1))) return end
  return wholeCharacters(text, length)
}

/** Whole rows in their order; only of the first row a part is shown, so that there is always something. */
function fitRows(rows: unknown[], room: number, path: string, cuts: Cut[]): Fit {
  let free = room - 0.5
  let count = 0
  while (count < rows.length) {
    const price = cost(rows[count], free) + 0.25
    if (price > free) break
    free -= price
    count++
  }
  const first = count === 0 ? fitTo(rows[0], free, `${path}.0`, cuts) : undefined
  const shown = first ? [first.shown] : rows.slice(0, count)
  if (shown.length < rows.length) cuts.push({ path, kind: 'rows', shown: shown.length, total: rows.length })
  const left = [...(first?.left === undefined ? [] : [first.left]), ...rows.slice(shown.length)]
  return left.length > 0 ? { shown, left } : { shown }
}

/** Less than this of a long text or list is not worth showing. */
const leastShare = 200
const shortField = 25
/** By what the rest of a record is known again. */
const identity = ['number', 'id', 'url']

type Field = { key: string; value: unknown; price: number; need: number }

function fitFields(object: Json, room: number, path: string, cuts: Cut[]): Fit {
  const fields: Field[] = Object.entries(object).map(([key, value]) => {
    const name = cost(key) + 0.5
    const price = cost(value, room)
    return { key, value, price: price + name, need: Math.min(price, isLong(value) ? leastShare : price) + name }
  })
  const kept = withoutLast(fields, room - 0.5, path === '')
  const total = fields.length
  if (kept.size < total) cuts.push({ path, kind: 'fields', shown: kept.size, total })
  const shares = divided([...kept], room - 0.5)
  const shown: Json = {}
  const left: Json = {}
  for (const field of fields) {
    const { key, value } = field
    const part = kept.has(field)
      ? fitTo(value, (shares.get(field) ?? 0) - cost(key) - 0.5, join(path, key), cuts)
      : null
    if (part) setOwn(shown, key, part.shown)
    if (!part) setOwn(left, key, value)
    else if (part.left !== undefined) setOwn(left, key, part.left)
  }
  if (Object.keys(left).length === 0) return { shown }
  const known = identity.filter(key => Object.hasOwn(shown, key) && !isLong(shown[key]))
  return { shown, left: { ...Object.fromEntries(known.map(key => [key, shown[key]])), ...left } }
}

const isLong = (value: unknown) => (typeof value === 'string' ? value.length > 400 : typeof value === 'object')
const join = (path: string, key: string) => (path === '' ? key : `${path}.${key}`)

/** Drops the last fields until the others have room for what they need at least. The short ones at the top stay: id, address, verdict. */
function withoutLast(fields: Field[], room: number, isTop: boolean): Set<Field> {
  const kept = new Set(fields)
  let need = fields.reduce((sum, field) => sum + field.need, 0)
  for (const field of fields.toReversed()) {
    if (need <= room || kept.size === 1) break
    if (isTop && field.need <= shortField) continue
    kept.delete(field)
    need -= field.need
  }
  return kept
}

/** The room of each field: short ones get theirs, long ones the same share, of which those that need less leave the rest to others. */
function divided(fields: Field[], room: number): Map<Field, number> {
  const shares = new Map<Field, number>()
  let free = room
  let waiting = fields.length
  const isFixed = ({ value }: Field) => !isLong(value)
  const inTurn = [
    ...fields.filter(isFixed),
    ...fields.filter(field => !isFixed(field)).sort((a, b) => a.price - b.price),
  ]
  for (const field of inTurn) {
    const share = isFixed(field) ? field.price : Math.min(field.price, free / waiting)
    shares.set(field, share)
    free -= share
    waiting--
  }
  return shares
}

/** Tokens of a value as JSON, counted no further than `enough`. */
function cost(value: unknown, enough = Number.POSITIVE_INFINITY): number {
  let sum = 0.5
  if (typeof value === 'string') {
    for (let index = 0; index < value.length && sum <= enough; index++) sum += costOf(value.charCodeAt(index))
  } else if (Array.isArray(value)) {
    for (let index = 0; index < value.length && sum <= enough; index++) sum += cost(value[index], enough - sum) + 0.25
  } else if (isObject(value)) {
    for (const key in value) {
      if (sum > enough) break
      sum += cost(key) + 0.5 + cost(value[key], enough - sum)
    }
  } else return String(value).length / 4
  return sum
}

/** As {@link estimateTokens} counts a character of JSON, which writes some with a backslash. */
function costOf(code: number): number {
  if (code === 0x22 || code === 0x5c || code === 0x0a || code === 0x09 || code === 0x0d) return 0.5
  if (code < 0x20) return 1.5
  return code <= 0x7e ? 0.25 : 2 / 3
}

/** Far more than any record has; a field whose very name fills an answer would never end. */
const mostParts = 200

/** Answers in which data is given, one after the other: what one leaves out the next goes on with. */
export function inParts(
  data: Json,
  { part, how, limits }: { part: number; how: (next: number) => string; limits: (part: number) => number },
): Json {
  let left: Json | undefined = data
  let mine: Json | undefined
  let parts = 0
  while (left && parts < mostParts) {
    const whole: Json = left
    const number = ++parts
    const limit = limits(number)
    const finish: Finish = (shown, cuts) => ({ ...shown, part: number, parts: 99, cut: notes(cuts, how(number + 1)) })
    const one = isWithin(whole, limit - additions) ? { answer: whole, left: undefined } : fitted(whole, limit, finish)
    if (number === part) mine = one.answer
    left = one.left
  }
  if (parts === 1 && mine) return mine
  const known = Object.fromEntries(identity.filter(key => key in data).map(key => [key, data[key]]))
  return { ...(mine ?? { ...known, hint: 'There is no such part.' }), part, parts }
}

/** A page of rows that was too long: which of them to show, and the page and limit that go on right behind them. */
export function nextPage(page: number, limit: number, fitting: number): { shown: number; page: number; limit: number } {
  const start = (page - 1) * limit
  for (let shown = fitting; shown > 0; shown--)
    for (let size = fitting; size >= fitting / 2; size--)
      // pages of that size have a border there
      if ((start + shown) % size === 0) return { shown, page: (start + shown) / size + 1, limit: size }
  return { shown: 1, page: start + 2, limit: 1 }
}
