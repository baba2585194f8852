/**
 * Takes the text out of the engine's log format: frames of an 8-byte head (stream, three zeros, length as a
 * big-endian 32-bit number) and that many bytes. Frames may be cut anywhere between chunks.
 */
export async function* demultiplex(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let rest: Buffer = Buffer.alloc(0)
  let bodyBytesLeft = 0
  for await (const chunk of chunks) {
    rest = rest.length === 0 ? Buffer.from(chunk) : Buffer.concat([rest, chunk])
    while (rest.length > 0) {
      if (bodyBytesLeft === 0) {
        if (rest.length < 8) break
        bodyBytesLeft = rest.readUInt32BE(4)
        rest = rest.subarray(8)
        continue
      }
      const body = rest.subarray(0, bodyBytesLeft)
      bodyBytesLeft -= body.length
      rest = rest.subarray(body.length)
      yield body
    }
  }
}
