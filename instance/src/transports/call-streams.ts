import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { streamBegunBy } from './event-store.ts'
import type { Session } from './sessions.ts'

/** Calls whose answers come on one stream. */
export type StreamCalls = {
  readonly ids: RequestId[]
  /** as the client knows it from the first event; undefined when it cannot come back */
  streamId?: string
  /** the latest response that carries the stream; one before it has nothing to say any more */
  reading?: Reading
  timer?: NodeJS.Timeout
}

/** A response that carries a stream. */
export type Reading = {
  sent(chunk: Uint8Array): void
  /** @param whole - false when the client left before the end */
  ended(whole: boolean): void
}

export type CallStreams = {
  /** The calls of a stream that a client wants to read on; undefined when none is open. */
  find(streamId: string): StreamCalls | undefined
  /** A response begins to carry the answers: nobody waits for these calls' client any longer. */
  read(calls: StreamCalls): Reading
}

/**
 * The calls of one session by their streams. When a client leaves and can come back, its calls get the time to wait for
 * it, each stream its own; then they are cancelled.
 */
export function createCallStreams(session: Pick<Session, 'abandon' | 'inFlight'>, resumeMs: number): CallStreams {
  const streams = new Map<string, StreamCalls>()

  function cancel(calls: StreamCalls): void {
    if (calls.streamId !== undefined) streams.delete(calls.streamId)
    session.abandon(calls.ids)
  }

  function left(calls: StreamCalls): void {
    const mayComeBack = calls.streamId !== undefined && calls.ids.some(id => session.inFlight.has(id))
    if (mayComeBack) calls.timer = setTimeout(cancel, resumeMs, calls).unref()
    else cancel(calls)
  }

  return {
    find: streamId => streams.get(streamId),

    read(calls) {
      clearTimeout(calls.timer)
      // the response before this one may have ended meanwhile, and taken it out
      if (calls.streamId !== undefined) streams.set(calls.streamId, calls)
      let isFirst = calls.streamId === undefined
      const reading: Reading = {
        sent(chunk) {
          if (!isFirst) return
          isFirst = false
          calls.streamId = streamBegunBy(chunk)
          if (calls.streamId !== undefined) streams.set(calls.streamId, calls)
        },
        ended(whole) {
          if (calls.reading !== reading) return
          if (!whole) left(calls)
          else if (calls.streamId !== undefined) streams.delete(calls.streamId)
        },
      }
      calls.reading = reading
      return reading
    },
  }
}
