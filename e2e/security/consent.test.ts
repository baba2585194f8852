import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { type Stack, startStack } from '../support/stack.ts'

// One click instead of a console: link, consent page, callback. A browser's part (cookies, redirects) is done by hand.

let stack: Stack
const clientName = 'Northwind SDP MCP'

beforeAll(async () => {
  stack = await startStack({
    installation: 'e2e-consent',
    environment: simulator => {
      const client = simulator.clients.find(({ name }) => name === clientName)!
      return { SDP_CONSENT_CLIENT_ID: client.clientId, SDP_CONSENT_CLIENT_SECRET: client.clientSecret }
    },
  })
  await allow([`${stack.publicUrl}/connect/callback`])
  // without a client of his own, waiting for authorization
  for (const [username, email] of [
    ['bob', stack.simulator.state.people.find(person => person.username === 'bob')!.email],
    ['carol', null],
  ])
    expect((await stack.admin('POST', '/v1/users', { username, email }, { prefer: 'wait=60' })).status).toBe(201)
})
afterAll(() => stack?.[Symbol.asyncDispose]())
// Zoho's limit of codes in ten minutes is not what is looked at here
beforeEach(() => stack.simulator.faults.set({ grantCodesPer10Minutes: 1000, newRefreshTokensPer10Minutes: 1000 }))

const serverClient = () => stack.simulator.clients.find(({ name }) => name === clientName)!
const allow = (redirectUris: string[]) =>
  fetch(`${stack.simulator.url}/_sim/clients/${serverClient().clientId}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ redirectUris }),
  })

type Page = { status: number; text: string; headers: Headers; location: URL | undefined }

/** A browser, as far as it matters: it keeps cookies, and of redirects follows only the one to the page of results. */
function browser() {
  const cookies = new Map<string, string>()
  return {
    cookie: () => cookies.get('sdp_connect'),
    async open(url: string | URL, init: RequestInit = {}): Promise<Page> {
      const isOurs = String(url).startsWith(stack.publicUrl)
      const cookie = [...cookies].map(pair => pair.join('=')).join('; ')
      const response = await fetch(url, {
        redirect: 'manual',
        ...init,
        headers: { ...(isOurs && cookie ? { cookie } : {}), ...(init.headers as Record<string, string>) },
      })
      for (const set of isOurs ? response.headers.getSetCookie() : []) {
        const [name, value] = set.split(';')[0]!.split('=') as [string, string]
        if (/Max-Age=0/.test(set)) cookies.delete(name)
        else cookies.set(name, value)
      }
      const location = response.headers.get('location')
      if (location === 'result') return this.open(new URL(location, url))
      return {
        status: response.status,
        text: await response.text(),
        headers: response.headers,
        location: location === null ? undefined : new URL(location),
      }
    },
    press(link: string): Promise<Page> {
      return this.open(link, {
        method: 'POST',
        body: '',
        headers: { 'content-type': 'application/x-www-form-urlencoded', 'sec-fetch-site': 'same-origin' },
      })
    },
    /** On Zoho's page: signs in and decides. @returns where Zoho sends the browser */
    async decide(consentPage: URL, user: string, decision: 'allow' | 'deny' = 'allow'): Promise<URL> {
      const shown = await this.open(consentPage)
      expect(shown.text).toContain(clientName)
      const form = new URLSearchParams(consentPage.searchParams)
      form.set('user', user)
      form.set('decision', decision)
      const answer = await this.open(new URL('/oauth/v2/auth', consentPage), { method: 'POST', body: form })
      expect(answer.status).toBe(302)
      return answer.location!
    },
  }
}

const newLink = async (username: string): Promise<string> => {
  const { status, body } = await stack.admin('POST', `/v1/users/${username}/connect-link`)
  expect([status, body.url?.startsWith(`${stack.publicUrl}/connect/`)]).toEqual([201, true])
  expect(Date.parse(body.expiresAt) - Date.now()).toBeGreaterThan(14 * 60_000)
  expect(Date.parse(body.expiresAt) - Date.now()).toBeLessThan(16 * 60_000)
  return body.url
}
const connectionOf = async (username: string) => (await stack.admin('GET', `/v1/users/${username}`)).body.sdp
const exchanges = () =>
  stack.simulator.log.filter(entry => entry.path === '/oauth/v2/token' && entry.grantType === 'authorization_code')
    .length

test('a person opens the link, agrees at Zoho, comes back, and works as themselves', async () => {
  const link = await newLink('bob')
  const bobs = browser()
  const landing = await bobs.open(link)
  expect([landing.status, landing.headers.get('content-type')]).toEqual([200, 'text/html; charset=utf-8'])
  expect(landing.text).toContain('<b>bob</b>')
  const gone = await bobs.press(link)
  expect(gone.status).toBe(303)
  expect(gone.headers.get('set-cookie')).toMatch(
    /^sdp_connect=[\w-]{43}; Path=\/connect; Max-Age=\d+; HttpOnly; SameSite=Lax$/,
  )
  const asked = Object.fromEntries(gone.location!.searchParams)
  expect(asked).toMatchObject({
    response_type: 'code',
    client_id: serverClient().clientId,
    redirect_uri: `${stack.publicUrl}/connect/callback`,
    access_type: 'offline',
    prompt: 'consent',
  })
  expect(asked.scope).toContain('SDPOnDemand.requests.ALL')
  const back = await bobs.decide(gone.location!, 'bob')
  const done = await bobs.open(back)
  expect([done.status, done.text]).toEqual([200, expect.stringContaining('<h1>Connected</h1>')])
  expect(bobs.cookie()).toBeUndefined()

  expect(await connectionOf('bob')).toMatchObject({ connection: 'connected', clientId: serverClient().clientId })
  const key = (await stack.admin('POST', '/v1/users/bob/api-keys')).body.apiKey.key
  await using client = await connect('mcp', `${stack.publicUrl}/u/bob/mcp`, key)
  expect((await callTool(client, 'get_my_context')).user).toMatchObject({ username: 'bob', technician: true })

  // the same answer once more, and the same link once more
  const calls = exchanges()
  expect((await bobs.open(back)).status).toBe(410)
  expect((await browser().open(link)).status).toBe(410)
  expect((await browser().press(link)).status).toBe(410)
  expect(exchanges()).toBe(calls)
  expect((await connectionOf('bob')).connection).toBe('connected')

  const { body } = await stack.admin('GET', '/v1/audit?user=bob&action=connection.*')
  expect(
    body.events.map((event: { actor: string; action: string }) => `${event.actor} ${event.action}`).reverse(),
  ).toEqual(['admin connection.link-issued', 'instance:bob connection.state-changed', 'user:bob connection.authorized'])
})

test('the pages run no script, load nothing, cannot be framed and are kept by nobody; no secret stands in clear anywhere', async () => {
  const link = await newLink('bob')
  for (const page of [
    await browser().open(link),
    await browser().open(`${stack.publicUrl}/connect/callback`),
    await browser().open(`${stack.publicUrl}/connect/result`),
  ]) {
    const policy = page.headers.get('content-security-policy')!
    expect(policy).toMatch(/^default-src 'none'; style-src 'sha256-[\w+/=]+'; form-action 'self'/)
    expect(policy).toContain("frame-ancestors 'none'")
    expect(page.headers.get('cache-control')).toBe('no-store')
    expect(page.headers.get('x-content-type-options')).toBe('nosniff')
    expect(page.text).not.toMatch(/<script|javascript:|https?:\/\/[^"]*\.(js|css)/)
  }
  const bobs = browser()
  const state = (await bobs.press(link)).location!.searchParams.get('state')!
  const token = link.split('/').at(-1)!
  const rows = JSON.stringify(await stack.sql('select * from connect_links'))
  const rest = JSON.stringify(await stack.sql('select * from oauth_tokens')) + stack.controlPlane().output()
  for (const secret of [token, state, bobs.cookie()!, serverClient().clientSecret]) {
    expect(rows).not.toContain(secret)
    expect(rest).not.toContain(secret)
  }
})

test('a state that is forged, of another browser, or without its cookie connects nothing and calls nobody', async () => {
  const link = await newLink('carol')
  const [mine, others] = [browser(), browser()]
  const back = await mine.decide((await mine.press(link)).location!, 'carol')
  await others.press(await newLink('carol'))
  const calls = exchanges()
  const forged = new URL(back)
  forged.searchParams.set('state', 'A'.repeat(43))
  const twice = new URL(back)
  twice.searchParams.append('state', 'B'.repeat(43))
  const odd = new URL(back)
  odd.searchParams.set('state', "' or 1=1 --")
  for (const [who, url] of [
    [mine, forged],
    [mine, twice],
    [mine, odd],
    [others, back],
    [browser(), back],
  ] as const)
    expect((await who.open(url)).status).toBe(410)
  expect(exchanges()).toBe(calls)
  expect((await connectionOf('carol')).connection).toBe('needs-authorization')
  // none of that spoiled the real one
  expect((await mine.open(back)).status).toBe(200)
  expect((await connectionOf('carol')).connection).toBe('connected')
})

test('a link belongs to the first browser that goes on with it, which may try again; another page cannot press the button', async () => {
  const link = await newLink('carol')
  const foreign = await browser().open(link, {
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded', 'sec-fetch-site': 'cross-site' },
  })
  expect([foreign.status, foreign.location]).toEqual([410, undefined])
  const mine = browser()
  const first = (await mine.press(link)).location!
  expect((await browser().press(link)).status).toBe(410)
  const second = (await mine.press(link)).location!
  expect((await mine.open(await mine.decide(first, 'carol'))).status).toBe(410)
  expect((await mine.open(await mine.decide(second, 'carol'))).status).toBe(200)
})

test('the page of results shows nothing that we did not sign', async () => {
  const mine = browser()
  const denied = await fetch(await mine.decide((await mine.press(await newLink('carol'))).location!, 'carol', 'deny'), {
    redirect: 'manual',
    headers: { cookie: `sdp_connect=${mine.cookie()}` },
  })
  expect([denied.status, denied.headers.get('location'), await denied.text()]).toEqual([303, 'result', ''])
  const [name, value] = denied.headers
    .getSetCookie()
    .find(text => text.startsWith('sdp_connect_result='))!
    .split(';')[0]!
    .split('=') as [string, string]
  const show = async (cookie: string) => {
    const page = await fetch(`${stack.publicUrl}/connect/result`, { headers: { cookie: `${name}=${cookie}` } })
    return [page.status, /<p>(.*)<\/p>/.exec(await page.text())![1]]
  }
  expect(await show(value)).toEqual([422, expect.stringContaining('did not agree')])
  const [body, signature] = value.split('.') as [string, string]
  const lie = Buffer.from(JSON.stringify({ username: 'call 555-0100' })).toString('base64url')
  for (const forged of [
    `${lie}.${signature}`,
    `${lie}.`,
    lie,
    `${body}.${signature.slice(1)}`,
    '.',
    `${body}.AAAA`,
    '%00',
  ])
    expect(await show(forged)).toEqual([410, expect.stringContaining('no result to show')])
})

test('who says no is told how to go on, and what was there stays; the same link then works', async () => {
  const link = await newLink('carol')
  const mine = browser()
  const denied = await mine.open(await mine.decide((await mine.press(link)).location!, 'carol', 'deny'))
  expect([denied.status, denied.text]).toEqual([422, expect.stringContaining('did not agree')])
  expect((await connectionOf('carol')).connection).toBe('connected')
  const { body } = await stack.admin('GET', '/v1/audit?user=carol&action=connection.consent-refused&limit=1')
  expect(body.events[0].detail).toEqual({ reason: 'access_denied' })
  expect((await mine.open(await mine.decide((await mine.press(link)).location!, 'carol'))).status).toBe(200)
})

test('an old link is refused, at the start and on the way back', async () => {
  const link = await newLink('carol')
  const mine = browser()
  const back = await mine.decide((await mine.press(link)).location!, 'carol')
  await stack.sql("update connect_links set expires_at = now() - interval '11 minutes' where used_at is null")
  const calls = exchanges()
  expect((await mine.open(link)).status).toBe(410)
  expect((await mine.press(link)).status).toBe(410)
  expect((await mine.open(back)).status).toBe(410)
  expect(exchanges()).toBe(calls)
})

test('an answer from another data center, or from a server that is none of Zoho’s, is not used', async () => {
  for (const [change, says] of [
    [{ 'accounts-server': 'https://accounts.zoho.eu', location: 'eu' }, 'data center EU'],
    [{ 'accounts-server': 'https://accounts.zoho.com.evil.example' }, 'none of Zoho'],
    [{ 'accounts-server': 'javascript:alert(1)' }, 'none of Zoho'],
    [{ 'accounts-server': null, location: 'in' }, 'data center IN'],
  ] as [Record<string, string | null>, string][]) {
    const mine = browser()
    const back = await mine.decide((await mine.press(await newLink('carol'))).location!, 'carol')
    for (const [name, value] of Object.entries(change))
      if (value === null) back.searchParams.delete(name)
      else back.searchParams.set(name, value)
    const calls = exchanges()
    const page = await mine.open(back)
    expect([page.status, page.text]).toEqual([422, expect.stringContaining(says)])
    expect(exchanges()).toBe(calls)
  }
  expect((await connectionOf('carol')).connection).toBe('connected')
})

test('somebody else’s Zoho account is not taken for the user’s: the new grant is revoked, the old one stays', async () => {
  const before = await connectionOf('bob')
  const revoked = () => stack.simulator.log.filter(entry => entry.path === '/oauth/v2/token/revoke').length
  const count = revoked()
  const mine = browser()
  const page = await mine.open(await mine.decide((await mine.press(await newLink('bob'))).location!, 'carol'))
  expect([page.status, page.text]).toEqual([422, expect.stringContaining('You agreed at Zoho as')])
  expect(revoked()).toBe(count + 1)
  expect(await connectionOf('bob')).toMatchObject({ connection: 'connected', clientId: before.clientId })
  const key = (await stack.admin('POST', '/v1/users/bob/api-keys')).body.apiKey.key
  await using client = await connect('mcp', `${stack.publicUrl}/u/bob/mcp`, key)
  expect(JSON.stringify((await callTool(client, 'get_my_context')).user)).toContain('bob')
})

test('a code that Zoho refuses is told with the next step, and a redirect URI that is not registered never comes back', async () => {
  const mine = browser()
  const back = await mine.decide((await mine.press(await newLink('carol'))).location!, 'carol')
  back.searchParams.set('code', '1000.made.up')
  const page = await mine.open(back)
  expect([page.status, page.text]).toEqual([422, expect.stringContaining('new connect link')])
  expect((await connectionOf('carol')).connection).toBe('connected')

  await allow(['https://elsewhere.example/connect/callback'])
  const gone = await browser().press(await newLink('carol'))
  expect((await browser().open(gone.location!)).text).toContain('Invalid Redirect Uri')
  await allow([`${stack.publicUrl}/connect/callback`])
})

test('a person whose portal is wrong is connected, and told what the administrator must change', async () => {
  const change = async (portal: string) =>
    expect((await stack.admin('PATCH', '/v1/users/carol', { sdp: { portal } })).status).toBe(200)
  await change('no-such-desk')
  const mine = browser()
  const page = await mine.open(await mine.decide((await mine.press(await newLink('carol'))).location!, 'carol'))
  expect([page.status, page.text]).toEqual([
    200,
    expect.stringMatching(/<h1>Connected<.*knows no portal.*no-such-desk/),
  ])
  expect((await connectionOf('carol')).connection).toBe('connected')
  await change('itdesk')
})

test('tools and the user’s own page name the link to who must authorize', async () => {
  await stack.admin('DELETE', '/v1/users/carol/authorization')
  const key = (await stack.admin('POST', '/v1/users/carol/api-keys')).body.apiKey.key
  await using client = await connect('mcp', `${stack.publicUrl}/u/carol/mcp`, key)
  const told = JSON.stringify((await client.callTool({ name: 'search_requests', arguments: {} })).content)
  expect(told).toContain('/v1/users/carol/connect-link')
  expect((await callTool(client, 'get_my_context')).connection.next_step).toContain('connect link')
})

test('links are for admins to make, of users who are there and not suspended', async () => {
  const unauthorized = await stack.admin('POST', '/v1/users/bob/connect-link', undefined, {
    authorization: 'Bearer no',
  })
  expect(unauthorized.status).toBe(401)
  expect((await stack.admin('POST', '/v1/users/nobody/connect-link')).body.code).toBe('user-not-found')
  const link = await newLink('bob')
  await stack.admin('PATCH', '/v1/users/bob', { suspended: true })
  expect((await stack.admin('POST', '/v1/users/bob/connect-link')).body.code).toBe('user-suspended')
  expect((await browser().open(link)).status).toBe(410)
})

test('without a client for it, the call says what to configure', async () => {
  await stack.controlPlane().stop()
  await stack.startControlPlane({ SDP_CONSENT_CLIENT_ID: '', SDP_CONSENT_CLIENT_SECRET: '' })
  const { status, body } = await stack.admin('POST', '/v1/users/carol/connect-link')
  expect([status, body.code]).toEqual([422, 'consent-not-configured'])
  expect(body.detail).toContain(`${stack.publicUrl}/connect/callback`)
})
