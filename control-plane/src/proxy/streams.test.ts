import type { ServerResponse } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { eventually } from '../fleet/testing/support.ts'
import { startControlPlane, type TestControlPlane } from '../testing/control-plane.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import type { Seen } from '../testing/upstream.ts'

// Many streams, long streams, streams that end; through a whole control plane of which only the fleet is played.

let database: TestDatabase
beforeAll(async () => {
  database = await openTestDatabase(inject('postgres'))
})
afterAll(() => database?.[Symbol.asyncDispose]())

const unlimited = { SDP_USER_REQUESTS_PER_SECOND: '0', SDP_USER_CONCURRENT_REQUESTS: '0' }

async function addUser(controlPlane: TestControlPlane, username: string) {
  const { status, json } = await controlPlane.admin('POST', '/v1/users', { username })
  expect(status).toBe(201)
  const headers = { authorization: `Bearer ${json.apiKey.key}` }
  return { headers, userId: await controlPlane.users.idOf(username) }
}

/** An instance that opens streams, and answers messages with what they say. */
function instance() {
  const streams: ServerResponse[] = []
  return {
    streams,
    answer({ method, body, response }: Seen) {
      if (method === 'POST') return void response.writeHead(200).end(body)
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.flushHeaders()
      streams.push(response)
    },
  }
}

test('a stream on which nothing happens outlives every patience with slow senders, and so does a slow answer', async () => {
  await using controlPlane = await startControlPlane(database, { patience: { headersMs: 150, requestMs: 200 } })
  const { streams, answer } = instance()
  const slow: Seen[] = []
  controlPlane.answerWith(seen => (seen.method === 'POST' ? void slow.push(seen) : answer(seen)))
  const { headers } = await addUser(controlPlane, 'patient')
  const { response, request } = controlPlane.open({ path: '/sse', headers })
  const incoming = await response
  let text = ''
  incoming.on('data', chunk => {
    text += chunk
  })
  const call = controlPlane.ask({ method: 'POST', path: '/mcp', headers, body: {} })
  await eventually('the call', () => slow.length === 1)
  // many times what a request may take to arrive
  await delay(3_000)
  streams[0]!.write('data: at last\n\n')
  await eventually('the event', () => text === 'data: at last\n\n')
  slow[0]!.response.end('at last')
  expect((await call).text).toBe('at last')
  request.destroy()
})

test('a thousand held streams leave messages alone, and end with the instance', { timeout: 60_000 }, async () => {
  await using controlPlane = await startControlPlane(database, { environment: unlimited })
  const { streams, answer } = instance()
  controlPlane.answerWith(answer)
  const { headers, userId } = await addUser(controlPlane, 'crowd')
  const open: ReturnType<typeof controlPlane.open>[] = []
  let ended = 0
  for (let batch = 0; batch < 20; batch++) {
    const next = Array.from({ length: 50 }, () => controlPlane.open({ path: '/mcp', headers }))
    for (const { response } of next) {
      const incoming = await response
      expect(incoming.statusCode).toBe(200)
      incoming.on('error', () => {}).on('close', () => ended++)
      incoming.resume()
    }
    open.push(...next)
  }
  await eventually('all streams', () => streams.length === 1_000)
  for (let count = 0; count < 50; count++)
    expect((await controlPlane.ask({ method: 'POST', path: '/mcp', headers, body: { count } })).json).toEqual({ count })
  const metrics = async () => (await controlPlane.admin('GET', '/metrics')).text
  expect(await metrics()).toMatch(/^sdp_mcp_streams_open 1000$/m)

  open[0]!.request.destroy()
  await eventually('one that the client ended', async () =>
    /^sdp_mcp_stream_closes_total\{reason="client"\} 1$/m.test(await metrics()),
  )
  await controlPlane.upstreamOf(userId)!.die()
  await eventually('the end of all', () => ended === 1_000)
  expect(await metrics()).toMatch(/^sdp_mcp_stream_closes_total\{reason="instance"\} 999$/m)
  expect(await metrics()).toMatch(/^sdp_mcp_streams_open 0$/m)
})

test('answers reach who asked, however many ask with the same id in the same session', async () => {
  await using controlPlane = await startControlPlane(database, { environment: unlimited })
  const together = 8
  const waiting: Seen[] = []
  // answers nobody before all have asked, and then in another order
  controlPlane.answerWith(seen => {
    waiting.push(seen)
    if (waiting.length < together) return
    for (const { body, response } of waiting.splice(0).reverse()) response.writeHead(200).end(body)
  })
  const { headers } = await addUser(controlPlane, 'many')
  for (let round = 0; round < 20; round++) {
    const asked = Array.from({ length: together }, (_, client) => ({ jsonrpc: '2.0', id: 1, client, round }))
    const answers = await Promise.all(
      asked.map(body =>
        controlPlane.ask({ method: 'POST', path: '/mcp', headers: { ...headers, 'mcp-session-id': 'same' }, body }),
      ),
    )
    expect(answers.map(({ json }) => json)).toEqual(asked)
  }
})
