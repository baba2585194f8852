import type { Faults } from './faults/faults.ts'
import type { RequestLog } from './request-log.ts'
import type { State } from './state.ts'

/** Everything the simulator's parts share, built once in `simulator.ts`. */
export interface World {
  /** Replaced as a whole by a reset, so read it through `world`, never keep it. */
  state: State
  faults: Faults
  log: RequestLog
  now: () => number
  /** Says that the state changed, for the state file. */
  changed: () => void
  /** The simulator's own origin as clients reach it. */
  origin: () => string
}
