import { latencyBoundsMs } from './contract.ts'

/** Counts by latency: one number for each bound of the contract, and a last one for everything slower. */
export function createBuckets(): number[] {
  return new Array(latencyBoundsMs.length + 1).fill(0)
}

export function addTo(buckets: number[], durationMs: number): void {
  const index = latencyBoundsMs.findIndex(bound => durationMs <= bound)
  const at = index < 0 ? latencyBoundsMs.length : index
  buckets[at] = (buckets[at] ?? 0) + 1
}
