import { expect, test, vi } from 'vitest'
import { createOwnAddresses } from './own-addresses.ts'

test('an address of an interface is our own, and others are not', () => {
  const own = createOwnAddresses()
  expect(own.has('127.0.0.1')).toBe(true)
  // for documentation only (RFC 5737)
  expect(own.has('192.0.2.1')).toBe(false)
})

test('interfaces are looked at again for an address that was not there, and not for one that was', () => {
  const look = vi.fn(() => ['127.0.0.1'])
  const own = createOwnAddresses(look)
  expect([own.has('127.0.0.1'), own.has('10.213.0.1')]).toEqual([true, false])
  look.mockReturnValue(['127.0.0.1', '10.213.0.1'])
  expect([own.has('10.213.0.1'), own.has('127.0.0.1')]).toEqual([true, true])
  expect(look).toHaveBeenCalledTimes(3)
})
