import { cut } from '../cut.ts'
/** Dates as people give them, in their time zone; pure. Zone rules come from the runtime's own database. */
export type Clock = { now: number; zone: string }

export class DateError extends Error {}

const minute = 60_000
const dayMs = 24 * 60 * minute
const units: Record<string, number> = { m: minute, min: minute, h: 60 * minute }

/**
 * Reads an instant.
 *
 * Accepts `now`, `today`, `yesterday`, `tomorrow`, weekday names (the coming one), `start_of_week` (Monday),
 * `start_of_month`, offsets such as `-7d`, `+2h`, `-30m`, `+1w`, ISO dates and times with or without an offset, and a
 * day followed by a time (`tomorrow 09:00`). Without an offset the time is the person's own.
 *
 * @param edge - which end of a day a bare day means
 * @throws DateError naming the accepted forms
 */
export function parseInstant(text: string, clock: Clock, edge: 'start' | 'end' = 'start'): number {
  const wanted = text.trim().toLowerCase()
  if (wanted.length > 60) throw unreadable(text)
  if (wanted === 'now') return clock.now
  const offset = /^([+-]\d{1,5})\s*(m|min|h|d|w)$/.exec(wanted)
  if (offset) return shifted(Number(offset[1]), offset[2] ?? 'd', clock, edge)
  const [, dayPart = '', timePart] =
    /^(.+?)(?:[ t]+(?:at )?(\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?.*))?$/.exec(wanted) ?? []
  const day = parseDay(dayPart, clock)
  if (!day) throw unreadable(text)
  if (timePart === undefined)
    return edge === 'start' ? startOf(day, clock.zone) : startOf(addDays(day, 1), clock.zone) - 1
  const time = /^(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?\s*(z|[+-]\d{2}:?\d{2})?$/.exec(timePart)
  if (!time) throw unreadable(text)
  const [hours, minutes, seconds] = [Number(time[1]), Number(time[2]), Number(time[3] ?? 0)]
  if (hours > 24 || minutes > 59 || seconds > 59) throw unreadable(text)
  if (time[4]) return Date.UTC(day.year, day.month - 1, day.day, hours, minutes, seconds) - fixedOffset(time[4])
  return wallToInstant({ ...day, hours, minutes, seconds }, clock.zone)
}

/** Local ISO 8601 with the offset: the person's own time and unmistakable at once. */
export function formatInstant(instantMs: number, zone: string): string {
  const offsetMinutes = Math.round(zoneOffset(instantMs, zone) / minute)
  const localMs = instantMs + offsetMinutes * minute
  const day = Math.floor(localMs / dayMs)
  const minutes = Math.floor((localMs - day * dayMs) / minute)
  return `${dayText(day)}T${two(Math.floor(minutes / 60))}:${two(minutes % 60)}${offsetText(offsetMinutes)}`
}

// Lists show forty times, most of them of few days.
const dayTexts = new Map<number, string>()
const mostDays = 500

/** Such as `2025-03-31`. @param day - days since 1970. @throws RangeError beyond what dates can be */
function dayText(day: number): string {
  const known = dayTexts.get(day)
  if (known !== undefined) return known
  const iso = new Date(day * dayMs).toISOString()
  const text = iso.slice(0, iso.indexOf('T'))
  if (dayTexts.size >= mostDays) dayTexts.clear()
  dayTexts.set(day, text)
  return text
}

/** `Z`, or such as `+05:30`. */
function offsetText(minutes: number): string {
  if (minutes === 0) return 'Z'
  const size = Math.abs(minutes)
  return `${minutes < 0 ? '-' : '+'}${two(Math.floor(size / 60))}:${two(size % 60)}`
}

/** First millisecond of the day of `now` in the zone, and of the next one. */
export function today(clock: Clock): { start: number; end: number } {
  const day = dayOf(clock.now, clock.zone)
  return { start: startOf(day, clock.zone), end: startOf(addDays(day, 1), clock.zone) }
}

type Day = { year: number; month: number; day: number }
type Wall = Day & { hours: number; minutes: number; seconds: number }

const weekdays = ['sunday', 'monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday']

function parseDay(text: string, clock: Clock): Day | undefined {
  const current = dayOf(clock.now, clock.zone)
  const offset = /^([+-]\d{1,4})\s*(d|w)$/.exec(text)
  if (offset) return addDays(current, Number(offset[1]) * (offset[2] === 'w' ? 7 : 1))
  const iso = /^(\d{4})-(\d{1,2})-(\d{1,2})$/.exec(text)
  if (iso) return validDay({ year: Number(iso[1]), month: Number(iso[2]), day: Number(iso[3]) })
  const weekday = weekdays.findIndex(name => name === text || name.slice(0, 3) === text)
  if (weekday >= 0) return addDays(current, ((weekday - weekdayOf(current) + 6) % 7) + 1)
  switch (text.replaceAll(' ', '_')) {
    case 'today':
      return current
    case 'yesterday':
      return addDays(current, -1)
    case 'tomorrow':
      return addDays(current, 1)
    case 'start_of_week':
    case 'this_week':
      return addDays(current, -((weekdayOf(current) + 6) % 7))
    case 'start_of_month':
    case 'this_month':
      return { ...current, day: 1 }
    default:
      return undefined
  }
}

function shifted(amount: number, unit: string, clock: Clock, edge: 'start' | 'end'): number {
  const fixed = units[unit]
  if (fixed) return clock.now + amount * fixed
  // days and weeks keep the hour of the day over a change of clocks; looking back, they begin with the day
  const days = amount * (unit === 'w' ? 7 : 1)
  const day = addDays(dayOf(clock.now, clock.zone), days)
  if (edge === 'start' && amount < 0) return startOf(day, clock.zone)
  return wallToInstant({ ...wallOf(clock.now, clock.zone), ...day }, clock.zone)
}

function validDay(day: Day): Day | undefined {
  const date = new Date(Date.UTC(day.year, day.month - 1, day.day))
  return date.getUTCMonth() === day.month - 1 && date.getUTCDate() === day.day ? day : undefined
}

function addDays(day: Day, count: number): Day {
  const date = new Date(Date.UTC(day.year, day.month - 1, day.day + count))
  return { year: date.getUTCFullYear(), month: date.getUTCMonth() + 1, day: date.getUTCDate() }
}

function weekdayOf(day: Day): number {
  return new Date(Date.UTC(day.year, day.month - 1, day.day)).getUTCDay()
}

function startOf(day: Day, zone: string): number {
  return wallToInstant({ ...day, hours: 0, minutes: 0, seconds: 0 }, zone)
}

/**
 * The instant at which clocks of the zone show the wall time. A time that occurs twice is the earlier one; one that
 * is skipped is moved forward by the gap, as calendars do.
 */
function wallToInstant(wall: Wall, zone: string): number {
  const asUtc = Date.UTC(wall.year, wall.month - 1, wall.day, wall.hours, wall.minutes, wall.seconds)
  const offsets = [zoneOffset(asUtc - dayMs, zone), zoneOffset(asUtc + dayMs, zone)]
  const exact = offsets.map(offset => asUtc - offset).filter(instant => instant + zoneOffset(instant, zone) === asUtc)
  return exact.length > 0 ? Math.min(...exact) : asUtc - (offsets[0] ?? 0)
}

function dayOf(instantMs: number, zone: string): Day {
  return wallOf(instantMs, zone)
}

function wallOf(instantMs: number, zone: string): Wall {
  const local = new Date(instantMs + zoneOffset(instantMs, zone))
  return {
    year: local.getUTCFullYear(),
    month: local.getUTCMonth() + 1,
    day: local.getUTCDate(),
    hours: local.getUTCHours(),
    minutes: local.getUTCMinutes(),
    seconds: local.getUTCSeconds(),
  }
}

const formats = new Map<string, Intl.DateTimeFormat>()
/** offsets of spans at both ends of which they are the same: the tz database knows no two changes of a zone within three days */
const steady = new Map<string, Map<number, number>>()
const spanMs = 6 * 60 * minute
const mostSpans = 500
const mostZones = 10

/** How far the zone is ahead of UTC at an instant, in milliseconds. */
function zoneOffset(instantMs: number, zone: string): number {
  const span = Math.floor(instantMs / spanMs)
  const offsets = steady.get(zone) ?? new Map<number, number>()
  const known = offsets.get(span)
  if (known !== undefined) return known
  const first = computedOffset(span * spanMs, zone)
  if (first !== computedOffset((span + 1) * spanMs - 1, zone)) return computedOffset(instantMs, zone)
  if (offsets.size >= mostSpans) offsets.clear()
  if (steady.size >= mostZones) steady.clear()
  steady.set(zone, offsets.set(span, first))
  return first
}

/** By the rules of the runtime, which takes longer than everything else about a date. */
function computedOffset(instantMs: number, zone: string): number {
  let format = formats.get(zone)
  if (!format) {
    format = new Intl.DateTimeFormat('en-US', {
      timeZone: zone,
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    })
    formats.set(zone, format)
  }
  const part = Object.fromEntries(format.formatToParts(instantMs).map(({ type, value }) => [type, Number(value)]))
  const { year = 0, month = 1, day = 1, hour = 0, minute: minutes = 0, second = 0 } = part
  return Date.UTC(year, month - 1, day, hour, minutes, second) - Math.floor(instantMs / 1000) * 1000
}

function fixedOffset(text: string): number {
  if (text === 'z') return 0
  const [, sign, hours, minutes] = /^([+-])(\d{2}):?(\d{2})$/.exec(text) ?? []
  return (sign === '-' ? -1 : 1) * (Number(hours) * 60 + Number(minutes)) * minute
}

function unreadable(text: string): DateError {
  return new DateError(
    `"${cut(text, 40)}" is not a date. Use ISO (2025-03-31, 2025-03-31T14:30, with or without offset) or: now, today, yesterday, tomorrow, monday, start_of_week, start_of_month, -7d, +2h, tomorrow 09:00.`,
  )
}

function two(value: number): string {
  return String(value).padStart(2, '0')
}
