import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { candidates, containerAddresses, formatSubnet, overlaps, parseSubnet, prefixFor } from './subnets.ts'

test('a subnet is read and written the same', () => {
  for (const text of ['10.213.0.0/16', '192.168.255.248/29', '0.0.0.0/0', '255.255.255.255/32'])
    expect(formatSubnet(parseSubnet(text))).toBe(text)
  expect(formatSubnet(parseSubnet('10.213.7.9/16'))).toBe('10.213.0.0/16')
  for (const text of ['10.0.0.0', '10.0.0.300/24', '10.0.0.0/33', 'fd00::/8', ''])
    expect(() => parseSubnet(text)).toThrow('IPv4')
})

test('a network is large enough for its members, the gateway, and both ends', () => {
  for (let members = 2; members < 30; members++) {
    const size = 2 ** (32 - prefixFor(members))
    expect(size).toBeGreaterThanOrEqual(members + 3)
  }
  expect(prefixFor(2)).toBe(29)
  expect(prefixFor(6)).toBe(28)
})

test('every subnet of a pool is tried once, each inside the pool and apart from the others', () => {
  const pool = parseSubnet('10.213.0.0/24')
  const all = [...candidates(pool, 29, randomUUID())]
  expect(new Set(all.map(formatSubnet)).size).toBe(32)
  for (const one of all) expect(overlaps(one, pool)).toBe(true)
  for (const one of all) expect(all.filter(other => overlaps(one, other))).toHaveLength(1)
})

test('what is taken is left out, whatever its size', () => {
  const pool = parseSubnet('10.213.0.0/24')
  const taken = ['10.213.0.0/25', '10.213.0.200/30', '172.17.0.0/16'].map(parseSubnet)
  const left = [...candidates(pool, 29, randomUUID(), taken)]
  expect(left).toHaveLength(15)
  for (const one of left) for (const other of taken) expect(overlaps(one, other)).toBe(false)
  expect([...candidates(pool, 29, randomUUID(), [parseSubnet('10.0.0.0/8')])]).toEqual([])
  expect([...candidates(pool, 16, randomUUID())]).toEqual([])
})

test('two users seldom begin at the same place', () => {
  const pool = parseSubnet('10.213.0.0/16')
  const first = Array.from({ length: 200 }, () => formatSubnet(candidates(pool, 29, randomUUID()).next().value!))
  expect(new Set(first).size).toBeGreaterThan(180)
})

test('addresses of containers are told from the gateway of each network, which is the host, and from all others', () => {
  const isContainer = containerAddresses(parseSubnet('10.213.0.0/16'), 29)
  for (const address of ['10.213.0.2', '10.213.0.6', '10.213.255.250', '10.213.7.18'])
    expect([address, isContainer(address)]).toEqual([address, true])
  for (const address of ['10.213.0.1', '10.213.0.9', '10.213.255.249', '10.214.0.2', '127.0.0.1', '::1', '', 'x'])
    expect([address, isContainer(address)]).toEqual([address, false])
})
