import { expect, test } from 'vitest'
import { addressKind, matchesHost, mayCall, plainAddress } from './addresses.ts'

test.each([
  ['8.8.8.8', 'public'],
  ['172.15.255.255', 'public'],
  ['172.32.0.1', 'public'],
  ['100.63.255.255', 'public'],
  ['2606:4700::1111', 'public'],
  ['2002:0808:0808::1', 'public'],
  ['64:ff9b::808:808', 'public'],
  ['10.0.0.1', 'private'],
  ['127.0.0.1', 'private'],
  ['127.8.9.10', 'private'],
  ['172.16.0.1', 'private'],
  ['172.31.255.255', 'private'],
  ['192.168.1.1', 'private'],
  ['100.64.0.1', 'private'],
  ['::1', 'private'],
  ['fd12::1', 'private'],
  ['::ffff:10.1.2.3', 'private'],
  ['::ffff:0a01:0203', 'private'],
  ['64:ff9b::a01:203', 'private'],
  ['2002:7f00:1::', 'private'],
  ['2001:db8::1', 'private'],
  ['169.254.169.254', 'never'],
  ['::ffff:169.254.169.254', 'never'],
  ['64:ff9b::a9fe:a9fe', 'never'],
  ['2002:a9fe:a9fe::1', 'never'],
  ['fd00:ec2::254', 'never'],
  ['100.100.100.200', 'never'],
  ['192.0.0.192', 'never'],
  ['0.0.0.0', 'never'],
  ['0.1.2.3', 'never'],
  ['::', 'never'],
  ['fe80::1', 'never'],
  ['fe80::1%eth0', 'never'],
  ['ff02::1', 'never'],
  ['224.0.0.1', 'never'],
  ['255.255.255.255', 'never'],
  ['::127.0.0.1', 'never'],
  ['2001:0:1::', 'never'],
  ['helpdesk.example.com', 'never'],
  ['127.1', 'never'],
  ['', 'never'],
] as const)('%s is %s', (address, kind) => {
  expect(addressKind(address)).toBe(kind)
})

test('an address has one spelling, whatever notation it came in', () => {
  for (const text of ['10.1.2.3', '::ffff:10.1.2.3', '::FFFF:0a01:203', '[::ffff:a01:203]', '0:0:0:0:0:ffff:10.1.2.3'])
    expect(plainAddress(text)).toBe('10.1.2.3')
  expect(plainAddress('[FD00::1%eth0]')).toBe('fd00::1')
  for (const text of ['', 'localhost', '1.2.3', '1.2.3.4:80', 'unknown', '::g'])
    expect(plainAddress(text)).toBeUndefined()
})

test('an operator may allow a host on a private address, and nobody may allow a metadata service', () => {
  expect(mayCall('desk.corp.example', '10.0.0.5', [])).toBe(false)
  expect(mayCall('desk.corp.example', '10.0.0.5', ['desk.corp.example'])).toBe(true)
  expect(mayCall('other.corp.example', '10.0.0.5', ['desk.corp.example'])).toBe(false)
  expect(mayCall('desk.corp.example', '169.254.169.254', ['*.corp.example', 'desk.corp.example'])).toBe(false)
  expect(mayCall('anything.example', '8.8.8.8', [])).toBe(true)
})

test('a pattern means names below it, not itself and not names that merely end alike', () => {
  const patterns = ['*.corp.example', 'one.example']
  for (const host of ['a.corp.example', 'a.b.CORP.example', 'one.example', 'One.Example.'])
    expect(matchesHost(host, patterns)).toBe(true)
  for (const host of ['corp.example', 'evilcorp.example', 'a.one.example', 'one.example.evil'])
    expect(matchesHost(host, patterns)).toBe(false)
})
