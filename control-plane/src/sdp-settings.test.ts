import { expect, test } from 'vitest'
import { upstreamOrigin } from './sdp-settings.ts'
import { testConfig } from './testing/config.ts'

const asked: string[] = []
/** A DNS of this test's own; nothing is ever sent. */
const resolve = async (host: string) => {
  asked.push(host)
  return (
    {
      'helpdesk.example.com': ['8.8.8.8', '2606:4700::1'],
      'inside.example.com': ['10.1.2.3'],
      'both.example.com': ['8.8.8.8', '192.168.0.9'],
      'meta.example.com': ['169.254.169.254'],
      'mapped.example.com': ['::ffff:127.0.0.1'],
      'desk.corp.example': ['10.0.0.8'],
      'meta.corp.example': ['169.254.169.254'],
    }[host] ?? []
  )
}
const refusalOf = (text: string, environment: Record<string, string> = {}) =>
  upstreamOrigin('baseUrl', text, testConfig(environment), resolve).then(
    () => undefined,
    error => error,
  )

test('a public https address is taken, down to its origin', async () => {
  expect(await upstreamOrigin('baseUrl', 'https://helpdesk.example.com/app/itdesk?x=1', testConfig(), resolve)).toBe(
    'https://helpdesk.example.com',
  )
})

test.each([
  'http://helpdesk.example.com',
  'https://user:secret@helpdesk.example.com',
  'https://inside.example.com',
  'https://both.example.com',
  'https://meta.example.com',
  'https://mapped.example.com',
  'https://127.0.0.1',
  'https://2130706433',
  'https://0x7f000001',
  'https://0177.0.0.1',
  'https://[::1]',
  'https://[::ffff:10.0.0.1]',
  'https://10.0.0.1:8443',
  'https://169.254.169.254',
  'https://[fd00:ec2::254]',
  'https://100.64.0.1',
  'https://localhost',
  'https://localhost.',
  'https://a.localhost',
  'https://intranet',
  'https://desk.local',
  'https://metadata.google.internal',
])('%s is refused, with what to do', async text => {
  const error = await refusalOf(text)
  expect(error).toMatchObject({ code: 'sdp-settings-refused', status: 422, invalid: [{ pointer: '#/sdp/baseUrl' }] })
  expect(error.message).toMatch(/Give|must be/)
  expect(error.message).not.toContain('password@')
})

test('what is refused by its name or number is not even asked of the DNS', async () => {
  asked.length = 0
  for (const text of ['https://10.0.0.1', 'https://localhost', 'https://metadata.google.internal', 'https://intranet'])
    await refusalOf(text)
  expect(asked).toEqual([])
})

test('an operator allows hosts of the own network by name, and nobody a metadata service', async () => {
  const allowed = { SDP_ALLOWED_UPSTREAM_HOSTS: '*.corp.example, intranet' }
  for (const text of ['https://desk.corp.example', 'https://intranet'])
    expect(await refusalOf(text, allowed)).toBeUndefined()
  for (const text of ['https://meta.corp.example', 'https://inside.example.com', 'http://desk.corp.example'])
    expect(await refusalOf(text, allowed)).toMatchObject({ code: 'sdp-settings-refused' })
})

test('a name that cannot be resolved here is taken, because the instance looks again when it connects', async () => {
  expect(await refusalOf('https://unknown.example.com')).toBeUndefined()
})

test('for a simulator everything may be allowed, knowingly', async () => {
  for (const text of ['http://127.0.0.1:4000', 'https://inside.example.com'])
    expect(await refusalOf(text, { SDP_ALLOW_INSECURE_UPSTREAM: 'true' })).toBeUndefined()
})
