/**
 * The first characters of a text, never half of one: half of an emoji is no text, and a client may refuse the whole
 * answer for it.
 */
export function cut(text: string, longest: number): string {
  return text.length <= longest ? text : text.slice(0, wholeCharacters(text, longest))
}

/** The largest length up to `longest` that does not end in the middle of a character. */
export function wholeCharacters(text: string, longest: number): number {
  const last = text.charCodeAt(longest - 1)
  return longest < text.length && last >= 0xd800 && last <= 0xdbff ? longest - 1 : longest
}
