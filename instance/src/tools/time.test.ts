import { describe, expect, it } from 'vitest'
import { DateError, formatInstant, parseInstant, today } from './time.ts'

const zone = 'America/New_York'
/** a Friday, two days before clocks go forward in New York */
const now = Date.parse('2025-03-07T15:30:00-05:00')
const clock = { now, zone }
const iso = (text: string, edge?: 'start' | 'end') => formatInstant(parseInstant(text, clock, edge), zone)

describe('a date as a person writes it', () => {
  it.each([
    ['now', '2025-03-07T15:30-05:00'],
    ['today', '2025-03-07T00:00-05:00'],
    ['Yesterday', '2025-03-06T00:00-05:00'],
    ['tomorrow 09:00', '2025-03-08T09:00-05:00'],
    ['tomorrow at 9:05', '2025-03-08T09:05-05:00'],
    ['-7d', '2025-02-28T00:00-05:00'],
    ['+2h', '2025-03-07T17:30-05:00'],
    ['-30m', '2025-03-07T15:00-05:00'],
    ['+1w', '2025-03-14T15:30-04:00'],
    ['monday', '2025-03-10T00:00-04:00'],
    ['friday', '2025-03-14T00:00-04:00'],
    ['start_of_week', '2025-03-03T00:00-05:00'],
    ['start of month', '2025-03-01T00:00-05:00'],
    ['2025-01-31', '2025-01-31T00:00-05:00'],
    ['2025-01-31T14:00', '2025-01-31T14:00-05:00'],
    ['2025-01-31 14:00:30', '2025-01-31T14:00-05:00'],
    ['2025-01-31T14:00:00Z', '2025-01-31T09:00-05:00'],
    ['2025-01-31T14:00:00.123+02:00', '2025-01-31T07:00-05:00'],
  ])('%s', (text, expected) => {
    expect(iso(text)).toBe(expected)
  })

  it('means the end of a day where a range ends', () => {
    expect(parseInstant('2025-03-09', clock, 'end')).toBe(Date.parse('2025-03-10T00:00:00-04:00') - 1)
    expect(parseInstant('tomorrow 09:00', clock, 'end')).toBe(Date.parse('2025-03-08T09:00:00-05:00'))
  })

  it.each(['', 'soon', '2025-02-30', '2025-13-01', '31.01.2025', '7d', '25:00', 'today 10:75', '2025-01-31T14'])(
    'refuses %j and names the accepted forms',
    text => {
      expect(() => parseInstant(text, clock)).toThrow(DateError)
      expect(() => parseInstant(text, clock)).toThrow(/-7d/)
    },
  )
})

describe('a change of clocks', () => {
  it('moves a skipped time forward by the gap', () => {
    expect(iso('2025-03-09T02:30')).toBe('2025-03-09T03:30-04:00')
  })
  it('takes the first of two equal times', () => {
    expect(iso('2025-11-02T01:30')).toBe('2025-11-02T01:30-04:00')
  })
  it('keeps the hour of the day over days', () => {
    expect(iso('+3d')).toBe('2025-03-10T15:30-04:00')
  })
  it('makes a day of 23 hours', () => {
    const { start, end } = today({ now: Date.parse('2025-03-09T18:00:00Z'), zone })
    expect(end - start).toBe(23 * 3_600_000)
  })
  it('finds midnight where midnight is skipped', () => {
    const { start } = today({ now: Date.parse('2025-04-25T12:00:00Z'), zone: 'Africa/Cairo' })
    expect(formatInstant(start, 'Africa/Cairo')).toBe('2025-04-25T01:00+03:00')
  })
})

it('what is shown reads back as the same minute, in every zone and season (seeded)', () => {
  const zones = [
    'UTC',
    'America/New_York',
    'Europe/Berlin',
    'Asia/Kolkata',
    'Australia/Lord_Howe',
    'Pacific/Apia',
    'America/St_Johns',
    'Africa/Cairo',
  ]
  let state = 7
  for (let round = 0; round < 2_000; round++) {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    const instant = Math.floor((1_000_000_000_000 + state * 450) / 60_000) * 60_000
    const zone = zones[round % zones.length] ?? 'UTC'
    const shown = formatInstant(instant, zone)
    expect(parseInstant(shown, { now, zone }), `${shown} ${zone}`).toBe(instant)
    const { start, end } = today({ now: instant, zone })
    expect(start <= instant && instant < end, `${shown} ${zone}`).toBe(true)
  }
})

it('every instant is told in the clocks of its zone, also within the day of their change', () => {
  const zones = [
    ...['UTC', 'Europe/Copenhagen', 'America/New_York', 'America/St_Johns', 'Asia/Kolkata', 'Asia/Gaza'],
    ...['Australia/Lord_Howe', 'Pacific/Chatham', 'Pacific/Apia', 'Africa/Casablanca', 'Asia/Pyongyang'],
  ]
  for (const zone of zones) {
    const format = new Intl.DateTimeFormat('sv-SE', {
      timeZone: zone,
      dateStyle: 'short',
      timeStyle: 'short',
    })
    const shown = (instant: number) => formatInstant(instant, zone).slice(0, 16)
    const expected = (instant: number) => format.format(instant).replace(' ', 'T')
    let before = ''
    for (let at = Date.UTC(2009, 0, 1); at < Date.UTC(2012, 1, 1); at += 7 * 3_600_000 + 61_000) {
      expect(shown(at), zone).toBe(expected(at))
      const offset = formatInstant(at, zone).slice(16)
      // the minutes around a change
      if (offset !== before && before !== '')
        for (let minute = 0; minute < 8 * 60; minute += 7)
          expect(shown(at - minute * 60_000), zone).toBe(expected(at - minute * 60_000))
      before = offset
    }
  }
})
