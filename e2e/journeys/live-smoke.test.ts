import { spawn } from 'node:child_process'
import { dirname, join } from 'node:path'
import { startSimulator } from '@sdp-mcp/simulator'
import { expect, test } from 'vitest'

// `npm run smoke` is for real accounts; here it is held to refusing without one, and tried on the simulator.

const script = join(dirname(import.meta.dirname), 'live/smoke.ts')

async function run(environment: Record<string, string>): Promise<{ code: number | null; out: string; err: string }> {
  const child = spawn(process.execPath, [script], {
    env: { PATH: process.env.PATH, ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const said = { out: '', err: '' }
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    said.out += chunk
  })
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    said.err += chunk
  })
  const code = await new Promise<number | null>(done => child.once('close', done))
  return { code, ...said }
}

test.each([
  [{}, /needs SDP_LIVE_INSTANCE_NAME, SDP_LIVE_CLIENT_ID, SDP_LIVE_CLIENT_SECRET, SDP_LIVE_REFRESH_TOKEN/],
  // what a stand-alone instance is set up with is not taken by accident
  [{ SDP_INSTANCE_NAME: 'itdesk', SDP_CLIENT_ID: 'x', SDP_CLIENT_SECRET: 'x', SDP_GRANT_CODE: 'x' }, /needs SDP_LIVE_/],
  [{ SDP_LIVE_INSTANCE_NAME: 'itdesk', SDP_LIVE_CLIENT_ID: 'x', SDP_LIVE_CLIENT_SECRET: 'x' }, /SDP_LIVE_GRANT_CODE/],
])('without a live account it refuses and says what it needs: %o', async (environment, needs) => {
  const { code, out, err } = await run(environment as Record<string, string>)
  expect([code, out]).toEqual([64, ''])
  expect(err).toMatch(/nothing was done/)
  expect(err).toMatch(needs)
})

test.each([
  ['false', ['GET']],
  ['true', ['GET', 'POST', 'PUT']],
])('with SDP_LIVE_WRITE=%s every step passes, by %o only', async (write, methods) => {
  await using simulator = await startSimulator()
  const grant = simulator.createGrantCode({ user: 'carol' })
  const { code, out, err } = await run({
    SDP_LIVE_INSTANCE_NAME: 'itdesk',
    SDP_LIVE_CLIENT_ID: grant.clientId,
    SDP_LIVE_CLIENT_SECRET: grant.clientSecret,
    SDP_LIVE_GRANT_CODE: grant.code,
    SDP_LIVE_BASE_URL: simulator.url,
    SDP_LIVE_ACCOUNTS_URL: simulator.url,
    SDP_LIVE_ALLOW_INSECURE_UPSTREAM: 'true',
    SDP_LIVE_WRITE: write,
  })
  expect(out + err).toContain('smoke: all steps passed')
  expect(code).toBe(0)
  const api = simulator.log.list().filter(({ path }) => path.includes('/api/v3'))
  expect([...new Set(api.map(({ method }) => method))].sort()).toEqual(methods)
  expect(out).not.toContain(grant.clientSecret)
})
