import { expect, test } from 'vitest'
import { mayReach, parseTarget } from './rules.ts'

test('a target is a host and a port, and nothing that merely looks like it', () => {
  expect(parseTarget('Accounts.Zoho.com:443')).toEqual({ host: 'accounts.zoho.com', port: 443 })
  expect(parseTarget('[2001:DB8::1]:8443')).toEqual({ host: '2001:db8::1', port: 8443 })
  expect(parseTarget('10.0.0.1:1')).toEqual({ host: '10.0.0.1', port: 1 })
  for (const text of [
    '',
    'accounts.zoho.com',
    'accounts.zoho.com:',
    'accounts.zoho.com:0',
    'accounts.zoho.com:65536',
    'accounts.zoho.com:443:80',
    'accounts.zoho.com.:443',
    'http://accounts.zoho.com:443',
    'accounts.zoho.com:443/',
    'a@accounts.zoho.com:443',
    'accounts.zoho.com%00.evil.example:443',
    'accounts.zoho.com\n:443',
    ' accounts.zoho.com:443',
    '[::1:443',
    '::1:443',
    `${'a'.repeat(300)}:443`,
  ])
    expect([text, parseTarget(text)]).toEqual([text, undefined])
})

test('an instance reaches the two origins of its user with their ports, and added hosts over HTTPS', () => {
  const reach = {
    origins: ['https://sdpondemand.manageengine.com', 'http://simulator:8080', 'https://[2001:db8::1]:8443'],
    hosts: ['proxy.corp.example', '*.files.example'],
  }
  const may = (authority: string) => mayReach(parseTarget(authority)!, reach)
  for (const fine of [
    'sdpondemand.manageengine.com:443',
    'simulator:8080',
    '[2001:db8::1]:8443',
    'proxy.corp.example:443',
    'a.b.files.example:443',
  ])
    expect([fine, may(fine)]).toEqual([fine, true])
  for (const no of [
    'sdpondemand.manageengine.com:80',
    'sdpondemand.manageengine.com:22',
    'sdpondemand.manageengine.com.evil.example:443',
    'xsdpondemand.manageengine.com:443',
    'simulator:80',
    'simulator:443',
    '[2001:db8::1]:443',
    'proxy.corp.example:8080',
    'files.example:443',
    'xfiles.example:443',
    '169.254.169.254:80',
    '127.0.0.1:443',
  ])
    expect([no, may(no)]).toEqual([no, false])
})
