import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { createOutgoing } from './outgoing.ts'

const ends: (() => void)[] = []
afterEach(() => {
  for (const end of ends.splice(0)) end()
})

async function serve() {
  let accepted = 0
  const server = createServer((_request, response) => void setTimeout(() => response.end('here'), 5))
  server.on('connection', () => accepted++)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  ends.push(
    () => server.closeAllConnections(),
    () => server.close(),
  )
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, accepted: () => accepted }
}

test('calls one after another share a connection or two, calls at once no more than sixteen, and those are kept', async () => {
  const { url, accepted } = await serve()
  const fetch = createOutgoing({ upstreams: 'any', behindProxy: false })
  for (let at = 0; at < 50; at++) expect(await (await fetch(url)).text()).toBe('here')
  // the end of an answer is told before its connection is free again, so the next call may need a second one
  expect(accepted()).toBeLessThanOrEqual(2)
  const many = () => Promise.all(Array.from({ length: 100 }, async () => (await fetch(url)).text()))
  await many()
  expect(accepted()).toBeLessThanOrEqual(16)
  const kept = accepted()
  await many()
  expect(accepted()).toBe(kept)
})

test('a private address is refused unless it is allowed, also for calls that go through a proxy', async () => {
  const { url, accepted } = await serve()
  for (const behindProxy of [false, true]) {
    const fetch = createOutgoing({ upstreams: [], behindProxy })
    const error = (await fetch(url).catch((refused: Error) => refused)) as Error & { code?: string }
    expect([error.code, (error.cause as { code?: string } | undefined)?.code]).toContain('ERR_UPSTREAM_REFUSED')
  }
  expect(accepted()).toBe(0)
})
