import { afterAll, beforeAll, expect, test } from 'vitest'
import { speak } from '../../support/attacker.ts'
import { type Stack, startStack } from '../../support/stack.ts'

// Authorizing by link: the attacker sends addresses to people, owns web pages they visit, and has a Zoho account.

let stack: Stack
const clientName = 'Northwind SDP MCP'
const client = () => stack.simulator.clients.find(({ name }) => name === clientName)!
let callback: string

beforeAll(async () => {
  stack = await startStack({
    environment: simulator => {
      const { clientId, clientSecret } = simulator.clients.find(({ name }) => name === clientName)!
      return { SDP_CONSENT_CLIENT_ID: clientId, SDP_CONSENT_CLIENT_SECRET: clientSecret }
    },
  })
  callback = `${stack.publicUrl}/connect/callback`
  await fetch(`${stack.simulator.url}/_sim/clients/${client().clientId}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ redirectUris: [callback] }),
  })
  stack.simulator.faults.set({ grantCodesPer10Minutes: 1000, newRefreshTokensPer10Minutes: 1000 })
  expect((await stack.admin('POST', '/v1/users', { username: 'alice' }, { prefer: 'wait=60' })).status).toBe(201)
})
afterAll(() => stack?.[Symbol.asyncDispose]())

const newLink = async (): Promise<string> => (await stack.admin('POST', '/v1/users/alice/connect-link')).body.url
const connection = async () => (await stack.admin('GET', '/v1/users/alice')).body.sdp.connection
const tokenCalls = () => stack.simulator.log.filter(entry => entry.path === '/oauth/v2/token').length
const form = { 'content-type': 'application/x-www-form-urlencoded' }

/** Presses the button. @returns the cookie, and where the browser is sent */
async function press(link: string, headers: Record<string, string> = {}) {
  const answer = await fetch(link, { method: 'POST', body: '', redirect: 'manual', headers: { ...form, ...headers } })
  return {
    status: answer.status,
    cookie: answer.headers.getSetCookie()[0]?.split(';')[0],
    location: answer.headers.get('location'),
  }
}

/** Agrees at Zoho as `user`. @returns the address that Zoho sends the browser to */
async function agree(location: string, user: string): Promise<URL> {
  const body = new URLSearchParams(new URL(location).searchParams)
  body.set('user', user)
  body.set('decision', 'allow')
  const answer = await fetch(new URL('/oauth/v2/auth', location), { method: 'POST', body, redirect: 'manual' })
  return new URL(answer.headers.get('location')!)
}

test('attack: no parameter, path or header leads the browser from our pages to a place of the attacker', async () => {
  const evil = 'https://evil.example/'
  const names = [
    'redirect_uri',
    'redirect',
    'next',
    'return_to',
    'url',
    'location',
    'accounts-server',
    'state',
    'code',
    'error',
  ]
  const link = await newLink()
  for (const name of names)
    for (const value of [
      evil,
      '//evil.example',
      '/\\evil.example',
      'javascript:alert(1)',
      '\r\nLocation: https://evil.example',
    ]) {
      const query = `?${name}=${encodeURIComponent(value)}`
      const back = await fetch(`${callback}${query}`, { redirect: 'manual' })
      expect([name, back.status, back.headers.get('location')]).toEqual([name, 303, 'result'])
      const { location } = await press(`${link}${query}`)
      // the first browser that pressed keeps the link; whoever is sent on is sent to Zoho
      if (location !== null) {
        expect(new URL(location).origin).toBe(stack.simulator.url)
        expect(new URL(location).searchParams.get('redirect_uri')).toBe(callback)
      }
    }
  const { port, host } = new URL(stack.publicUrl)
  for (const path of [
    '//evil.example/connect/callback',
    '/connect/callback/..//evil.example',
    '/connect//evil.example',
  ])
    expect(
      await speak(stack.publicUrl, `GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`),
    ).not.toMatch(/location:\s*(https?:)?\/\/evil/i)
  for (const header of [
    'X-Forwarded-Host: evil.example',
    'Forwarded: host=evil.example',
    'X-Original-URL: //evil.example',
  ])
    expect(
      await speak(
        stack.publicUrl,
        `GET /connect/callback HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n${header}\r\nConnection: close\r\n\r\n`,
      ),
    ).not.toContain('evil.example')
})

test('attack: a page of another site cannot press the button of a link, whatever its browser says of it', async () => {
  const link = await newLink()
  for (const headers of [
    { 'sec-fetch-site': 'cross-site' },
    { 'sec-fetch-site': 'same-site' },
    { origin: 'https://evil.example' },
    { origin: 'null' },
    { origin: 'null', 'sec-fetch-site': 'cross-site' },
  ]) {
    const { status, cookie, location } = await press(link, headers as Record<string, string>)
    expect([headers, status >= 400, cookie, location]).toEqual([headers, true, undefined, null])
  }
  // none of that used the link up
  expect((await press(link)).status).toBe(303)
})

test('attack: an answer of Zoho without the cookie of the browser that pressed the button connects nobody', async () => {
  const calls = tokenCalls()
  const { cookie, location } = await press(await newLink())
  const back = await agree(location!, 'bob')
  const other = await press(await newLink())
  for (const sent of [
    '',
    'sdp_connect=',
    `sdp_connect=${'A'.repeat(43)}`,
    other.cookie!,
    `${other.cookie}; ${cookie}`,
    `x${cookie}`,
  ]) {
    const answer = await fetch(back, { redirect: 'manual', headers: sent ? { cookie: sent } : {} })
    expect([sent, answer.status, answer.headers.get('location')]).toEqual([sent, 303, 'result'])
    const result = answer.headers.getSetCookie().find(text => text.startsWith('sdp_connect_result='))!
    const page = await fetch(`${stack.publicUrl}/connect/result`, { headers: { cookie: result.split(';')[0]! } })
    expect([sent, page.status]).toEqual([sent, 410])
  }
  expect(tokenCalls()).toBe(calls)
  expect(await connection()).toBe('needs-authorization')
})

test('attack: one answer of Zoho sent many times at once is used once', async () => {
  const { cookie, location } = await press(await newLink())
  const back = await agree(location!, 'alice')
  const calls = tokenCalls()
  await Promise.all(Array.from({ length: 12 }, () => fetch(back, { redirect: 'manual', headers: { cookie: cookie! } })))
  expect(tokenCalls()).toBe(calls + 1)
  expect(await connection()).toBe('connected')
})

test('attack: links are not guessed, and a guess is answered like a link that was used', async () => {
  const used = await newLink()
  const { cookie, location } = await press(used)
  await fetch(await agree(location!, 'alice'), { redirect: 'manual', headers: { cookie: cookie! } })
  const spent = await fetch(used)
  const spentText = await spent.text()
  const seen = new Set<string>()
  for (let attempt = 0; attempt < 50; attempt++) {
    const guess = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('base64url')
    const answer = await fetch(`${stack.publicUrl}/connect/${guess}`)
    seen.add(`${answer.status} ${await answer.text()}`)
  }
  expect([...seen]).toEqual([`410 ${spentText}`])
  const links = await Promise.all(Array.from({ length: 5 }, newLink))
  for (const link of links) expect(link.split('/').at(-1)).toMatch(/^[\w-]{43}$/)
  expect(new Set(links.map(link => link.slice(-43, -30))).size).toBe(5)
})

test('attack: markup and scripts in names, errors and states come out as text', async () => {
  const markup = '<img src=x onerror=alert(1)><script>alert(1)</script>"\'&'
  await stack.admin('PATCH', '/v1/users/alice', { displayName: markup.slice(0, 60) })
  const link = await newLink()
  const pages = [await (await fetch(link)).text()]
  const { cookie, location } = await press(link)
  const state = new URL(location!).searchParams.get('state')!
  for (const query of [
    { state, error: markup },
    { state: markup, code: markup },
    { state: 'x', error: 'access_denied', error_description: markup, location: markup },
  ] as Record<string, string>[]) {
    const answer = await fetch(`${callback}?${new URLSearchParams(query)}`, {
      redirect: 'manual',
      headers: { cookie: cookie! },
    })
    const result = answer.headers.getSetCookie().find(text => text.startsWith('sdp_connect_result='))!
    pages.push(
      await (await fetch(`${stack.publicUrl}/connect/result`, { headers: { cookie: result.split(';')[0]! } })).text(),
    )
  }
  for (const page of pages) expect(page).not.toMatch(/<(img|script)/i)
  expect(pages[0]).toContain('&#60;img')
})
