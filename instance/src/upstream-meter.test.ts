import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { latencyBoundsMs } from './contract.ts'
import { createOutgoing } from './outgoing.ts'
import { meterUpstream } from './upstream-meter.ts'

const http = createOutgoing({ upstreams: 'any', behindProxy: false })
const call = { method: 'GET', headers: {}, timeoutMs: 10_000, maxBytes: 1_000 } as const
const server = createServer((request, response) => {
  const status = Number(/status=(\d+)/.exec(request.url ?? '')?.[1] ?? 200)
  response.writeHead(status).end('{}')
})
let origin: string
beforeAll(async () => {
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
})
afterAll(() => new Promise(done => server.close(done)))

test('requests are counted by module and outcome, token calls apart, and nothing of an address is kept', async () => {
  const meter = meterUpstream(http, origin)
  const api = `${origin}/app/itdesk/api/v3`
  for (const path of ['/requests/12/notes?input_data=secret', '/requests?status=429', '/problems?status=503'])
    await meter.http({ ...call, url: api + path })
  await meter.http({ ...call, url: `${api}/requests/77` })
  await meter.http({ ...call, method: 'POST', url: `${origin}/oauth/v2/token` })
  await meter.http({ ...call, method: 'POST', url: `${origin}/oauth/v2/token?status=400` })
  await expect(meter.http({ ...call, url: 'http://127.0.0.1:1/app/itdesk/api/v3/changes' })).rejects.toThrow()
  const { upstream, mints, failures } = meter.report()
  expect(upstream.map(({ module, outcome, calls }) => `${module} ${outcome} ${calls}`)).toEqual([
    'requests ok 2',
    'requests limited 1',
    'problems failed 1',
    'changes unreachable 1',
  ])
  expect(upstream[0]?.buckets).toHaveLength(latencyBoundsMs.length + 1)
  expect(upstream[0]?.buckets.reduce((sum, count) => sum + count)).toBe(2)
  expect({ mints, failures }).toEqual({ mints: 2, failures: 1 })
  expect(JSON.stringify(meter.report())).not.toMatch(/secret|itdesk|77/)
})

test('however many modules a site seems to have, the report stays small', async () => {
  const meter = meterUpstream(http, origin)
  for (let at = 0; at < 100; at++)
    await meter.http({
      ...call,
      url: `${origin}/app/itdesk/api/v3/${String.fromCharCode(97 + (at % 26))}_${'x'.repeat(at / 26)}`,
    })
  const { upstream } = meter.report()
  expect(upstream).toEqual([expect.objectContaining({ module: 'other', outcome: 'ok', calls: 100 })])
})
