import { expect, it } from 'vitest'
import { SdpError } from './errors.ts'
import { holds, settled } from './settle.ts'

const lost = () => Promise.reject(new SdpError('indeterminate', 'No answer came.', { call: 'POST /requests' }))

it('a write whose answer came is not looked for', async () => {
  const look = () => Promise.reject(new Error('looked'))
  expect(await settled(async () => 1, look)).toBe(1)
  await expect(settled(() => Promise.reject(new SdpError('denied', 'no')), look)).rejects.toThrow('no')
})

it('a lost answer is settled by what is there', async () => {
  expect(await settled(lost, async () => 2)).toBe(2)
})

it.each([
  ['nothing is there', async () => undefined, 'is not there yet'],
  ['the look fails too', () => Promise.reject(new SdpError('down', 'gone')), 'No answer came.'],
])('stays indeterminate when %s', async (_why, look, said) => {
  const error = await settled<number>(lost, look).catch(reason => reason)
  expect(error).toMatchObject({ kind: 'indeterminate' })
  expect(error.message).toContain(said)
})

it.each<[object, object, boolean]>([
  [{ priority: { id: '1', name: 'High' } }, { priority: { id: '1' } }, true],
  [{ priority: { id: '2', name: 'Low' } }, { priority: { id: '1' } }, false],
  [{ priority: { id: '1', name: 'High' } }, { priority: { name: 'high' } }, true],
  [{ technician: { id: '1', email_id: 'A@b.c' } }, { technician: { email_id: 'a@b.c' } }, true],
  [{ technician: null }, { technician: null }, true],
  [{ technician: { id: '1' } }, { technician: null }, false],
  [{ due: { value: '17', display_value: 'x' } }, { due: { value: '17' } }, true],
  [{ due: null }, { due: { value: '17' } }, false],
  [{ description: '<div>a<br/>b &amp; c</div>' }, { description: '<p>a</p><p>b &amp; c</p>' }, true],
  [{ udf_fields: { a: '1', b: '2' } }, { udf_fields: { a: '1' } }, true],
  [{ assets: [{ id: '2' }, { id: '1' }] }, { assets: [{ id: '1' }, { id: '2' }] }, true],
  [{ assets: [{ id: '2' }] }, { assets: [] }, false],
  [{ percent: 50 }, { percent: '50' }, true],
])('%o holds %o: %s', (record, sent, expected) => {
  expect(holds(record as Record<string, unknown>, sent as Record<string, unknown>)).toBe(expected)
})
