import { expect, inject, test } from 'vitest'
import { testInstallation } from '../support/setup.ts'
import { startStack } from '../support/stack.ts'
import { plot } from './plot.ts'
import { descriptorsLeft, soak, tellingHeap } from './soak.ts'

// The short form of `npm run soak`: everything happens, and nothing goes wrong that nobody caused. Slopes mean nothing in so
// short a time; what everybody held must be given back.

const installation = `${testInstallation}-soak`

test('streams, calls, reconnects, new keys, restarts, sleep and wake bring no error that nobody caused', {
  timeout: 300_000,
}, async () => {
  await using stack = await startStack({
    installation,
    environment: { SDP_LOG_LEVEL: 'warn', SDP_IDLE_STOP_AFTER: '8s', NODE_OPTIONS: tellingHeap },
  })
  const report = await soak(stack, {
    durationMs: 60_000,
    streams: 40,
    users: 3,
    sampleMs: 5_000,
    disturbMs: 15_000,
    installation,
    socket: inject('engine').socket,
    say: line => process.stdout.write(`${line}\n`),
  })
  expect(report.unexpected).toEqual([])
  // a loaded machine does less, but something of everything
  expect(report.calls).toBeGreaterThan(40)
  expect(report.reconnects).toBeGreaterThan(0)
  expect(report.rotations).toBeGreaterThan(0)
  expect(report.restarts).toBeGreaterThan(0)
  expect(report.wakes).toBeGreaterThan(0)
  expect(report.descriptors.after).toBeLessThanOrEqual(report.descriptors.before + descriptorsLeft)
  for (const { points } of report.series) expect(points.length).toBeGreaterThan(3)
  expect(plot('soak', report.series)).toContain('<polyline')
})
