import { connect as connectTcp, type Socket } from 'node:net'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bearer, initialize, listTools, post, speak, statusesIn } from '../../support/attacker.ts'
import { callTool, connect } from '../../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../../support/stack.ts'

// Bytes that a decent client never sends.

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let bob: Awaited<ReturnType<Stack['addUser']>>
let host: string
/** half a head each, never finished; the first test opens them and the last one sees them end */
const dribbling: { socket: Socket; ended: boolean }[] = []
let dribblingSince = 0

beforeAll(async () => {
  stack = await startStack()
  host = new URL(stack.publicUrl).host
  dribblingSince = performance.now()
  for (let count = 0; count < 60; count++) {
    const socket = connectTcp(Number(new URL(stack.publicUrl).port), '127.0.0.1')
    const entry = { socket, ended: false }
    socket
      .on('error', () => {})
      .on('close', () => {
        entry.ended = true
      })
    socket.resume().write(`GET /u/alice/sse HTTP/1.1\r\nHost: ${host}\r\nX-Slow: `)
    dribbling.push(entry)
  }
  ;[alice, bob] = await Promise.all([stack.addUser('alice'), stack.addUser('bob')])
})
afterAll(async () => {
  for (const { socket } of dribbling) socket.destroy()
  await stack?.[Symbol.asyncDispose]()
})

const instance = (user: typeof alice) => `http://127.0.0.1:${user.body.user.instance.port}`
const health = async (user: typeof alice) =>
  (await (await fetch(`${instance(user)}/healthz`)).json()) as { sessions: number; uptimeSeconds: number }
const head = (line: string, headers: string[] = [], key = alice.key) =>
  `${line} HTTP/1.1\r\n${[`Host: ${host}`, `Authorization: Bearer ${key}`, ...headers].join('\r\n')}\r\n\r\n`
const json = ['Content-Type: application/json', 'Accept: application/json, text/event-stream']

/** What a conversation must not hold: an answer that only bob, or an instance itself, may give. */
async function expectNothingOfBob(heard: string): Promise<void> {
  expect(heard).not.toContain('/u/bob/messages')
  expect(heard).not.toContain('"epoch"')
  expect((await health(bob)).sessions).toBe(0)
}

test('attack: slow senders of headers hold nobody up', async () => {
  expect(dribbling.filter(({ ended }) => !ended).length).toBeGreaterThan(0)
  await using client = await connect('mcp', alice.mcp, alice.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('attack: a body that trickles in occupies no instance', async () => {
  const slow = Array.from({ length: 20 }, () => {
    const socket = connectTcp(Number(new URL(stack.publicUrl).port), '127.0.0.1')
    socket.on('error', () => {}).write(`${head('POST /u/alice/mcp', [...json, 'Content-Length: 1000'])}{`)
    return socket
  })
  await using client = await connect('mcp', alice.mcp, alice.key)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
  const { body } = await stack.admin('GET', '/v1/routes')
  const route = body.routes.find(({ username }: { username: string }) => username === 'alice')
  // the one that is open is the client's own event stream
  expect(route.openExchanges).toBeLessThanOrEqual(1)
  for (const socket of slow) socket.destroy()
})

test('attack: "Connection: authorization" cannot make the proxy drop its own statement or prefix', async () => {
  for (const name of [
    'authorization',
    'x-forwarded-prefix',
    'authorization, x-forwarded-prefix, content-length, host',
  ]) {
    const heard = await speak(stack.publicUrl, head('GET /u/alice/sse', [`Connection: ${name}`]), {
      until: /sessionId=[\w-]+\s/,
    })
    expect(statusesIn(heard)).toEqual([200])
    expect(heard).toContain('data: /u/alice/messages?sessionId=')
  }
})

test('attack: two Authorization headers never make one person of two', async () => {
  for (const [first, second] of [
    [alice.key, bob.key],
    ['nonsense', bob.key],
  ] as const) {
    const heard = await speak(
      stack.publicUrl,
      head('GET /u/bob/sse', [`Authorization: Bearer ${second}`, 'Connection: close'], first),
      { until: /sessionId=|\}$/ },
    )
    expect([400, 401, 404]).toContain(statusesIn(heard)[0])
    await expectNothingOfBob(heard)
  }
  const both = await speak(
    stack.publicUrl,
    head('GET /u/bob/sse', [`X-API-Key: ${bob.key}`, 'Connection: close'], alice.key),
    { until: /sessionId=|\}$/ },
  )
  expect(statusesIn(both)).toEqual([404])
  const twice = await speak(
    stack.publicUrl,
    `GET /sse HTTP/1.1\r\nHost: ${host}\r\nX-API-Key: ${alice.key}\r\nX-API-Key: ${bob.key}\r\nConnection: close\r\n\r\n`,
    { until: /sessionId=|\}$/ },
  )
  expect([400, 401]).toContain(statusesIn(twice)[0])
})

test('attack: forwarding headers of a client do not reach the announced endpoint', async () => {
  for (const header of [
    'X-Forwarded-Prefix: /u/bob',
    'X-Forwarded-Prefix: //evil.example',
    'x-forwarded-PREFIX: https://evil.example',
    'X-Forwarded-Host: evil.example',
    'X-Forwarded-Proto: gopher',
    'Forwarded: host=evil.example;proto=https',
    'X-Original-URL: /u/bob/sse',
    'X-Rewrite-URL: /u/bob/sse',
    'X-Real-IP: 127.0.0.1',
  ]) {
    const heard = await speak(stack.publicUrl, head('GET /u/alice/sse', [header]), { until: /sessionId=[\w-]+\s/ })
    expect(heard).toMatch(/data: \/u\/alice\/messages\?sessionId=[\w-]{36}\s/)
    expect(heard).not.toContain('evil.example')
  }
  const shared = await speak(stack.publicUrl, head('GET /sse', ['X-Forwarded-Prefix: /u/bob']), {
    until: /sessionId=[\w-]+\s/,
  })
  expect(shared).toMatch(/data: \/messages\?sessionId=/)
})

test('attack: a Host header of the attacker opens no door and is not led to by any answer', async () => {
  for (const [path, status] of [
    ['/u/alice/sse', 403],
    ['/u/alice/mcp', 403],
    ['/nowhere', 403],
    ['/.well-known/oauth-protected-resource', 403],
    // load balancers ask under names of their own
    ['/healthz', 200],
  ] as const) {
    const heard = await speak(
      stack.publicUrl,
      `GET ${path} HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer ${alice.key}\r\n\r\n`,
      { until: /sessionId=[\w-]+\s|\}$/ },
    )
    expect([path, statusesIn(heard)]).toEqual([path, [status]])
    expect(heard).not.toMatch(/^(location|link|set-cookie|data|www-authenticate):.*evil/im)
    expect(heard).not.toMatch(/https?:\/\/evil/)
  }
})

const smuggled = () => `GET /u/bob/sse HTTP/1.1\r\nHost: ${host}\r\nAuthorization: Bearer ${bob.key}\r\n\r\n`

test('attack: Transfer-Encoding beside Content-Length is refused and the rest of the bytes is no second request', async () => {
  for (const headers of [
    ['Content-Length: 4', 'Transfer-Encoding: chunked'],
    ['Transfer-Encoding: chunked', 'Content-Length: 4'],
  ]) {
    const heard = await speak(
      stack.publicUrl,
      `${head('POST /u/alice/mcp', [...json, ...headers])}0\r\n\r\n${smuggled()}`,
    )
    expect(statusesIn(heard)).toEqual([400])
    await expectNothingOfBob(heard)
  }
})

test('attack: two lengths, negative, signed, hexadecimal and listed lengths are refused', async () => {
  for (const headers of [
    ['Content-Length: 2', 'Content-Length: 60'],
    ['Content-Length: 2, 60'],
    ['Content-Length: -1'],
    ['Content-Length: +2'],
    ['Content-Length: 0x2'],
    ['Content-Length: 2 0'],
    ['Content-Length: 99999999999999999999999'],
  ]) {
    const heard = await speak(stack.publicUrl, `${head('POST /u/alice/mcp', [...json, ...headers])}{}${smuggled()}`)
    expect([headers, statusesIn(heard).length]).toEqual([headers, 1])
    expect([400, 413]).toContain(statusesIn(heard)[0])
    await expectNothingOfBob(heard)
  }
})

test('attack: disguised transfer codings are refused', async () => {
  for (const header of [
    'Transfer-Encoding: xchunked',
    'Transfer-Encoding: chunked, identity',
    'Transfer-Encoding: identity, chunked, gzip',
    'Transfer-Encoding : chunked',
    'Transfer-Encoding:\x0bchunked',
    'Transfer-Encoding: "chunked"',
    'Transfer_Encoding: chunked\r\nTransfer-Encoding: chunked;q=1',
  ]) {
    const heard = await speak(stack.publicUrl, `${head('POST /u/alice/mcp', [...json, header])}0\r\n\r\n${smuggled()}`)
    expect([header, statusesIn(heard)]).toEqual([header, [400]])
    await expectNothingOfBob(heard)
  }
})

test('attack: chunks with wrong sizes, endless extensions or line feeds alone smuggle nothing', async () => {
  for (const chunks of [
    `2\n{}\r\n0\r\n\r\n${smuggled()}`,
    `-1\r\n{}\r\n0\r\n\r\n${smuggled()}`,
    `0x2\r\n{}\r\n0\r\n\r\n${smuggled()}`,
    `ffffffffffffffffff\r\n{}\r\n0\r\n\r\n${smuggled()}`,
    `2;${'a'.repeat(40_000)}\r\n{}\r\n0\r\n\r\n${smuggled()}`,
    `2\r\n{}XX0\r\n\r\n${smuggled()}`,
  ]) {
    const heard = await speak(
      stack.publicUrl,
      `${head('POST /u/alice/mcp', [...json, 'Transfer-Encoding: chunked'])}${chunks}`,
      { withinMs: 2_000 },
    )
    expect(statusesIn(heard).filter(status => status < 400)).toEqual([])
    await expectNothingOfBob(heard)
  }
})

test('attack: a request hidden in the body of another stays a body', async () => {
  const body = smuggled()
  const heard = await speak(
    stack.publicUrl,
    `${head('POST /u/alice/mcp', [...json, `Content-Length: ${body.length}`, 'Connection: close'])}${body}`,
  )
  expect(statusesIn(heard)).toEqual([400])
  await expectNothingOfBob(heard)
})

test('attack: on one connection, the second request is not answered with the rights of the first', async () => {
  const second = `GET /u/alice/mcp HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`
  const heard = await speak(stack.publicUrl, head('GET /u/alice/mcp') + second)
  expect(statusesIn(heard)).toEqual([400, 401])
  const foreign = await speak(
    stack.publicUrl,
    head('GET /u/bob/mcp', [], bob.key) + head('GET /u/bob/mcp', ['Connection: close'], alice.key),
  )
  expect(statusesIn(foreign)).toEqual([400, 404])
})

test('attack: folded lines, bare carriage returns, NUL and spaces in header names are refused', async () => {
  for (const header of [
    `X-Fold: a\r\n Authorization: Bearer ${bob.key}`,
    `X-Bare: a\rAuthorization: Bearer ${bob.key}`,
    'X-Nul: a\0b',
    'X Space: a',
    'X-Space : a',
    ': nameless',
    'X-\xe9: a',
    'no colon at all',
  ]) {
    const heard = await speak(stack.publicUrl, head('GET /u/bob/sse', [header, 'Connection: close']), {
      until: /\}$/,
    })
    expect([400, 401, 404]).toContain(statusesIn(heard)[0])
    await expectNothingOfBob(heard)
  }
})

test('attack: huge heads, thousands of headers and endless targets are refused, and the service goes on', async () => {
  for (const bytes of [
    head('GET /u/alice/sse', [`X-Huge: ${'a'.repeat(200_000)}`]),
    head(
      'GET /u/alice/sse',
      Array.from({ length: 5_000 }, (_, at) => `X-${at}: ${at}`),
    ),
    head(`GET /u/alice/sse?${'a'.repeat(200_000)}`),
    head(`GET /u/${'a'.repeat(100_000)}/sse`),
  ]) {
    const heard = await speak(stack.publicUrl, bytes, { until: /\r\n\r\n/ })
    expect(statusesIn(heard).every(status => [400, 414, 431].includes(status))).toBe(true)
  }
  expect((await fetch(`${stack.publicUrl}/healthz`)).status).toBe(200)
})

test('attack: the target of another host, CONNECT, TRACE and protocol upgrades lead nowhere', async () => {
  const simulatorHost = new URL(stack.simulator.url).host
  const before = stack.simulator.log.list().length
  for (const [line, headers] of [
    [`GET http://${simulatorHost}/_sim/state`, []],
    ['GET http://127.0.0.1/u/bob/sse', []],
    ['GET //evil.example/u/bob/sse', []],
    [`CONNECT ${simulatorHost}`, []],
    ['TRACE /u/alice/mcp', []],
    ['OPTIONS *', []],
    [
      'GET /u/bob/mcp',
      [
        'Connection: upgrade',
        'Upgrade: websocket',
        'Sec-WebSocket-Version: 13',
        'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==',
      ],
    ],
    ['GET /u/bob/mcp', ['Connection: upgrade, http2-settings', 'Upgrade: h2c', 'HTTP2-Settings: AAAA']],
    ['PRI *', []],
  ] as [string, string[]][]) {
    const heard = await speak(stack.publicUrl, head(line, headers), { withinMs: 1_500, until: /\}$/ })
    expect([line, statusesIn(heard).filter(status => status < 400)]).toEqual([line, []])
    // TRACE would show the key to scripts
    expect(heard).not.toContain(alice.key)
    await expectNothingOfBob(heard)
  }
  expect(stack.simulator.log.list().length).toBe(before)
})

test('attack: no spelling of a path leads from alice to bob, to the control endpoints or to a file', async () => {
  const spellings = [
    '/u/alice/../bob/sse',
    '/u/alice/./../bob/sse',
    '/u/alice/..%2fbob/sse',
    '/u/alice%2f..%2fbob/sse',
    '/u/alice/%2e%2e/bob/sse',
    '/u/alice/%252e%252e/bob/sse',
    '/u/alice/..%5cbob/sse',
    '/u/alice\\..\\bob\\sse',
    '/u/alice/..;/bob/sse',
    '/u/alice;x=/../bob/sse',
    '/u//bob/sse',
    '//u/bob/sse',
    '/u/./bob/sse',
    '/./u/bob/sse',
    '/u/BOB/sse',
    '/u/%62ob/sse',
    '/u/bob/%73se',
    '/%75/bob/sse',
    '/u/bob%00/sse',
    '/u/bob/sse%00',
    '/u/bob%20/sse',
    '/u/bob%0d%0a/sse',
    '/u/bo\u0062\u0301/sse',
    '/u/%c0%ae%c0%ae/bob/sse',
    '/u/alice/sse/../../bob/sse',
    '/u/alice/sse/%2e%2e/%2e%2e/bob/sse',
    '/u/alice/control/usage',
    '/u/alice/mcp/../control/usage',
    '/u/alice/mcp/..%2fcontrol%2fusage',
    '/u/alice/%2e%2e/control/usage',
    '/mcp/../control/usage',
    '/mcp%2f..%2fcontrol%2fusage',
    '/control/usage',
    '/u/alice/mcp;/../control/usage',
    '/u/alice/healthz',
    '/u/alice/mcp/../healthz',
    '/errors/../../../../etc/passwd',
    '/errors/..%2f..%2f..%2f..%2fetc%2fpasswd',
    '/errors/%2e%2e%2f%2e%2e%2fpackage.json',
    '/errors/__proto__',
    '/errors/constructor',
    '/healthz/../u/bob/sse',
  ]
  expect(spellings.length).toBeGreaterThanOrEqual(30)
  for (const spelling of spellings)
    for (const method of ['GET', 'POST']) {
      const heard = await speak(
        stack.publicUrl,
        Buffer.from(head(`${method} ${spelling}`, ['Content-Length: 0', 'Connection: close']), 'latin1'),
        { until: /\}$|root:|sessionId=/ },
      )
      expect([method, spelling, statusesIn(heard).every(status => [400, 401, 404].includes(status))]).toEqual([
        method,
        spelling,
        true,
      ])
      expect(heard).not.toMatch(/root:|"uptimeSeconds"|"dependencies"/)
      await expectNothingOfBob(heard)
    }
  // and the true spelling is one
  const own = await speak(stack.publicUrl, head('GET /u/bob/sse', [], bob.key), { until: /sessionId=/ })
  expect(own).toContain('/u/bob/messages')
  await eventually(async () => (await health(bob)).sessions === 0)
})

test('attack: line breaks and repeated parameters in a session id become neither headers nor sessions', async () => {
  for (const query of [
    'sessionId=%0d%0aSet-Cookie:%20a=b',
    'sessionId=a&sessionId=b',
    'sessionId[]=a',
    'sessionId=__proto__',
    'sessionId=constructor',
    `sessionId=${'a'.repeat(8_000)}`,
    "sessionId=' or 1=1--",
  ]) {
    const response = await post(
      `${stack.publicUrl}/u/alice/messages?${query.replaceAll(' ', '%20')}`,
      bearer(alice.key),
    )
    expect([400, 404]).toContain(response.status)
    expect(response.headers.get('set-cookie')).toBe(null)
  }
  for (const session of ['__proto__', 'constructor', 'toString', '*', '../bob'])
    expect((await post(alice.mcp, { ...bearer(alice.key), 'mcp-session-id': session })).status).toBe(404)
})

test('attack: a body of five mebibytes is refused whether it is announced or not', async () => {
  const big = 'a'.repeat(5 * 1024 * 1024)
  const announced = await post(alice.mcp, bearer(alice.key), JSON.stringify({ ...listTools, params: { big } }))
  expect(announced.status).toBe(413)
  const streamed = await speak(
    stack.publicUrl,
    `${head('POST /u/alice/mcp', [...json, 'Transfer-Encoding: chunked'])}500000\r\n${big}\r\n0\r\n\r\n`,
    { until: /\}$/ },
  )
  expect(statusesIn(streamed)).toEqual([413])
  const claimed = await speak(stack.publicUrl, head('POST /u/alice/mcp', [...json, 'Content-Length: 1099511627776']), {
    until: /\}$/,
  })
  expect(statusesIn(claimed)).toEqual([413])
})

test('attack: bodies that are no JSON-RPC get an error each and leave the instance as it was', async () => {
  const before = (await health(alice)).uptimeSeconds
  for (const body of [
    '{',
    '',
    'null',
    '[]',
    '[[]]',
    '"text"',
    '0',
    '{"jsonrpc":"1.0","id":1,"method":"tools/list"}',
    '{"jsonrpc":"2.0","id":{"$gt":""},"method":"tools/list"}',
    '{"jsonrpc":"2.0","id":1,"method":["tools/list"]}',
    '{"jsonrpc":"2.0","id":1e400,"method":"x"}',
    '\ufeff{}\0',
    `{"jsonrpc":"2.0","id":"${'9'.repeat(100_000)}","method":"tools/list"}`,
    '\\ud800',
  ]) {
    const response = await post(alice.mcp, bearer(alice.key), body)
    expect([body.slice(0, 60), response.status]).toEqual([body.slice(0, 60), 400])
    await response.text()
  }
  for (const type of ['text/plain', 'application/xml', 'multipart/form-data', 'application/x-www-form-urlencoded', ''])
    expect((await post(alice.mcp, { ...bearer(alice.key), 'content-type': type })).status).toBe(415)
  expect((await health(alice)).uptimeSeconds).toBeGreaterThanOrEqual(before)
})

test('attack: JSON nested a hundred thousand deep overflows no stack', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  const session = { 'mcp-session-id': (client.transport as unknown as { sessionId: string }).sessionId }
  const before = (await health(alice)).uptimeSeconds
  const depth = 100_000
  for (const body of [
    `${'['.repeat(depth)}${']'.repeat(depth)}`,
    `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`,
    `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search_requests","arguments":{"criteria":${'['.repeat(depth)}${']'.repeat(depth)}}}}`,
    `{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"get_my_context","_meta":${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}}}`,
  ])
    for (const headers of [bearer(alice.key), { ...bearer(alice.key), ...session }]) {
      const response = await post(alice.mcp, headers, body)
      expect(response.status).toBeLessThan(600)
      await response.text()
    }
  expect((await health(alice)).uptimeSeconds).toBeGreaterThanOrEqual(before)
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('attack: __proto__, constructor and prototype in MCP messages change nothing for the sessions beside', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  const session = {
    ...bearer(alice.key),
    'mcp-session-id': (client.transport as unknown as { sessionId: string }).sessionId,
  }
  const tools = (await client.listTools()).tools.length
  for (const poison of [
    '{"__proto__":{"isError":true,"readOnly":true,"purpose":"control"}}',
    '{"constructor":{"prototype":{"readOnly":true}}}',
  ]) {
    await post(
      alice.mcp,
      session,
      `{"jsonrpc":"2.0","id":21,"method":"tools/call","params":{"name":"search_requests","arguments":${poison}}}`,
    ).then(r => r.text())
    await post(alice.mcp, session, `{"jsonrpc":"2.0","id":22,"method":"tools/list","params":${poison}}`).then(r =>
      r.text(),
    )
    await post(
      alice.mcp,
      bearer(alice.key),
      `{"jsonrpc":"2.0","id":23,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":${poison},"clientInfo":{"name":"a","version":"1","__proto__":{"readOnly":true}}},"__proto__":{"readOnly":true}}`,
    ).then(r => r.text())
  }
  await using after = await connect('mcp', alice.mcp, alice.key)
  expect((await after.listTools()).tools.length).toBe(tools)
  expect((await callTool(after, 'search_requests', { limit: 1 })).requests.length).toBe(1)
})

test('attack: a batch of ten thousand messages or of equal ids neither stops the instance nor crosses answers', async () => {
  await using client = await connect('mcp', alice.mcp, alice.key)
  const session = {
    ...bearer(alice.key),
    'mcp-session-id': (client.transport as unknown as { sessionId: string }).sessionId,
  }
  const equal = await post(alice.mcp, session, [listTools, listTools])
  expect(equal.status).toBe(400)
  const many = await post(
    alice.mcp,
    session,
    Array.from({ length: 10_000 }, (_, id) => ({ jsonrpc: '2.0', id: `b${id}`, method: 'ping' })),
  )
  expect(many.status).toBeLessThan(500)
  await many.body?.cancel()
  const inits = await post(alice.mcp, bearer(alice.key), [initialize, { ...initialize, id: 1 }])
  expect(inits.status).toBe(400)
  await inits.body?.cancel()
  expect((await client.listTools()).tools.length).toBeGreaterThan(0)
})

test('attack: a flood of sessions of one user is bounded, and the other user does not notice', async () => {
  const statuses: number[] = []
  for (let round = 0; round < 8; round++)
    statuses.push(
      ...(await Promise.all(
        Array.from({ length: 15 }, async () => {
          const response = await post(alice.mcp, bearer(alice.key), initialize)
          await response.text()
          return response.status
        }),
      )),
    )
  expect(statuses).toContain(200)
  expect(statuses.some(status => status === 503 || status === 429)).toBe(true)
  expect((await health(alice)).sessions).toBeLessThanOrEqual(100)
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  expect((await asBob.listTools()).tools.length).toBeGreaterThan(0)
})

test('attack: heads that never end are cut off after a while', async () => {
  await eventually(() => dribbling.every(({ ended }) => ended), {
    withinMs: Math.max(5_000, 90_000 - (performance.now() - dribblingSince)),
    what: 'the end of the slow senders',
  })
})
