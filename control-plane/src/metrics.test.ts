import { expect, test } from 'vitest'
import type { Meter } from './activity.ts'
import { createMetrics, type MetricsSnapshot } from './metrics.ts'

const meter = (more: Partial<Meter>): Meter => ({
  activeAt: 0,
  calls: 0,
  streams: 0,
  bytesIn: 0,
  bytesOut: 0,
  requests: 0,
  failures: 0,
  ...more,
})

function worker(meters: Meter[], others: () => Promise<MetricsSnapshot[]> = async () => []) {
  const all = new Map(meters.map((one, at) => [String(at), one]))
  return createMetrics({ activity: { all: () => all }, version: '1.2.3', others })
}
const none = { starting: 0, ready: 0, draining: 0, stopped: 0, failed: 0 }
const value = (text: string, name: string) =>
  Number(new RegExp(`^${name.replace(/[{}"]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1])

test('what workers counted is added up by whoever is asked, and only the leader tells of the fleet', async () => {
  const asked = worker([meter({ streams: 3, bytesIn: 10 }), meter({ streams: 1 })], async () =>
    Promise.all([leader.snapshot(), third.snapshot()]),
  )
  const leader = worker([meter({ streams: 2, bytesIn: 5, calls: 1 })])
  const third = worker([])
  leader.leads(() => true)
  for (const one of [asked, leader, third]) one.proxy.callDone('call', { kind: 'done', status: 200 }, 20)
  asked.proxy.streamClosed('client')
  leader.fleet.swept(10, { ...none, ready: 4, stopped: 2 }, 7)
  // what it saw when it led, some time ago
  third.fleet.swept(10, { ...none, ready: 99 }, 99)
  const text = await asked.text()
  const expected: Record<string, number> = {
    sdp_mcp_workers: 3,
    'sdp_mcp_info{version="1.2.3"}': 1,
    sdp_mcp_leader: 1,
    sdp_mcp_streams_open: 6,
    sdp_mcp_calls_open: 1,
    'sdp_mcp_proxied_bytes_total{direction="in"}': 15,
    'sdp_mcp_proxy_call_seconds_count{route="call",outcome="2xx"}': 3,
    'sdp_mcp_stream_closes_total{reason="client"}': 1,
    'sdp_mcp_instances{state="ready"}': 4,
    sdp_mcp_sessions: 7,
  }
  const found = Object.fromEntries(Object.keys(expected).map(name => [name, value(text, name)]))
  expect(found).toEqual(expected)
})

test('a process that is alone tells everything itself', async () => {
  const alone = worker([meter({ streams: 2 })])
  const text = await alone.text()
  expect(value(text, 'sdp_mcp_workers')).toBe(1)
  expect(value(text, 'sdp_mcp_streams_open')).toBe(2)
  expect(value(text, 'sdp_mcp_leader')).toBe(0)
  expect(text).toMatch(/^nodejs_eventloop_lag_p99_seconds /m)
})
