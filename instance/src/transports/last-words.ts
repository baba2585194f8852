import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { lastWordsHeader } from '../contract.ts'

export const endedText =
  'The MCP server ended while it worked on this; whether it was done is not known. It is started again: look, then repeat.'
export const forgottenText =
  'The events after this Last-Event-ID are no longer kept. Whether the call was done is not known: look, then repeat.'
const mostLastWords = 20
const lastWordsLimit = 4_096

/** A head with the errors that these requests get should this process die on them; see the contract. */
export function lastWords(ids: Iterable<RequestId>): Record<string, string> {
  const events = [...ids]
    .slice(-mostLastWords)
    .map(id => JSON.stringify({ jsonrpc: '2.0', id, error: { code: -32000, message: endedText } }))
    .map(message => `event: message\ndata: ${message}\n\n`)
  const words = Buffer.from(events.join('')).toString('base64')
  return words === '' || words.length > lastWordsLimit ? {} : { [lastWordsHeader]: words }
}
