import { expect, test } from 'vitest'
import { type Attempts, createAttempts } from './attempts.ts'
import { AppError } from './errors.ts'

function harness(capacity?: number) {
  let time = 1_000_000
  const attempts = createAttempts({ elapsed: () => time, ...(capacity ? { capacity } : {}) })
  return {
    attempts,
    pass: (seconds: number) => {
      time += seconds * 1000
    },
    /** seconds the address has to wait; 0: none */
    waits(address: string): number {
      try {
        attempts.check(address)
        return 0
      } catch (error) {
        expect(error).toBeInstanceOf(AppError)
        expect(error).toMatchObject({ code: 'too-many-attempts', status: 429 })
        return (error as AppError).retryAfterSeconds!
      }
    },
  }
}

test('a few slips cost nothing, then each failure doubles the wait, up to five minutes', () => {
  const { attempts, waits, pass } = harness()
  const seen: number[] = []
  for (let failure = 1; failure <= 16; failure++) {
    attempts.failed('192.0.2.1')
    seen.push(waits('192.0.2.1'))
    pass(waits('192.0.2.1'))
    expect(waits('192.0.2.1')).toBe(0)
  }
  expect(seen).toEqual([0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300])
})

test('guessing a whole day from one address is worth some three hundred guesses', () => {
  const { attempts, waits, pass } = harness()
  let guesses = 0
  for (let seconds = 0; seconds < 86_400; ) {
    attempts.failed('192.0.2.1')
    guesses++
    const wait = waits('192.0.2.1')
    pass(wait || 0.001)
    seconds += wait || 0.001
  }
  expect(guesses).toBeLessThan(310)
})

test('another address does not wait, and success or a quarter of an hour forgets', () => {
  const { attempts, waits, pass } = harness()
  for (let failure = 0; failure < 6; failure++) attempts.failed('192.0.2.1')
  expect(waits('192.0.2.1')).toBe(2)
  expect(waits('192.0.2.2')).toBe(0)
  attempts.succeeded('192.0.2.1')
  expect(waits('192.0.2.1')).toBe(0)
  for (let failure = 0; failure < 6; failure++) attempts.failed('192.0.2.1')
  pass(901)
  attempts.failed('192.0.2.1')
  expect(waits('192.0.2.1')).toBe(0)
})

test('an IPv6 host is its /64 network, and a mapped IPv4 address is the plain one', () => {
  const { attempts, waits } = harness()
  for (let failure = 0; failure < 6; failure++) attempts.failed(`2001:db8:1:2::${failure + 1}`)
  expect(waits('2001:db8:1:2:ffff::9')).toBe(2)
  expect(waits('2001:db8:1:3::1')).toBe(0)
  for (let failure = 0; failure < 6; failure++) attempts.failed('::ffff:192.0.2.9')
  expect(waits('192.0.2.9')).toBe(2)
})

test('memory is bounded, and whoever failed last is remembered', () => {
  const { attempts, waits } = harness(100)
  for (let host = 0; host < 5_000; host++) {
    attempts.failed(`10.${host >> 8}.${host & 255}.1`)
    for (let failure = 0; failure < (host === 4_000 ? 6 : 0); failure++) attempts.failed('192.0.2.1')
    if (host > 4_000 && host % 50 === 0) attempts.failed('192.0.2.1')
  }
  expect(attempts.size()).toBe(100)
  expect(waits('192.0.2.1')).toBeGreaterThan(0)
})

test('guesses that are spread over workers are slowed down as if all came to one', () => {
  const workers: Attempts[] = []
  for (let index = 0; index < 2; index++)
    workers.push(
      createAttempts({
        elapsed: () => 0,
        tell(event) {
          for (const [at, other] of workers.entries()) if (at !== index) other.heard(event)
        },
      }),
    )
  const [one, two] = workers as [Attempts, Attempts]
  for (let guess = 0; guess < 5; guess++) workers[guess % 2]!.failed('192.0.2.1')
  for (const worker of workers) expect(() => worker.check('192.0.2.1')).toThrow(/Wait 1 seconds/)
  two.check('192.0.2.2')
  one.succeeded('192.0.2.1')
  for (const worker of workers) worker.check('192.0.2.1')
})
