import { expect, it } from 'vitest'
import { at, instant, name, parseLossless, setOwn } from './json.ts'

it('keeps every digit of ids that SDP sends as numbers', () => {
  const parsed = parseLossless('{"id":990000000000101001,"list":[123640000000240013],"small":12,"half":0.5,"big":1e21}')
  expect(parsed).toEqual({ id: '990000000000101001', list: ['123640000000240013'], small: 12, half: 0.5, big: '1e21' })
})

it('keeps ids that are strings already', () => {
  expect(parseLossless('{"id":"990000000000101001"}')).toEqual({ id: '990000000000101001' })
})

it('reads references, dates and nulls without failing', () => {
  expect(at({ a: { b: null } }, 'a.b')).toBeUndefined()
  expect(at({ a: null }, 'a.b.c')).toBeUndefined()
  expect(name({ id: '1', name: 'High' })).toBe('High')
  expect(name(null)).toBeUndefined()
  expect(instant({ value: '1712345678901', display_value: 'x' })).toBe(1712345678901)
  expect(instant('null')).toBeUndefined()
})

it('digits are kept wherever a long number stands, and a number in a text stays text', () => {
  const long = '1234567890123456789'
  for (const [sent, read] of [
    [`{"a":${long}}`, { a: long }],
    [`{"a": \n -${long}}`, { a: `-${long}` }],
    [`[1,${long}]`, [1, long]],
    [`[${long}]`, [long]],
    [long, long],
    ['{"a":9007199254740993,"b":9007199254740991}', { a: '9007199254740993', b: 9007199254740991 }],
    ['[1e20,1.5E+21,0.25]', ['1e20', '1.5E+21', 0.25]],
    [`{"a":"x:${long}","b":[true,null,12]}`, { a: `x:${long}`, b: [true, null, 12] }],
  ] as const)
    expect(parseLossless(sent), sent).toEqual(read)
})

it('a property is set whatever its name is, and never a prototype', () => {
  const given = JSON.parse('{"b":1,"__proto__":{"admin":true},"a":2,"7":3,"constructor":4}')
  const copy = {}
  for (const key in given) setOwn(copy, key, given[key])
  expect(JSON.stringify(copy)).toBe('{"7":3,"b":1,"__proto__":{"admin":true},"a":2,"constructor":4}')
  expect(Object.getPrototypeOf(copy)).toBe(Object.prototype)
  expect('admin' in copy).toBe(false)
})

it('an instant that no Date can hold, in whatever zone, is none', () => {
  for (const odd of ['9999999999999999', '-9999999999999999', '8640000000000000'])
    expect(instant({ value: odd }), odd).toBeUndefined()
  const last = instant('8639999900000000') ?? 0
  expect(new Date(last + 14 * 3_600_000).toISOString()).toMatch(/^\+275760-/)
  expect(instant('-1')).toBe(-1)
})
