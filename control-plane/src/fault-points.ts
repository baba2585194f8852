/**
 * Places where a crash would hurt most. With `SDP_FAULT_POINT` set to one of them, the control plane kills itself (SIGKILL)
 * when it gets there: so tests prove that the next one finishes the job. Never set in production.
 */
export const faultPoints = [
  'start.recorded',
  'start.running',
  'remove.goodbye',
  'remove.container',
  'remove.erased',
  'move.begun',
  'move.running',
  'move.checked',
  'move.swapped',
  'move.drained',
  'rollout.noted',
] as const

export type FaultPoint = (typeof faultPoints)[number]
export type ReachFaultPoint = (point: FaultPoint) => void

export function createFaultPoints(chosen: FaultPoint | undefined): ReachFaultPoint {
  if (chosen === undefined) return () => {}
  return point => {
    if (point === chosen) process.kill(process.pid, 'SIGKILL')
  }
}
