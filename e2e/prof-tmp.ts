import { spawn } from 'node:child_process'
import { mkdtempSync } from 'node:fs'
import { startSimulator } from '@sdp-mcp/simulator'
import { Agent, request } from 'undici'

const sim = await startSimulator()
const grant = sim.createGrantCode({ user: 'carol' })
const port = 20000 + Math.floor(Math.random() * 9000)
const key = 'bench-key-of-the-lone-instance'
const child = spawn(
  process.execPath,
  [
    '--cpu-prof',
    '--cpu-prof-dir=/tmp/w/small/prof',
    ...(process.env.FL ?? '').split(' ').filter(Boolean),
    process.env.MAIN ?? '/tmp/w/wt-small/instance/dist/main.mjs',
    '--http',
  ],
  {
    env: {
      PATH: process.env.PATH,
      SDP_INSTANCE_NAME: 'itdesk',
      SDP_BASE_URL: sim.url,
      SDP_ACCOUNTS_URL: sim.url,
      SDP_ALLOW_INSECURE_UPSTREAM: 'true',
      SDP_CLIENT_ID: grant.clientId,
      SDP_CLIENT_SECRET: grant.clientSecret,
      SDP_GRANT_CODE: grant.code,
      SDP_TOOLSETS: 'core,advanced',
      SDP_STATE_DIR: mkdtempSync('/tmp/w/small/st'),
      SDP_HTTP_PORT: String(port),
      SDP_API_KEY: key,
      SDP_LOG_LEVEL: process.env.LL ?? 'warn',
    },
    stdio: ['ignore', 'ignore', process.env.LL ? 'ignore' : 'ignore'],
  },
)
for (;;) {
  try {
    if ((await fetch(`http://127.0.0.1:${port}/healthz`)).ok) break
  } catch {
    await new Promise(d => setTimeout(d, 50))
  }
}
await new Promise(d => setTimeout(d, 1000))
const dispatcher = new Agent()
const h: Record<string, string> = {
  authorization: `Bearer ${key}`,
  'content-type': 'application/json',
  accept: 'application/json, text/event-stream',
}
let id = 0
const post = async (m: object) => {
  const { headers, body } = await request(`http://127.0.0.1:${port}/mcp`, {
    dispatcher,
    method: 'POST',
    headers: h,
    body: JSON.stringify({ jsonrpc: '2.0', ...m }),
  })
  return { headers, text: await body.text() }
}
const i = await post({
  id: ++id,
  method: 'initialize',
  params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'x', version: '1' } },
})
h['mcp-session-id'] = String(i.headers['mcp-session-id'])
h['mcp-protocol-version'] = '2025-06-18'
await post({ method: 'notifications/initialized' })
const rid = Object.keys(sim.state.portals.find(p => p.name === 'itdesk')!.tables.requests!)[0]
const N = Number(process.env.N ?? 600)
const t: number[] = []
const ping: number[] = []
for (let k = 0; k < N; k++) {
  const a = performance.now()
  const r = await post({
    id: ++id,
    method: 'tools/call',
    params: { name: 'sdp_api_get', arguments: { path: `/requests/${rid}` } },
  })
  if (k === 0 && r.text.includes('isError')) console.log(r.text.slice(0, 300))
  t.push(performance.now() - a)
  const b = performance.now()
  await post({ id: ++id, method: 'ping' })
  ping.push(performance.now() - b)
}
const q = (v: number[], x: number) =>
  [...v.slice(v.length / 2)].sort((a, b) => a - b)[Math.floor((v.length / 2) * x)]!.toFixed(2)
console.log('call', q(t, 0.5), q(t, 0.99), 'ping', q(ping, 0.5), q(ping, 0.99))
child.kill('SIGTERM')
await new Promise(d => child.once('exit', d))
await sim.close()
await dispatcher.close()
