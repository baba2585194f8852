import { execFile } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { startTemplateServer } from '@sdp-mcp/migrations/testing'
import { findEngine } from '../../control-plane/evaluation/docker-engine.ts'
import { measureManyUsers } from '../../control-plane/src/fleet/testing/many-users.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'
import { bareRun } from './provision.ts'

const installation = 'bench-scale'
const run = promisify(execFile)
const wakeRounds = 7

/**
 * Many users on one host: what each instance costs, how soon a control plane that starts again serves all of them (target:
 * under 5 s for 100), how long the first call after sleep takes against a bare `docker start` of the same container (target:
 * at most 1.5 times), whether many who come at once all get through, and what 1,000 users cost the control plane itself.
 *
 * @param users - real containers
 */
export async function scale({ users }: { users: number }): Promise<void> {
  const engine = await findEngine()
  if (!engine) throw new Error('No Docker engine answers. Start one, or set DOCKER_HOST.')
  const host = `unix://${engine.socket}`
  const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
  const docker = async (...args: string[]) =>
    (await run('docker', args, { env: { ...process.env, DOCKER_HOST: host } })).stdout
  const server = await startTemplateServer([engine.hostAddress])
  const stack = await startStack({
    installation,
    on: { engine: { ...engine, host }, postgres: server.connection },
    environment: {
      SDP_LOG_LEVEL: 'warn',
      SDP_IDLE_STOP_AFTER: 'never',
      SDP_INSTANCE_PORT_RANGE: '30000-30499',
      SDP_INSTANCE_NETWORK_POOL: '10.218.0.0/16',
      SDP_INSTANCE_MEMORY_REQUEST_MB: '16',
      SDP_HOST_MEMORY_RESERVE_MB: '0',
    },
  })
  const lines: [what: string, value: string, target: string][] = []
  const note = (what: string, value: string, target = '') => {
    lines.push([what, value, target])
    process.stdout.write(`${what}: ${value}${target ? ` (target: ${target})` : ''}\n`)
  }
  try {
    const keys = new Map<string, string>()
    const add = async (name: string) => {
      const { status, body } = await stack.admin('POST', '/v1/users', { username: name })
      if (status !== 201) throw new Error(`${name} could not be added: ${status} ${JSON.stringify(body)}`)
      keys.set(name, body.apiKey.key)
    }
    const ready = (count: number) =>
      eventually(async () => (await stack.admin('GET', '/v1/system')).body.counts.instances.ready === count, {
        what: `${count} instances ready`,
        withinMs: 600_000,
      })
    const atOnce = Math.min(50, users)
    let began = performance.now()
    await Promise.all(Array.from({ length: atOnce }, (_, at) => add(`user-${at}`)))
    await ready(atOnce)
    note(`${atOnce} users added at once, all ready`, seconds(began), 'none lost')
    began = performance.now()
    for (let at = atOnce; at < users; at++) {
      await add(`user-${at}`)
      // a few at a time, so that the time for each can be told
      if (at % 4 === 3) await ready(at + 1)
    }
    await ready(users)
    if (users > atOnce)
      note('each further user, four at a time', `${((performance.now() - began) / (users - atOnce)).toFixed(0)} ms`)
    const answered = await Promise.all([...keys].map(([name, key]) => initialize(stack, name, key)))
    note('users whose instance answers', `${answered.filter(Boolean).length} of ${users}`, `${users}`)

    const ids = (await docker('ps', '-q', '--no-trunc', '--filter', `label=com.sdp-mcp.installation=${installation}`))
      .trim()
      .split('\n')
    const memory = (await docker('stats', '--no-stream', '--format', '{{.MemUsage}}', ...ids))
      .trim()
      .split('\n')
      .map(line => mebibytes(line.split('/')[0]!))
    note('memory of an instance, median', `${median(memory).toFixed(0)} MiB`)
    note('memory of an instance, largest', `${Math.max(...memory).toFixed(0)} MiB`)
    note(`memory of the control plane with ${users} instances`, `${await residentMiB(stack)} MiB`)

    await stack.controlPlane().stop('SIGKILL')
    began = performance.now()
    await stack.startControlPlane()
    await eventually(async () => (await stack.admin('GET', '/v1/routes')).body.routes.length === users, {
      what: 'all adopted',
      withinMs: 120_000,
    })
    note(`start of a control plane until all ${users} are served`, seconds(began), 'under 5 s for 100')
    const after = (await docker('ps', '-q', '--no-trunc', '--filter', `label=com.sdp-mcp.installation=${installation}`))
      .trim()
      .split('\n')
    note('containers that are the same as before', `${after.filter(id => ids.includes(id)).length} of ${users}`)

    const wakes = { ours: [] as number[], bare: [] as number[] }
    for (let round = 0; round <= wakeRounds; round++) {
      const bare = await bareRun(image, host, { fromStopped: true })
      const ours = await wake(stack, 'user-0', keys.get('user-0')!)
      // the first round warms caches of both sides
      if (round === 0) continue
      wakes.ours.push(ours)
      wakes.bare.push(bare)
    }
    note('bare `docker start` until the first answered request', `${median(wakes.bare).toFixed(0)} ms`)
    note(
      'first `initialize` answered by an instance that sleeps',
      `${median(wakes.ours).toFixed(0)} ms, ${(median(wakes.ours) / median(wakes.bare)).toFixed(2)} times`,
      'at most 1.5 times',
    )
  } finally {
    await stack[Symbol.asyncDispose]()
  }
  try {
    for (const [what, value, target] of await measureManyUsers(server.connection, 1_000)) note(what, value, target)
  } finally {
    await server.close()
  }
  const report = [
    '| What | Measured | Target |',
    '|---|---|---|',
    ...lines.map(line => `| ${line.join(' | ')} |`),
  ].join('\n')
  const folder = join(import.meta.dirname, 'results')
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'scale.json'), `${JSON.stringify({ users, lines }, null, 2)}\n`)
  await writeFile(join(folder, 'scale.md'), `${report}\n`)
}

/** Whether `initialize` is answered; raw, because a client of its own for each of hundreds costs more than what is measured. */
async function initialize(stack: Stack, name: string, key: string): Promise<boolean> {
  const response = await fetch(`${stack.publicUrl}/u/${name}/mcp`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${key}`,
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
    },
    body: JSON.stringify({
      jsonrpc: '2.0',
      id: 1,
      method: 'initialize',
      params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'bench', version: '1' } },
    }),
  })
  return response.status === 200 && (await response.text()).includes('serverInfo')
}

async function wake(stack: Stack, name: string, key: string): Promise<number> {
  await stack.admin('POST', `/v1/users/${name}/instance/stop`)
  await settled(stack, name, 'stopped')
  const began = performance.now()
  if (!(await initialize(stack, name, key))) throw new Error(`${name} was not served after its sleep`)
  return performance.now() - began
}

async function settled(stack: Stack, name: string, state: string): Promise<void> {
  await eventually(async () => (await stack.admin('GET', `/v1/users/${name}`)).body.instance.state === state, {
    what: `${name} ${state}`,
    withinMs: 30_000,
  })
  // the row is written first, the container ends a moment later
  await delay(1_500)
}

async function residentMiB(stack: Stack): Promise<string> {
  const status = await readFile(`/proc/${stack.controlPlane().process.pid}/status`, 'utf8')
  return (Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) / 1024).toFixed(0)
}

const seconds = (began: number) => `${((performance.now() - began) / 1000).toFixed(1)} s`
const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!

function mebibytes(text: string): number {
  const [, amount, unit] = /([\d.]+)\s*([KMG]iB)/.exec(text) ?? []
  return Number(amount) * { KiB: 1 / 1024, MiB: 1, GiB: 1024 }[(unit ?? 'MiB') as 'MiB']
}
