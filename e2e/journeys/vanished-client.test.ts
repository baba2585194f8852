import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { eventually, type Stack, startStack } from '../support/stack.ts'

// A client whose network goes away in the middle of a stream: no FIN, no RST, nothing. As when a laptop is closed.

const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let container: string | undefined

const docker = async (...args: string[]) =>
  (
    await promisify(execFile)('docker', args, { env: { ...process.env, DOCKER_HOST: inject('engine').host } })
  ).stdout.trim()

beforeAll(async () => {
  stack = await startStack({
    runtime: 'process',
    installation: 'e2e-vanished',
    // where a container of the default network finds this machine
    address: inject('engine').hostAddress,
  })
  alice = await stack.addUser('alice')
})
afterAll(async () => {
  if (container) await docker('rm', '--force', container)
  await stack?.[Symbol.asyncDispose]()
})

const metric = async (name: string) =>
  Number(new RegExp(`^${name} (\\S+)$`, 'm').exec((await stack.admin('GET', '/metrics')).body)?.[1])
const sessions = async () => (await stack.admin('GET', '/v1/sessions')).body.sessions.length as number

test('the stream of a client that vanished without a word is ended within a minute, and no other', async () => {
  const headers = { authorization: `Bearer ${alice.key}` }
  const stays = await fetch(alice.sse, { headers })
  const reader = stays.body!.getReader()
  await reader.read()
  let stayed = true
  void (async () => {
    while (!(await reader.read().catch(() => ({ done: true }))).done) {}
    stayed = false
  })()

  const script = `fetch(${JSON.stringify(alice.sse)}, { headers: ${JSON.stringify(headers)} })
    .then(async ({ status, body }) => { console.log('status ' + status); for await (const _ of body); })`
  container = await docker('run', '--detach', '--network', 'bridge', '--entrypoint', 'node', image, '-e', script)
  const client = container
  await eventually(async () => (await docker('logs', client)).includes('status 200'), { what: 'the stream' })
  await eventually(async () => (await metric('sdp_mcp_streams_open')) === 2)
  expect(await sessions()).toBe(2)

  const vanishedAt = Date.now()
  await docker('network', 'disconnect', '--force', 'bridge', client)
  // a keep-alive within 15 s, seven tries to deliver it in 25 s, and a look every 10 s; and a margin for busy machines
  await eventually(async () => (await metric('sdp_mcp_streams_open')) === 1, {
    withinMs: 90_000,
    what: 'the end of the stream',
  })
  expect(Date.now() - vanishedAt).toBeGreaterThan(15_000)
  expect(stack.controlPlane().output()).toContain('client.vanished')
  await eventually(async () => (await sessions()) === 1, { what: 'the end of its session' })
  expect(stayed).toBe(true)
  await reader.cancel()
}, 180_000)
