import type { Call } from '../api/call.ts'
import { fail } from '../api/failure.ts'

/** Refuses any `input_data` where a call takes none (docs/sdp-api.md 18.15). */
export function refuseInput(call: Call): void {
  for (const key of Object.keys(call.input ?? {})) throw fail.extraKey(key)
}
