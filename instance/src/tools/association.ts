import type { Sdp } from '../sdp/client.ts'
import { isSdpError, SdpError } from '../sdp/errors.ts'
import { at, isObject, type Json, text } from '../sdp/json.ts'
import { child, path } from '../sdp/path.ts'
import { settled } from '../sdp/settle.ts'
import type { ToolCall } from './define.ts'

/** How a ticket is tied to a record of another module (docs/sdp-api.md 7.1: seen on premises only). */
export type Association = 'problem' | 'project' | 'request_initiated_change' | 'request_caused_by_change'

const shapes: Record<Association, { root: string; key: string }> = {
  problem: { root: 'request_problem_association', key: 'problem' },
  project: { root: 'request_project_association', key: 'project' },
  request_initiated_change: { root: 'request_initiated_change', key: 'change' },
  request_caused_by_change: { root: 'request_caused_by_change', key: 'change' },
}

export type Tied = { request: string; tied: boolean; note?: string }

/**
 * Ties or unties tickets and a record, one call each. What is tied already counts as done.
 * @throws SdpError when the very first call shows that the site does not offer it
 */
export async function tie(
  call: ToolCall,
  association: Association,
  recordId: string,
  requests: string[],
  isUntying: boolean,
): Promise<Tied[]> {
  const results: Tied[] = []
  for (const [index, reference] of requests.entries()) {
    results.push(await tieOne(call, association, recordId, reference, isUntying, index === 0))
    await call.progress(index + 1, requests.length, `ticket ${reference}`)
  }
  return results
}

async function tieOne(
  call: ToolCall,
  association: Association,
  recordId: string,
  reference: string,
  isUntying: boolean,
  isFirst: boolean,
): Promise<Tied> {
  const { root, key } = shapes[association]
  try {
    const id = await call.requests.id(call.sdp, reference)
    const present = await current(call.sdp, association, id)
    const isTied = present === recordId
    if (isTied === !isUntying) return { request: reference, tied: isTied, note: 'it was so before' }
    if (present !== undefined && !isUntying) {
      return { request: reference, tied: false, note: `it is tied to another ${key} (${present}); untie that first` }
    }
    const target = child(path`/requests/${id}`, association)
    const body = { [root]: { [key]: { id: recordId } } }
    const write = () => (isUntying ? call.sdp.remove(target, body) : call.sdp.post(target, body))
    const isDone = async () => ((await current(call.sdp, association, id)) === recordId) !== isUntying
    await settled<unknown>(write, async () => (await isDone()) || undefined)
    const after = await current(call.sdp, association, id)
    return { request: reference, tied: after === undefined ? !isUntying : after === recordId }
  } catch (error) {
    if (!isSdpError(error) || error.kind === 'cancelled') throw error
    if (isFirst && isSdpError(error, 'not-found') && error.details.call?.includes(association)) {
      throw new SdpError('not-found', `This site does not offer to tie tickets to a ${key} by its API.`, {
        ...error.details,
        nextStep: 'Nothing was changed. Tie them in the portal, or name the numbers in a note.',
      })
    }
    return { request: reference, tied: isUntying, note: `failed: ${error.message}` }
  }
}

/** The id of what the ticket is tied to; undefined when nothing, or when the site does not tell. */
async function current(sdp: Sdp, association: Association, requestId: string): Promise<string | undefined> {
  const { root, key } = shapes[association]
  try {
    const body: Json = await sdp.get(child(path`/requests/${requestId}`, association))
    const found = body[root]
    return isObject(found) ? text(at(found, `${key}.id`)) : undefined
  } catch (error) {
    if (isSdpError(error, 'not-found', 'invalid-value', 'missing-scope')) return undefined
    throw error
  }
}
