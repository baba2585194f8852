import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { freePort, startTemplateServer } from '@sdp-mcp/migrations/testing'
import Docker from 'dockerode'
import { Agent, request } from 'undici'
import { findEngine } from '../../control-plane/evaluation/docker-engine.ts'
import { eventually, type Stack, startStack } from '../support/stack.ts'
import { startInstantDesk } from './instant-desk.ts'
import { calmly, cpuMicros } from './proxy/machine.ts'

/**
 * What the way to ServiceDesk Plus adds to a call of it: the very calls that a tool makes, made directly at a server that
 * answers at once (instant-desk.ts); the tool at an instance alone; and the tool through control plane and container. Rounds
 * are interleaved, each sample is one call after another, and a warm one is counted again while the host takes time of the
 * cores. Then: how many connections the calls needed.
 */

const root = dirname(dirname(import.meta.dirname))
const targetMs = 3
/**
 * Measured twice: the first calls of a tool, when names, forms and the time zone have been asked for, as after the first
 * minute of a day, and V8 has compiled next to nothing; and calls of a process that has made thousands. The target is for
 * what is left then.
 */
type State = { name: string; before: number; calls: number; rounds: number; isWarm: boolean }

const statesOf = (short: boolean, rounds: number): State[] => {
  const [before, calls, many] = short ? [5, 20, 25] : [20, 100, 5_000]
  return [
    { name: `calls ${before + 1} to ${before + calls}`, before, calls, rounds: 1, isWarm: false },
    { name: `after ${many}`, before: many, calls, rounds, isWarm: true },
  ]
}

type Way = {
  name: string
  call: () => Promise<void>
  /** the processes whose work this way adds */
  pids: number[]
}

export async function toolpath({ rounds, short }: { rounds: number; short: boolean }): Promise<void> {
  const engine = await findEngine()
  if (!engine) throw new Error('No Docker engine answers. Start one, or set DOCKER_HOST.')
  const installation = process.env.SDP_TEST_INSTALLATION ?? 'bench-toolpath'
  const server = await startTemplateServer([engine.hostAddress])
  const desk = await startInstantDesk(engine.hostAddress)
  const stack = await startStack({
    installation,
    on: { engine: { ...engine, host: `unix://${engine.socket}` }, postgres: server.connection },
    // one client asks as fast as it can, which the limits of a user are there to prevent
    environment: simulator => {
      desk.passTo(simulator.url)
      return {
        SDP_BASE_URL: desk.url,
        SDP_LOG_LEVEL: 'warn',
        SDP_IDLE_STOP_AFTER: 'never',
        SDP_USER_REQUESTS_PER_SECOND: '0',
        SDP_USER_CONCURRENT_REQUESTS: '0',
      }
    },
  })
  const dispatcher = new Agent({ keepAliveTimeout: 60_000 })
  const lines: string[] = []
  const note = (line: string) => {
    lines.push(line)
    process.stdout.write(`${line}\n`)
  }
  const results: Record<string, unknown> = {}
  await using alone = await startAlone(stack, desk.url)
  try {
    const { body, key } = await stack.addUser('carol', { toolsets: ['core', 'advanced'] })
    const token = await accessToken(stack)
    const through = await openSession(dispatcher, body.endpoints.mcp, key)
    const direct = await openSession(dispatcher, alone.url, alone.key)
    const portal = stack.simulator.state.portals.find(({ name }) => name === 'itdesk')
    const [id] = Object.keys(portal?.tables.requests ?? {})
    const tools: [string, Record<string, unknown>][] = [
      ['sdp_api_get', { path: `/requests/${id}` }],
      ['search_requests', { view: 'all', limit: 20 }],
    ]
    const controlPlane = stack.controlPlane().process.pid as number
    const contained = await processOf(engine.socket, installation)
    const states = statesOf(short, rounds)
    const subjects: { tool: string; ways: Way[]; found: Sample[][] }[] = []
    for (const [tool, args] of tools) {
      // names are asked for once
      for (let at = 0; at < 2; at++) await through(tool, args)
      await desk.seen()
      await through(tool, args)
      const { urls } = await desk.seen()
      const floor = {
        name: `${urls.length} call${urls.length === 1 ? '' : 's'} of the API`,
        call: () => ask(desk.url, dispatcher, token, urls),
        pids: [],
      }
      const lone = { name: 'instance alone', call: () => direct(tool, args), pids: [alone.pid] }
      const pids = [controlPlane, contained]
      const whole = { name: 'control plane and instance', call: () => through(tool, args), pids }
      subjects.push({ tool, ways: [floor, lone, whole], found: [] })
    }
    // all tools in one state before any of them in the next: they share their processes
    for (const state of states)
      for (const { ways, found } of subjects) {
        for (const { call } of ways) for (let at = 0; at < state.before; at++) await call()
        found.push(await measure(ways, state))
      }
    const heads = states.map(({ name }) => `${name}: p50 ms | p99 ms | over the calls alone | CPU ms | `)
    note(`| Tool | Way | ${heads.join('')}target |`)
    note(`|---|---|${'---:|---:|---:|---:|'.repeat(states.length)}---|`)
    for (const { tool, ways, found } of subjects)
      for (const [index, { name }] of ways.entries()) {
        const cells = found.map((samples, state) => {
          const { times, cpuMs } = samples[index] as Sample
          const [p50, p99] = [quantile(times, 0.5), quantile(times, 0.99)]
          const over = p50 - quantile(samples[0]?.times ?? [], 0.5)
          const work = cpuMs / times.length
          results[`${tool}: ${name}, ${states[state]?.name}`] = { p50, p99, over, work }
          const rest = index === 0 ? ' | ' : `${over.toFixed(2)} | ${work.toFixed(2)}`
          return { text: `${p50.toFixed(2)} | ${p99.toFixed(2)} | ${rest} | `, over }
        })
        const over = cells.at(-1)?.over ?? Number.NaN
        const bar = index === 2 ? `below ${targetMs}: ${over < targetMs ? 'met' : '**not met**'}` : ''
        note(`| \`${tool}\` | ${name} | ${cells.map(({ text }) => text).join('')}${bar} |`)
      }
    note('')
    const calls = short ? 50 : 500
    const [tool, args] = tools[0] as [string, Record<string, unknown>]
    const opened = async (work: () => Promise<unknown>) => {
      const { connections } = await desk.seen()
      await work()
      return (await desk.seen()).connections - connections
    }
    const oneByOne = async () => {
      for (let at = 0; at < calls; at++) await through(tool, args)
    }
    const tenAtOnce = async () => {
      for (let at = 0; at < calls / 10; at++) await Promise.all(Array.from({ length: 10 }, () => through(tool, args)))
    }
    note(`${calls} calls one after another opened ${await opened(oneByOne)} new connections to the API.`)
    note(`${calls} calls, ten at a time, opened ${await opened(tenAtOnce)} (at most 16 are kept).`)
    note(`The same again opened ${await opened(tenAtOnce)}.`)
  } finally {
    await dispatcher.close()
    await stack[Symbol.asyncDispose]()
    await desk.close()
    await server.close()
  }
  const folder = join(import.meta.dirname, 'results')
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'toolpath.json'), `${JSON.stringify({ rounds, results }, null, 2)}\n`)
  await writeFile(join(folder, 'toolpath.md'), `${lines.join('\n')}\n`)
}

/** Milliseconds of each call, and the CPU time of all; the latter tells the same on a machine that others use, too. */
type Sample = { times: number[]; cpuMs: number }

/** Who comes first changes with each round. First calls cannot be made again, however much the host disturbs them. */
async function measure(ways: Way[], { rounds, calls, isWarm }: State): Promise<Sample[]> {
  const samples: Sample[] = ways.map(() => ({ times: [], cpuMs: 0 }))
  for (let round = 0; round < rounds; round++)
    for (const [shift] of ways.entries()) {
      const index = (round + shift) % ways.length
      const take = () => sampleOf(ways[index] as Way, calls)
      const found = isWarm ? (await calmly(take)).found : await take()
      const sample = samples[index] as Sample
      sample.times.push(...found.times)
      sample.cpuMs += found.cpuMs
    }
  return samples
}

async function sampleOf({ call, pids }: Way, calls: number): Promise<Sample> {
  const times: number[] = []
  const before = cpuMicros(pids)
  for (let at = 0; at < calls; at++) {
    const startedAt = performance.now()
    await call()
    times.push(performance.now() - startedAt)
  }
  return { times, cpuMs: (cpuMicros(pids) - before) / 1000 }
}

/** Pid, as this machine sees it, of the program in the only container: below docker-init. */
async function processOf(socket: string, installation: string): Promise<number> {
  const docker = new Docker({ socketPath: socket })
  const filters = { label: [`com.sdp-mcp.installation=${installation}`] }
  const [found] = await docker.listContainers({ filters })
  const { Pid } = (await docker.getContainer(found?.Id ?? '').inspect()).State
  const [child] = (await readFile(`/proc/${Pid}/task/${Pid}/children`, 'utf8')).trim().split(' ')
  return Number(child || Pid)
}

async function ask(origin: string, dispatcher: Agent, token: string, urls: string[]): Promise<void> {
  for (const url of urls) {
    const { statusCode, body } = await request(`${origin}${url}`, {
      dispatcher,
      headers: { authorization: `Zoho-oauthtoken ${token}`, accept: 'application/vnd.manageengine.sdp.v3+json' },
    })
    const text = await body.text()
    if (statusCode !== 200) throw new Error(`${url} was answered with ${statusCode}: ${text}`)
    JSON.parse(text)
  }
}

async function accessToken({ simulator }: Stack): Promise<string> {
  const { clientId, clientSecret, code } = simulator.createGrantCode({ user: 'carol' })
  const { body } = await request(`${simulator.url}/oauth/v2/token`, {
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: new URLSearchParams({
      grant_type: 'authorization_code',
      client_id: clientId,
      client_secret: clientSecret,
      code,
    }).toString(),
  })
  const answer = (await body.json()) as { access_token?: string }
  if (!answer.access_token) throw new Error(`no token came: ${JSON.stringify(answer)}`)
  return answer.access_token
}

/** A session by hand, so that the client costs next to nothing. */
async function openSession(dispatcher: Agent, url: string, key: string) {
  const headers: Record<string, string> = {
    authorization: `Bearer ${key}`,
    'content-type': 'application/json',
    accept: 'application/json, text/event-stream',
  }
  let id = 0
  const post = async (message: Record<string, unknown>) => {
    const {
      statusCode,
      headers: answered,
      body,
    } = await request(url, {
      dispatcher,
      method: 'POST',
      headers,
      body: JSON.stringify({ jsonrpc: '2.0', ...message }),
    })
    const text = await body.text()
    if (statusCode >= 300) throw new Error(`${url} answered ${statusCode}: ${text}`)
    return { text, answered }
  }
  const params = { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'bench', version: '1.0.0' } }
  const { answered } = await post({ id: ++id, method: 'initialize', params })
  headers['mcp-session-id'] = String(answered['mcp-session-id'])
  headers['mcp-protocol-version'] = '2025-06-18'
  await post({ method: 'notifications/initialized' })
  return async (name: string, args: Record<string, unknown>) => {
    const { text } = await post({ id: ++id, method: 'tools/call', params: { name, arguments: args } })
    if (!text.includes('"result"') || text.includes('"isError":true')) throw new Error(`${name} answered: ${text}`)
  }
}

/** The instance as one person runs it alone, from the bundle. */
async function startAlone({ simulator }: Stack, baseUrl: string) {
  const grant = simulator.createGrantCode({ user: 'carol' })
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-bench-'))
  const port = await freePort()
  const key = 'bench-key-of-the-lone-instance'
  const child = spawn(process.execPath, [join(root, 'instance', 'dist', 'main.cjs'), '--http'], {
    env: {
      PATH: process.env.PATH,
      SDP_INSTANCE_NAME: 'itdesk',
      SDP_BASE_URL: baseUrl,
      SDP_ACCOUNTS_URL: simulator.url,
      SDP_ALLOW_INSECURE_UPSTREAM: 'true',
      SDP_CLIENT_ID: grant.clientId,
      SDP_CLIENT_SECRET: grant.clientSecret,
      SDP_GRANT_CODE: grant.code,
      SDP_TOOLSETS: 'core,advanced',
      SDP_STATE_DIR: folder,
      SDP_HTTP_PORT: String(port),
      SDP_API_KEY: key,
      SDP_LOG_LEVEL: 'warn',
    },
    stdio: ['ignore', 'ignore', 'ignore'],
  })
  const url = `http://127.0.0.1:${port}`
  await eventually(async () => (await fetch(`${url}/healthz`)).ok, { what: 'the lone instance', withinMs: 60_000 })
  return {
    url: `${url}/mcp`,
    key,
    pid: child.pid as number,
    async [Symbol.asyncDispose]() {
      const gone = once(child, 'exit')
      child.kill('SIGTERM')
      await gone
      await rm(folder, { recursive: true, force: true })
    },
  }
}

function quantile(values: number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN
}
