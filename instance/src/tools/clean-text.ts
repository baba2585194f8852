import { cut } from '../cut.ts'

/**
 * Plain text of strangers, cleaned and marked. Apart from what knows HTML (markdown.ts), whose libraries are loaded with the
 * tools: an instance needs this from its start.
 */

/** Drops characters that show nothing: controls, format marks, Unicode tags, halves of characters. Keeps the joiner of emoji (U+200D). */
export function visible(text: string): string {
  // nearly every text
  if (!/[^\n\t -~]/.test(text)) return text
  return text.replace(/\r\n?/g, '\n').replace(/(?![\n\t\u200d])[\p{Cc}\p{Cf}\p{Cs}\u{e0000}-\u{e0fff}]/gu, '')
}

/** Printable ASCII, tabs and line ends, and no `<`: nothing to clean, as in nearly every text. An expression takes twice as long to find that. */
export function isPlain(text: string): boolean {
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    if (!isPlainCode(code) && code !== 0x0a && code !== 0x09) return false
  }
  return true
}

export const isPlainCode = (code: number) => code >= 0x20 && code <= 0x7e && code !== 0x3c

const opening = '<untrusted>'
const closing = '</untrusted>'

/** Marks a stranger's text as data. The text cannot close the mark itself. */
export function untrusted(text: string): string {
  const inner = withoutMarks(text).trim()
  return inner === '' ? '' : `${opening}\n${inner}\n${closing}`
}

/** Only the bracket is replaced: matching up to the closing one could take very long on hostile text. */
export function withoutMarks(text: string): string {
  return text.replace(/<(?=\s*\/?\s*untrusted)/gi, '‹')
}

/** A stranger's single line that is no HTML, such as an address between angle brackets: cleaned, short, unable to close the mark of data. */
export function plainLine(text: string): string {
  return cut(withoutMarks(visible(text)).replace(/\s+/g, ' ').trim(), 400)
}
