import type { Browser, BrowserContext, Page } from 'playwright-core'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { launchBrowser } from '../support/browser.ts'
import { callTool, connect } from '../support/mcp-client.ts'
import { type Stack, startStack } from '../support/stack.ts'

// The same as consent.test.ts, in a real browser: its own rules for cookies, forms, redirects, referrers and policies decide.

let stack: Stack
let browser: Browser
const clientName = 'Northwind SDP MCP'
const hosts: string[] = []

beforeAll(async () => {
  stack = await startStack({
    installation: 'e2e-browser',
    environment: simulator => {
      const client = simulator.clients.find(({ name }) => name === clientName)!
      return { SDP_CONSENT_CLIENT_ID: client.clientId, SDP_CONSENT_CLIENT_SECRET: client.clientSecret }
    },
  })
  const client = stack.simulator.clients.find(({ name }) => name === clientName)!
  await fetch(`${stack.simulator.url}/_sim/clients/${client.clientId}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ redirectUris: [`${stack.publicUrl}/connect/callback`] }),
  })
  const bob = stack.simulator.state.people.find(({ username }) => username === 'bob')!
  for (const user of [{ username: 'bob', displayName: bob.name, email: bob.email }, { username: 'carol' }])
    expect((await stack.admin('POST', '/v1/users', user, { prefer: 'wait=60' })).status).toBe(201)
  browser = await launchBrowser()
})
afterAll(async () => {
  await browser?.close()
  await stack?.[Symbol.asyncDispose]()
  // whatever the pages wanted, nobody else was asked
  expect(new Set(hosts)).toEqual(new Set([new URL(stack.publicUrl).host, new URL(stack.simulator.url).host]))
})
beforeEach(() => stack.simulator.faults.set({ grantCodesPer10Minutes: 1000, newRefreshTokensPer10Minutes: 1000 }))

type Asked = { url: string; method: string; headers: Record<string, string> }

/** A person's browser, with scripts switched off, and everything it asked for. */
async function person(): Promise<
  AsyncDisposable & { context: BrowserContext; page: Page; asked: Asked[]; complaints: string[] }
> {
  const context = await browser.newContext({ javaScriptEnabled: false, viewport: { width: 760, height: 420 } })
  const asked: Asked[] = []
  const complaints: string[] = []
  context.on('request', request => {
    hosts.push(new URL(request.url()).host)
    void request.allHeaders().then(
      headers => asked.push({ url: request.url(), method: request.method(), headers }),
      () => {},
    )
  })
  context.on('console', message => complaints.push(message.text()))
  const page = await context.newPage()
  return { context, page, asked, complaints, [Symbol.asyncDispose]: () => context.close() }
}

const newLink = async (username: string): Promise<string> =>
  (await stack.admin('POST', `/v1/users/${username}/connect-link`)).body.url
const connectionOf = async (username: string) => (await stack.admin('GET', `/v1/users/${username}`)).body.sdp.connection
const exchanges = () =>
  stack.simulator.log.filter(entry => entry.path === '/oauth/v2/token' && entry.grantType === 'authorization_code')
    .length
const heading = (page: Page) => page.locator('h1').textContent()

/** Opens the link and goes on to Zoho. */
async function goToZoho(page: Page, link: string): Promise<void> {
  await page.goto(link)
  await page.getByRole('button', { name: 'Continue to Zoho' }).click()
  await page.waitForURL(/\/oauth\/v2\/auth\?/)
}

async function agree(page: Page, username: string, button = 'Accept'): Promise<void> {
  await page.locator(`input[name=user][value=${username}]`).check()
  await page.getByRole('button', { name: button }).click()
  await page.waitForURL(/\/connect\/result$/)
}

/** As {@link agree}, but the answer that Zoho gives the browser is held back. @returns its address */
async function agreeAndHold(page: Page, username: string): Promise<URL> {
  let held: string | undefined
  await page.route('**/oauth/v2/auth', async route => {
    const answer = await route.fetch({ maxRedirects: 0 })
    held = answer.headers().location
    await route.fulfill({ status: 200, contentType: 'text/html', body: '<h1>held</h1>' })
  })
  await page.locator(`input[name=user][value=${username}]`).check()
  await page.getByRole('button', { name: 'Accept' }).click()
  await page.getByRole('heading', { name: 'held' }).waitFor()
  await page.unroute('**/oauth/v2/auth')
  return new URL(held!)
}

async function historyOf(page: Page): Promise<string[]> {
  const session = await page.context().newCDPSession(page)
  const { entries } = await session.send('Page.getNavigationHistory')
  return entries.map(entry => entry.url)
}

test('in a browser without scripts a person opens the link, agrees at Zoho, is told that it worked, and works as themselves', async () => {
  await using mine = await person()
  const link = await newLink('bob')
  const landing = await mine.page.goto(link)
  expect(landing!.headers()).toMatchObject({ 'referrer-policy': 'same-origin', 'cache-control': 'no-store' })
  expect(landing!.headers()['content-security-policy']).toContain("default-src 'none'")
  expect(await heading(mine.page)).toBe('Connect ServiceDesk Plus')
  expect(await mine.page.locator('script, link, img, iframe, [onclick], [style]').count()).toBe(0)
  if (process.env.SDP_SCREENSHOTS)
    await mine.page.screenshot({ path: `${process.env.SDP_SCREENSHOTS}/connect-link.png` })
  await mine.page.getByRole('button', { name: 'Continue to Zoho' }).click()
  await mine.page.waitForURL(/\/oauth\/v2\/auth\?/)
  await agree(mine.page, 'bob')
  expect([await heading(mine.page), await mine.page.locator('main').textContent()]).toEqual([
    'Connected',
    expect.stringContaining('connected for bob'),
  ])
  if (process.env.SDP_SCREENSHOTS)
    await mine.page.screenshot({ path: `${process.env.SDP_SCREENSHOTS}/connect-result.png` })

  expect(await connectionOf('bob')).toBe('connected')
  const key = (await stack.admin('POST', '/v1/users/bob/api-keys')).body.apiKey.key
  await using client = await connect('mcp', `${stack.publicUrl}/u/bob/mcp`, key)
  expect((await callTool(client, 'get_my_context')).user).toMatchObject({ username: 'bob', technician: true })

  // what stays behind: neither Zoho's code nor our state, in the address, the history, the page, or a referrer
  const callback = mine.asked.find(one => one.url.includes('/connect/callback?'))!
  const { code, state } = Object.fromEntries(new URL(callback.url).searchParams) as { code: string; state: string }
  expect([code, state]).toEqual([expect.stringMatching(/^1000\./), expect.stringMatching(/^[\w-]{43}$/)])
  const token = link.split('/').at(-1)!
  expect(mine.page.url()).toBe(`${stack.publicUrl}/connect/result`)
  const history = await historyOf(mine.page)
  expect(history).toContain(`${stack.publicUrl}/connect/result`)
  for (const text of [...history, await mine.page.content()]) expect(text).not.toContain(code)
  expect(history.join()).not.toContain('/connect/callback')
  const referrers = mine.asked.map(({ url, headers }) => [new URL(url).host, headers.referer ?? ''] as const)
  const elsewhere = referrers.filter(([host]) => host !== new URL(stack.publicUrl).host)
  expect(elsewhere.length).toBeGreaterThan(1)
  for (const [, referrer] of elsewhere) expect(referrer).not.toContain(token)
  for (const [, referrer] of referrers) expect(referrer).not.toContain(code)
  for (const cookie of await mine.context.cookies())
    expect(cookie).toMatchObject({ httpOnly: true, sameSite: 'Lax', path: '/connect' })
  // a policy that forbids what the page needs would be told here
  expect(mine.complaints.filter(text => /Security Policy|Refused|blocked/i.test(text))).toEqual([])
})

test('the link and the answer opened again in a second tab connect nothing, and undo nothing', async () => {
  await using mine = await person()
  const link = await newLink('bob')
  await goToZoho(mine.page, link)
  const back = await agreeAndHold(mine.page, 'bob')
  await mine.page.goto(back.href)
  expect(await heading(mine.page)).toBe('Connected')
  const calls = exchanges()
  const second = await mine.context.newPage()
  await second.goto(back.href)
  expect(await heading(second)).toBe('This link does not work')
  expect((await second.goto(link))!.status()).toBe(410)
  expect(exchanges()).toBe(calls)
  expect(await connectionOf('bob')).toBe('connected')
})

test('who rejects is told how to go on, and can', async () => {
  await using mine = await person()
  const link = await newLink('carol')
  await goToZoho(mine.page, link)
  await agree(mine.page, 'carol', 'Reject')
  expect([await heading(mine.page), await mine.page.locator('main').textContent()]).toEqual([
    'Not connected',
    expect.stringContaining('did not agree'),
  ])
  expect(await connectionOf('carol')).toBe('needs-authorization')
})

test('a forged state connects nobody, nor does the answer in a browser that never pressed the button', async () => {
  await using attacker = await person()
  await goToZoho(attacker.page, await newLink('carol'))
  const back = await agreeAndHold(attacker.page, 'bob')
  const calls = exchanges()
  // a victim is led to the attacker's answer, so that the attacker's account would become the victim's
  await using victim = await person()
  await victim.page.goto(back.href)
  expect(await heading(victim.page)).toBe('This link does not work')
  // or to the attacker's page at Zoho, and agrees there
  await using second = await person()
  await goToZoho(attacker.page, await newLink('carol'))
  await second.page.goto(attacker.page.url())
  await agree(second.page, 'carol')
  expect(await heading(second.page)).toBe('This link does not work')
  const forged = new URL(back)
  forged.searchParams.set('state', 'A'.repeat(43))
  await attacker.page.goto(forged.href)
  expect(await heading(attacker.page)).toBe('This link does not work')
  expect(exchanges()).toBe(calls)
  expect(await connectionOf('carol')).toBe('needs-authorization')
})

test('a page of another site can neither press the button nor frame it', async () => {
  await using victim = await person()
  const link = await newLink('carol')
  // any page of the simulator stands for the other site
  const other = `${stack.simulator.url}/other-site`
  await victim.page.route(other, route =>
    route.fulfill({
      contentType: 'text/html',
      body: `<form method="post" action="${link}"><button>You won</button></form><iframe src="${link}"></iframe>`,
    }),
  )
  await victim.page.goto(other)
  expect(victim.page.frames().map(frame => frame.url())).not.toContain(link)
  await victim.page.getByRole('button', { name: 'You won' }).click()
  await victim.page.waitForURL(link)
  // the browser says where the form stands, and that is not here
  expect(await victim.page.content()).toContain('origin-refused')
  const [row] = await stack.sql<{ begun: number }>(
    "select count(cookie_hash)::integer as begun from connect_links where created_at > now() - interval '5 seconds' and used_at is null and token_hash = sha256($1::bytea)",
    [link.split('/').at(-1)],
  )
  expect(row!.begun).toBe(0)
})

test('an account of another data center is told which one, and its code is not used', async () => {
  await using mine = await person()
  await goToZoho(mine.page, await newLink('carol'))
  const back = await agreeAndHold(mine.page, 'carol')
  back.searchParams.set('location', 'eu')
  back.searchParams.set('accounts-server', 'https://accounts.zoho.eu')
  const calls = exchanges()
  await mine.page.goto(back.href)
  expect([await heading(mine.page), await mine.page.locator('main').textContent()]).toEqual([
    'Not connected',
    expect.stringContaining('data center EU'),
  ])
  expect(mine.page.url()).toBe(`${stack.publicUrl}/connect/result`)
  expect(exchanges()).toBe(calls)
  expect(await connectionOf('carol')).toBe('needs-authorization')
})
