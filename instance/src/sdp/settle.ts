import { isSdpError, SdpError } from './errors.ts'
import { isObject, type Json, text } from './json.ts'
import { plain } from './similar.ts'

/**
 * Makes a write; when no answer came, looks for what it would have left. It is never sent again.
 *
 * @param look - reads; undefined when the write left nothing
 * @throws SdpError `indeterminate` when nothing is found or the look fails too, any other failure of the write as it is
 */
export async function settled<T>(write: () => Promise<T>, look: () => Promise<T | undefined>): Promise<T> {
  try {
    return await write()
  } catch (error) {
    if (!isSdpError(error) || error.kind !== 'indeterminate') throw error
    const found = await look().catch(second => {
      if (isSdpError(second, 'cancelled')) throw second
      throw error
    })
    if (found !== undefined) return found
    throw new SdpError('indeterminate', `${error.message} It was looked for at once and is not there yet.`, {
      ...error.details,
      nextStep:
        'Do not repeat it blindly. Read the record again in a minute; repeat only if the change is still not there.',
    })
  }
}

/** Whether a record holds what was sent, field by field; what it never shows is left out. */
export function holds(record: Json, sent: Json, unseen: ReadonlySet<string> = new Set()): boolean {
  return Object.entries(sent).every(([key, value]) => unseen.has(key) || isSame(record[key], value))
}

function isSame(actual: unknown, sent: unknown): boolean {
  if (sent === null) return actual === null || actual === undefined || actual === ''
  if (Array.isArray(sent)) {
    const held = Array.isArray(actual) ? actual : []
    return held.length === sent.length && sent.every(one => held.some(other => isSame(other, one)))
  }
  if (!isObject(sent)) return isObject(actual) ? isSame(actual.value ?? actual.name, sent) : alike(actual, sent)
  if (!isObject(actual)) return false
  // a reference is told by its id alone, whatever else was sent with it
  if (sent.id !== undefined) return text(actual.id) === text(sent.id)
  return Object.entries(sent).every(([key, value]) => isSame(actual[key], value))
}

/** Texts without their markup, which sites rewrite. */
export function alike(a: unknown, b: unknown): boolean {
  return bare(a) === bare(b)
}

function bare(value: unknown): string {
  return plain(
    String(value ?? '')
      .replace(/<[^>]*>/g, ' ')
      .replace(/&(?:amp|lt|gt|quot|nbsp|#\d+|#x[\da-f]+);/gi, ' '),
  )
}
