import { type Seen, streamBelievedMs } from '../activity.ts'

export type IdleLimits = {
  /** null: never */
  stopAfterMs: number | null
  /** with an open event stream that stays silent; null: never */
  streamStopAfterMs: number | null
}

/**
 * Whether an instance may be stopped because nobody uses it. Pure.
 *
 * @param seen - traffic of all control planes; undefined when there never was any
 * @param readySince - an instance that just came up was wanted by somebody
 */
export function isIdle(
  { seen, readySince, inFlight, now }: { seen: Seen | undefined; readySince: number; inFlight: number; now: number },
  { stopAfterMs, streamStopAfterMs }: IdleLimits,
): boolean {
  if (inFlight > 0) return false
  const streaming = seen !== undefined && now - seen.streamedAt <= streamBelievedMs
  const limitMs = streaming ? streamStopAfterMs : stopAfterMs
  if (limitMs === null) return false
  // what is still to come was written by a clock that was ahead
  const times = [readySince, seen?.activeAt ?? 0].filter(time => time <= now)
  return now - Math.max(0, ...times) >= limitMs
}
