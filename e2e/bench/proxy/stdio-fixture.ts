import { createInterface } from 'node:readline'

/** The fixture instance for bridges from standard input and output: a JSON-RPC answer of about 1 KB to each call. */
const text = 'The request was opened by a technician and waits for an answer of the requester. '.repeat(11)
for await (const line of createInterface({ input: process.stdin })) {
  const { id, method } = JSON.parse(line) as { id?: number; method: string }
  if (id === undefined) continue
  const result =
    method === 'initialize'
      ? { protocolVersion: '2025-06-18', capabilities: { tools: {} }, serverInfo: { name: 'fixture', version: '1' } }
      : { content: [{ type: 'text', text }] }
  process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', id, result })}\n`)
}
