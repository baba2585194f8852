import type { EventStore } from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js'
import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'

type Event = { sequence: number; streamId: string; message: JSONRPCMessage; bytes: number }
/** `latest` and `forgotten` are sequences of events; after the answer no more will come. */
type Stream = { latest: number; forgotten: number; isAnswered: boolean }

export type ResumableEvents = EventStore & {
  /**
   * What a client that lost its stream may expect after an event.
   * - `gap`: later events of its stream are no longer kept, so the stream cannot be made whole
   * - `finished`: the answer itself is among the kept events; nothing will follow
   */
  outlook(
    eventId: string,
  ):
    | { kind: 'unknown' }
    | { kind: 'gap' }
    | { kind: 'open'; streamId: string }
    | { kind: 'finished'; streamId: string; events: number }
}

const standaloneStream = '_GET_stream'
/** More calls than this at once are not expected; the earliest streams are then taken for forgotten. */
const mostStreams = 2_000

/** The latest events of one session, for clients that come back with `Last-Event-ID`. Bounded in number and bytes. */
export function createEventStore({ maxEvents = 256, maxBytes = 1024 * 1024 } = {}): ResumableEvents {
  const events: Event[] = []
  let bytes = 0
  let sequence = 0
  /** those that have kept events or wait for their answer */
  const streams = new Map<string, Stream>()

  function parse(eventId: string): Position | undefined {
    const match = /^(\d{1,15})\.([\w-]{1,64})$/.exec(eventId)
    if (!match) return undefined
    const at = { sequence: Number(match[1]), streamId: match[2] as string }
    return at.sequence <= sequence ? at : undefined
  }
  const after = (at: Position) => events.filter(event => event.streamId === at.streamId && event.sequence > at.sequence)

  function note({ streamId, sequence, message }: Event): void {
    const stream = streams.get(streamId)
    if (stream) {
      stream.latest = sequence
      stream.isAnswered ||= isAnswer(message)
      return
    }
    streams.set(streamId, { latest: sequence, forgotten: 0, isAnswered: isAnswer(message) })
    if (streams.size > mostStreams) streams.delete(streams.keys().next().value as string)
  }

  function forget({ streamId, sequence }: Event): void {
    const stream = streams.get(streamId)
    if (!stream) return
    stream.forgotten = sequence
    if (stream.isAnswered && stream.latest === sequence) streams.delete(streamId)
  }

  /** Notifications on the standalone stream may be missed; the answer to a call may not. */
  function isGap({ streamId, sequence }: Position): boolean {
    if (streamId === standaloneStream) return false
    const stream = streams.get(streamId)
    return !stream || sequence < stream.forgotten
  }

  return {
    async storeEvent(streamId, message) {
      const event = { sequence: ++sequence, streamId, message, bytes: sizeOf(message) }
      events.push(event)
      note(event)
      bytes += event.bytes
      while (events.length > maxEvents || (bytes > maxBytes && events.length > 1)) {
        const oldest = events.shift() as Event
        bytes -= oldest.bytes
        forget(oldest)
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
      if (isGap(at)) return { kind: 'gap' }
      const { streamId } = at
      const later = after(at).filter(event => !isPriming(event))
      return later.some(({ message }) => isAnswer(message))
        ? { kind: 'finished', streamId, events: later.length }
        : { kind: 'open', streamId }
    },
  }
}

type Position = Pick<Event, 'sequence' | 'streamId'>

function idOf({ sequence, streamId }: Position): string {
  return `${sequence}.${streamId}`
}

/** The stream that begins with this piece of an answer: an event of nothing but an id. Older clients get none. */
export function streamBegunBy(piece: Uint8Array): string | undefined {
  const text = Buffer.from(piece.buffer, piece.byteOffset, Math.min(piece.length, 100)).toString('latin1')
  return /^id: \d{1,15}\.([\w-]{1,64})\n/.exec(text)?.[1]
}

function isAnswer(message: JSONRPCMessage): boolean {
  return 'result' in message || 'error' in message
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
