const period = 251 * 257
const pattern = Buffer.from(Array.from({ length: period }, (_, at) => (at % 251) ^ ((at % 257) & 0xff)))

/** Bytes of an endless text in which a lost, doubled or swapped piece shows. */
export function patternAt(offset: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  for (let at = 0; at < length; ) at += pattern.copy(bytes, at, (offset + at) % period, period)
  return bytes
}
