import { describe, expect, it } from 'vitest'
import { child, encodeStrictly, path } from './path.ts'

describe('an SDP path', () => {
  it('keeps each value inside one segment', () => {
    expect(path`/requests/${'1/../../users'}/notes`.path).toBe('/requests/1%2F..%2F..%2Fusers/notes')
    expect(path`/requests/${'1?x=1#y'}`.path).toBe('/requests/1%3Fx%3D1%23y')
    expect(new URL(`https://h/app/p/api/v3${path`/requests/${'../users'}`.path}`).pathname).toBe(
      '/app/p/api/v3/requests/..%2Fusers',
    )
  })

  it('refuses values that URL parsers resolve or that leave the segment empty', () => {
    for (const value of ['', ' ', '.', '..']) expect(() => path`/requests/${value}`).toThrow(RangeError)
  })

  it('has a template without values', () => {
    expect(child(path`/requests/${'17'}`, '_close')).toEqual({
      path: '/requests/17/_close',
      template: '/requests/{}/_close',
    })
  })

  it('encodes brackets, quotes and braces, which the front server refuses raw', () => {
    const encoded = encodeStrictly(`{"a":["b (c)'!*"]}`)
    expect(encoded).not.toMatch(/[[\]{}"'()!*:,\s]/)
    expect(decodeURIComponent(encoded)).toBe(`{"a":["b (c)'!*"]}`)
  })
})
