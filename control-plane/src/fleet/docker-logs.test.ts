import { expect, test } from 'vitest'
import { demultiplex } from './docker-logs.ts'

const frame = (stream: number, text: string) => {
  const body = Buffer.from(text)
  const head = Buffer.alloc(8)
  head[0] = stream
  head.writeUInt32BE(body.length, 4)
  return Buffer.concat([head, body])
}
async function* cut(bytes: Buffer, size: number) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

test('a log is the same however its frames are cut', async () => {
  const bytes = Buffer.concat([frame(1, 'one\n'), frame(2, ''), frame(2, 'zwei, größer\n'), frame(1, 'x'.repeat(300))])
  for (let size = 1; size <= bytes.length; size++) {
    const parts: Uint8Array[] = []
    for await (const part of demultiplex(cut(bytes, size))) parts.push(part)
    expect(Buffer.concat(parts).toString()).toBe(`one\nzwei, größer\n${'x'.repeat(300)}`)
  }
})
