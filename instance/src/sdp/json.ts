/**
 * Parses JSON without losing digits: an integer beyond 2^53 becomes a string with the digits as sent. SDP ids
 * have up to 19 digits and some endpoints send them as numbers (docs/sdp-api.md 5).
 *
 * @throws SyntaxError
 */
export function parseLossless(text: string): unknown {
  // The third argument (source text access, ES2026) is missing from TypeScript's es2024 library.
  const revive = (_key: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source
      ? context.source
      : value
  // with a reviver parsing takes ten times as long, and most answers hold no such number
  return mayLoseDigits.test(text) || mayBeginSo.test(text)
    ? JSON.parse(text, revive as (key: string, value: unknown) => unknown)
    : JSON.parse(text)
}

/** Sixteen digits or an exponent where a value begins; may also be found inside of a string, which only costs time. */
const mayLoseDigits = /[:,[]\s*-?(?:\d{16}|\d[\d.]*[eE])/
/** The same of a text that is one value; a single expression for both takes twice as long. */
const mayBeginSo = /^\s*-?(?:\d{16}|\d[\d.]*[eE])/

export type Json = Record<string, unknown>

export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Sets a property of its own, whatever its name: JSON may hold `__proto__`, which is no property when it is assigned to. */
export function setOwn(object: Json, key: string, value: unknown): void {
  if (key === '__proto__')
    Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true })
  else object[key] = value
}

/** The value at a dotted path, or undefined. Every SDP reference may be null (docs/sdp-api.md 18.20). */
export function at(value: unknown, dotted: string): unknown {
  let current = value
  for (const key of dotted.split('.')) {
    if (!isObject(current)) return undefined
    current = current[key]
  }
  return current ?? undefined
}

/** Text of a scalar; undefined for null, objects and the empty string. */
export function text(value: unknown): string | undefined {
  if (typeof value === 'string') return value === '' || value === 'null' ? undefined : value
  if (typeof value === 'number' || typeof value === 'bigint') return String(value)
  return undefined
}

/** SDP sends booleans also as "true" and "false" (docs/sdp-api.md 1.4). */
export function flag(value: unknown): boolean | undefined {
  if (typeof value === 'boolean') return value
  if (value === 'true') return true
  if (value === 'false') return false
  return undefined
}

/** Display name of a reference `{id, name}`, or the text itself. */
export function name(value: unknown): string | undefined {
  if (!isObject(value)) return text(value)
  return text(value.name) ?? text(value.display_value) ?? text(value.title) ?? text(value.email_id) ?? text(value.id)
}

/** What a Date can hold, less a day, so that it still can in every time zone. */
const furthestInstant = 8.64e15 - 24 * 3_600_000

/** Epoch milliseconds of `{value: "..."}`, a number or a digit string; undefined when unset or no date. */
export function instant(value: unknown): number | undefined {
  const raw = isObject(value) ? value.value : value
  const digits = text(raw)
  if (digits === undefined || !/^-?\d{1,16}$/.test(digits)) return undefined
  const ms = Number(digits)
  return Math.abs(ms) <= furthestInstant ? ms : undefined
}

export function rows(value: unknown): Json[] {
  return Array.isArray(value) ? value.filter(isObject) : []
}
