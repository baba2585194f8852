import { randomBytes } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { callTool, connect } from '../support/mcp-client.ts'
import { ExitedAtStart, eventually, type Stack, startStack } from '../support/stack.ts'

// Another master key while technicians work.

let stack: Stack
let folder: string
let alice: Awaited<ReturnType<Stack['addUser']>>
const keys = { first: randomBytes(32).toString('base64'), second: randomBytes(32).toString('base64') }
const current = () => join(folder, 'master_key')
const old = () => join(folder, 'master_keys_old')

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-master-key-'))
  await writeFile(current(), `${keys.first}\n`)
  await writeFile(old(), '')
  stack = await startStack({
    installation: 'e2e-master-key',
    environment: { SDP_MASTER_KEY: '', SDP_MASTER_KEY_FILE: current(), SDP_MASTER_KEYS_OLD_FILE: old() },
  })
  alice = await stack.addUser('alice')
})
afterAll(async () => {
  await stack?.[Symbol.asyncDispose]()
  await rm(folder, { recursive: true, force: true })
})

const status = async () => (await stack.admin('GET', '/v1/system')).body.masterKey

test('the master key is replaced without a restart, a failed call or a new container', async () => {
  const container = (await stack.admin('GET', '/v1/users/alice')).body.instance.containerId
  const before = await status()
  expect(before).toMatchObject({ remaining: 0, running: false })
  await using client = await connect('sse', alice.sse, alice.key)
  let working = true
  let calls = 0
  const work = (async () => {
    for (; working; calls++) await callTool(client, 'search_requests', { view: 'all', limit: 1 })
  })()

  await writeFile(old(), `${keys.first}\n`)
  await writeFile(current(), `${keys.second}\n`)
  const asked = await stack.admin('POST', '/v1/system/master-key/rewrap')
  expect(asked.status).toBe(202)
  const after = await eventually(
    async () => {
      const now = await status()
      return !now.running && now.remaining === 0 && now
    },
    { what: 'the rotation' },
  )
  expect(after.current).not.toBe(before.current)
  expect(after.keys).toEqual([
    { id: after.current, configured: true, dataKeys: 1, signingKeys: 1 },
    { id: before.current, configured: true, dataKeys: 0, signingKeys: 0 },
  ])
  const bob = await stack.addUser('bob')
  working = false
  await work
  expect(calls).toBeGreaterThan(0)
  expect((await stack.admin('GET', '/v1/users/alice')).body.instance.containerId).toBe(container)

  // the old key can go
  await writeFile(old(), '')
  await stack.controlPlane().stop()
  await stack.startControlPlane()
  await stack.admin('POST', '/v1/users/alice/instance/restart')
  await eventually(
    async () => {
      const { state, containerId } = (await stack.admin('GET', '/v1/users/alice')).body.instance
      return state === 'ready' && containerId !== container
    },
    { withinMs: 30_000, what: 'the restart' },
  )
  for (const user of [alice, bob]) {
    await using again = await connect('mcp', user.mcp, user.key)
    expect((await callTool(again, 'search_requests', { view: 'all', limit: 1 })).requests).toBeDefined()
  }
  const { body } = await stack.admin('GET', '/v1/audit?action=master-key.*')
  expect(body.events.map((event: { action: string }) => event.action)).toEqual([
    'master-key.rewrap-finished',
    'master-key.rewrap-started',
  ])
})

test('files that hold no key are refused, and the keys in use stay', async () => {
  const before = await status()
  await writeFile(current(), 'too short\n')
  const { status: code, body } = await stack.admin('POST', '/v1/system/master-key/rewrap')
  expect([code, body.code, body.detail]).toEqual([500, 'key-unknown', expect.stringContaining('SDP_MASTER_KEY')])
  await writeFile(current(), `${keys.second}\n`)
  expect(await status()).toEqual(before)
})

test('with the old key alone the control plane does not start, says which key is missing, and changes nothing', async () => {
  const rows = () => stack.sql('select * from data_keys order by user_id')
  const before = await rows()
  await stack.controlPlane().stop()
  await writeFile(current(), `${keys.first}\n`)
  const failure = await stack.startControlPlane().catch(error => error)
  expect(failure).toBeInstanceOf(ExitedAtStart)
  expect(failure.code).toBe(69)
  expect(failure.output).toContain('SDP_MASTER_KEYS_OLD')
  for (const key of Object.values(keys)) expect(failure.output).not.toContain(key)
  expect(await rows()).toEqual(before)
  await writeFile(current(), `${keys.second}\n`)
  await stack.startControlPlane()
})
