import type { World } from '../world.ts'
import type { Reply } from './call.ts'
import type { ApiFailure, Message } from './failure.ts'

/** `response_status` is an object beside one entity and an array of one beside a list (docs/sdp-api.md 4.1). */
const success = { status_code: 2000, status: 'success' }

export function one(key: string, entity: unknown, status = 200, messages?: Message[]): Reply {
  return {
    status,
    body: { [key]: entity, response_status: messages ? { ...success, messages } : success },
  }
}

export function many(key: string, entities: unknown[], listInfo: Record<string, unknown>): Reply {
  return { status: 200, body: { [key]: entities, list_info: listInfo, response_status: [success] } }
}

/** A success without an entity; actions say what they did in `messages`. */
export function done(message?: string): Reply {
  const messages: Message[] | undefined = message ? [{ status_code: 2000, type: 'success', message }] : undefined
  return { status: 200, body: { response_status: messages ? { ...success, messages } : success } }
}

/** HTTP 200 that is no success: nothing was changed (4.1, code 3000). */
export function partial(world: World, fields: string[]): Reply {
  return {
    status: 200,
    body: {
      response_status: {
        status_code: 3000,
        status: world.faults.switches.partialStatus,
        messages: [{ status_code: 3000, type: 'warning', fields }],
      },
    },
  }
}

/** One result per record of a bulk call; HTTP 200 even if some failed. */
export function bulk(results: { id: string; failure?: ApiFailure }[]): Reply {
  return {
    status: 200,
    body: {
      response_status: results.map(({ id, failure }) =>
        failure ? { id, status_code: 4000, status: 'failed', messages: failure.messages } : { id, ...success },
      ),
    },
  }
}

export function failed(world: World, failure: ApiFailure): Record<string, unknown> {
  const inner = failure.messages[0]?.status_code ?? 4000
  const outer = world.faults.switches.statusInEnvelope === 'inner' ? inner : 4000
  return { response_status: { status_code: outer, status: 'failed', messages: failure.messages } }
}
