import type { EventStore } from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js'
import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'

type Event = { sequence: number; streamId: string; message: JSONRPCMessage; bytes: number }

export type ResumableEvents = EventStore & {
  /**
   * What a client that lost its stream may expect after an event.
   * - `gap`: later events are no longer kept, so the stream cannot be made whole
   * - `finished`: the answer itself is among the kept events; nothing will follow
   */
  outlook(eventId: string): { kind: 'unknown' | 'gap' | 'open' } | { kind: 'finished'; events: number }
}

const standaloneStream = '_GET_stream'

/** The latest events of one session, for clients that come back with `Last-Event-ID`. Bounded in number and bytes. */
export function createEventStore({ maxEvents = 256, maxBytes = 1024 * 1024 } = {}): ResumableEvents {
  const events: Event[] = []
  let bytes = 0
  let sequence = 0
  let forgottenUpTo = 0

  const idOf = (event: Pick<Event, 'sequence' | 'streamId'>) => `${event.sequence}.${event.streamId}`
  function parse(eventId: string): Pick<Event, 'sequence' | 'streamId'> | undefined {
    const match = /^(\d{1,15})\.([\w-]{1,64})$/.exec(eventId)
    if (!match) return undefined
    const at = { sequence: Number(match[1]), streamId: match[2] as string }
    return at.sequence <= sequence ? at : undefined
  }
  const after = (at: Pick<Event, 'sequence' | 'streamId'>) =>
    events.filter(event => event.streamId === at.streamId && event.sequence > at.sequence)

  return {
    async storeEvent(streamId, message) {
      const event = { sequence: ++sequence, streamId, message, bytes: sizeOf(message) }
      events.push(event)
      bytes += event.bytes
      while (events.length > maxEvents || (bytes > maxBytes && events.length > 1)) {
        const oldest = events.shift() as Event
        bytes -= oldest.bytes
        forgottenUpTo = oldest.sequence
      }
      return idOf(event)
    },

    async replayEventsAfter(eventId, { send }) {
      const at = parse(eventId)
      if (!at) throw new Error('unknown event id')
      for (const event of after(at)) if (!isPriming(event)) await send(idOf(event), event.message)
      return at.streamId
    },

    outlook(eventId) {
      const at = parse(eventId)
      if (!at) return { kind: 'unknown' }
      // notifications on the standalone stream may be missed; the answer to a call may not
      if (at.sequence < forgottenUpTo && at.streamId !== standaloneStream) return { kind: 'gap' }
      const later = after(at).filter(event => !isPriming(event))
      return later.some(({ message }) => 'result' in message || 'error' in message)
        ? { kind: 'finished', events: later.length }
        : { kind: 'open' }
    },
  }
}

/** The SDK opens a resumable stream with an empty event that only carries an id. */
function isPriming({ message }: Event): boolean {
  return Object.keys(message).length === 0
}

/** About as many bytes as it has as JSON, without making the JSON, which the transport does anyway. */
function sizeOf(value: unknown): number {
  if (typeof value === 'string') return value.length + 2
  if (typeof value !== 'object' || value === null) return 5
  let bytes = 2
  if (Array.isArray(value)) for (const item of value) bytes += sizeOf(item) + 1
  else for (const key in value) bytes += key.length + 4 + sizeOf((value as Record<string, unknown>)[key])
  return bytes
}
