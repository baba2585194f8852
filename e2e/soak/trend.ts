/** What a series of measurements says about growth; pure. */

export type Point = { atMs: number; value: number }

export type Trend = {
  /** per hour, by least squares */
  slope: number
  /** standard error of the slope, per hour */
  error: number
  /** the slope is above the bound, and not only by chance */
  exceeds: boolean
}

const hourMs = 3_600_000
/** Of a one-sided normal distribution: once in 700 runs by chance. */
const sureness = 3
/** Windows whose lowest values are taken: garbage makes saw teeth, and a leak lifts their feet. */
const windows = 24

/**
 * Least squares through the lowest values of equal windows, without the first third of the time, in which caches fill and
 * code is compiled.
 *
 * @param bound - growth per hour that is taken to be a leak
 */
export function trendOf(points: readonly Point[], bound: number): Trend {
  const feet = feetOf(points)
  const { slope, error } = leastSquares(feet)
  const perHour = { slope: slope * hourMs, error: error * hourMs }
  return { ...perHour, exceeds: feet.length >= windows / 2 && perHour.slope - sureness * perHour.error > bound }
}

function feetOf(points: readonly Point[]): Point[] {
  const first = points[0]?.atMs ?? 0
  const last = points.at(-1)?.atMs ?? 0
  const from = first + (last - first) / 3
  const width = (last - from) / windows
  const feet = new Map<number, Point>()
  for (const point of points) {
    if (point.atMs < from || !Number.isFinite(point.value)) continue
    const window = Math.min(windows - 1, Math.floor((point.atMs - from) / (width || 1)))
    const foot = feet.get(window)
    if (!foot || point.value < foot.value) feet.set(window, point)
  }
  return [...feet.values()]
}

export function leastSquares(points: readonly Point[]): { slope: number; error: number } {
  const count = points.length
  if (count < 3) return { slope: 0, error: Number.POSITIVE_INFINITY }
  const meanX = points.reduce((sum, { atMs }) => sum + atMs, 0) / count
  const meanY = points.reduce((sum, { value }) => sum + value, 0) / count
  let xx = 0
  let xy = 0
  for (const { atMs, value } of points) {
    xx += (atMs - meanX) ** 2
    xy += (atMs - meanX) * (value - meanY)
  }
  const slope = xy / xx
  const rest = points.reduce((sum, { atMs, value }) => sum + (value - meanY - slope * (atMs - meanX)) ** 2, 0)
  return { slope, error: Math.sqrt(rest / (count - 2) / xx) }
}
