import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { createOutgoing } from './outgoing.ts'

const ends: (() => void)[] = []
const call = { method: 'GET', headers: {}, timeoutMs: 10_000, maxBytes: 1_000 } as const
afterEach(() => {
  for (const end of ends.splice(0)) end()
})

async function serve() {
  let accepted = 0
  const headers: IncomingHttpHeaders[] = []
  const server = createServer((request, response) => {
    headers.push(request.headers)
    setTimeout(() => response.end('here'), 5)
  })
  server.on('connection', () => accepted++)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  ends.push(
    () => server.closeAllConnections(),
    () => server.close(),
  )
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    accepted: () => accepted,
    headers: () => headers,
  }
}

test('calls one after another share a connection or two, calls at once no more than sixteen, and those are kept', async () => {
  const { url, accepted } = await serve()
  const http = createOutgoing({ upstreams: 'any', behindProxy: false })
  const said = async () => (await http({ ...call, url })).bytes.toString()
  for (let at = 0; at < 50; at++) expect(await said()).toBe('here')
  // the end of an answer is told before its connection is free again, so the next call may need a second one
  expect(accepted()).toBeLessThanOrEqual(2)
  const many = () => Promise.all(Array.from({ length: 100 }, said))
  await many()
  expect(accepted()).toBeLessThanOrEqual(16)
  const kept = accepted()
  await many()
  expect(accepted()).toBe(kept)
})

test('a private address is refused unless it is allowed, also for calls that go through a proxy', async () => {
  const { url, accepted } = await serve()
  for (const behindProxy of [false, true]) {
    const http = createOutgoing({ upstreams: [], behindProxy })
    await expect(http({ ...call, url })).rejects.toMatchObject({ code: 'ERR_UPSTREAM_REFUSED' })
  }
  expect(accepted()).toBe(0)
})

/** An HTTP proxy that makes tunnels where it is let. */
async function proxy(lets: boolean) {
  const asked: (string | undefined)[][] = []
  const server = createServer()
  server.on('connect', (request, socket, head) => {
    asked.push([request.url, request.headers['proxy-authorization']])
    if (!lets) return socket.end('HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n')
    const [host, port] = (request.url as string).split(':')
    const onward = connect(Number(port), host)
    onward.once('connect', () => {
      socket.write('HTTP/1.1 200 Connection established\r\n\r\n')
      onward.write(head)
      onward.pipe(socket).pipe(onward)
    })
    for (const end of [onward, socket]) end.on('error', () => {})
    ends.push(
      () => onward.destroy(),
      () => socket.destroy(),
    )
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  ends.push(() => server.close())
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked }
}

test('calls go through the tunnels of the egress proxy, which alone is told its token', async () => {
  const { url, headers } = await serve()
  const { host } = new URL(url)
  const open = await proxy(true)
  const through = (uri: string) =>
    createOutgoing({ upstreams: 'any', behindProxy: false, egress: { proxy: uri, token: 'the-token' } })
  const http = through(open.url)
  const answers = await Promise.all([1, 2].map(() => http({ ...call, url, headers: { authorization: 'mine' } })))
  expect(answers.map(({ bytes }) => bytes.toString())).toEqual(['here', 'here'])
  expect((await http({ ...call, url })).ok).toBe(true)
  expect(new Set(open.asked.map(String))).toEqual(new Set([`${host},Bearer the-token`]))
  expect(headers().map(({ authorization }) => authorization)).toEqual(['mine', 'mine', undefined])
  expect(JSON.stringify(headers())).not.toContain('the-token')

  const closed = await proxy(false)
  await expect(through(closed.url)({ ...call, url })).rejects.toMatchObject({ code: 'UND_ERR_ABORTED' })
  expect(headers()).toHaveLength(3)
})
