import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import { freePort } from '@sdp-mcp/migrations/testing'
import type Docker from 'dockerode'
import type { Subject } from './subjects.ts'

export type Memory = {
  /** what `docker stats` shows: usage of the cgroup without page cache that nobody used lately */
  container: number
  /** the part that belongs to the process alone and cannot be dropped */
  anonymous: number
}

export type Running = AsyncDisposable & {
  /** from the call that starts it to the first answered `initialize` */
  startMs: number
  memory(): Promise<Memory>
  /** one more session, which ends with the process: initialize, tools/list, and an open stream where there are sessions */
  openSession(): Promise<void>
}

/** Starts a container of the subject on a loopback port, as the product does. */
export async function startContainer(docker: Docker, subject: Subject, name: string): Promise<Running> {
  const port = await freePort()
  const { boot, headers } = subject.admission(port)
  const container = await docker.createContainer({
    name,
    Image: subject.image,
    ...(subject.command ? { Entrypoint: [], Cmd: subject.command(port) } : {}),
    Env: subject.environment,
    Labels: { 'com.sdp-mcp.bench': 'instance' },
    OpenStdin: true,
    StdinOnce: true,
    AttachStdin: true,
    ExposedPorts: { [`${port}/tcp`]: {} },
    HostConfig: {
      PortBindings: { [`${port}/tcp`]: [{ HostIp: '127.0.0.1', HostPort: String(port) }] },
      Memory: 256 * 1024 * 1024,
      ReadonlyRootfs: true,
      Tmpfs: { '/tmp': 'size=16m' },
    },
  })
  try {
    const input = await container.attach({ stream: true, stdin: true, hijack: true })
    const startedAt = performance.now()
    await container.start()
    input.end(boot ?? '')
    await firstAnswer(port, headers)
    const startMs = performance.now() - startedAt
    return {
      startMs,
      memory: () => memoryOf(container),
      openSession: () => openSession(port, headers),
      async [Symbol.asyncDispose]() {
        await container.remove({ force: true })
      },
    }
  } catch (error) {
    await container.remove({ force: true })
    throw error
  }
}

/** Starts the subject as a process of this machine. @returns milliseconds from there to its first answered `initialize` */
export async function startProcess(subject: Subject): Promise<number> {
  const port = await freePort()
  const { boot, headers } = subject.admission(port)
  const startedAt = performance.now()
  const child = spawn(process.execPath, [...subject.args, ...(subject.command ? [String(port)] : [])], {
    env: { PATH: process.env.PATH, ...subject.fileEnvironment },
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  child.stdin.end(boot ?? '')
  try {
    await firstAnswer(port, headers)
    return performance.now() - startedAt
  } finally {
    child.kill('SIGKILL')
    await once(child, 'exit')
  }
}

/** As the engine tells it, for both versions of cgroups. */
export async function memoryOf(container: Docker.Container): Promise<Memory> {
  const { memory_stats: memory } = await container.stats({ stream: false, 'one-shot': true } as { stream: false })
  const fields = memory.stats as unknown as Record<string, number>
  // the names with total_ are those of cgroup v1
  const inactive = fields.total_inactive_file ?? fields.inactive_file ?? 0
  const anonymous = fields.total_rss ?? fields.anon ?? Number.NaN
  return { container: (memory.usage - inactive) / 1_048_576, anonymous: anonymous / 1_048_576 }
}

const accept = 'application/json, text/event-stream'
const post = (port: number, headers: Record<string, string>, body: Record<string, unknown>) =>
  fetch(`http://127.0.0.1:${port}/mcp`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept, ...headers },
    body: JSON.stringify({ jsonrpc: '2.0', ...body }),
  })

const initialize = {
  id: 1,
  method: 'initialize',
  params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'bench', version: '1.0.0' } },
}

/** Asks until somebody answers. */
async function firstAnswer(port: number, headers: Record<string, string>): Promise<void> {
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; await delay(3)) {
    const answer = await post(port, headers, initialize).catch(() => undefined)
    if (!answer) continue
    const text = await answer.text()
    if (!answer.ok) throw new Error(`initialize was answered with ${answer.status}: ${text}`)
    return
  }
  throw new Error('nobody answered within 60 s')
}

async function openSession(port: number, headers: Record<string, string>): Promise<void> {
  const answer = await post(port, headers, initialize)
  await answer.text()
  const id = answer.headers.get('mcp-session-id')
  if (id === null) return
  const inSession = { ...headers, 'mcp-session-id': id, 'mcp-protocol-version': '2025-06-18' }
  await (await post(port, inSession, { method: 'notifications/initialized' })).text()
  const list = await (await post(port, inSession, { id: 2, method: 'tools/list' })).text()
  if (!list.includes('inputSchema')) throw new Error(`tools/list was answered with: ${list.slice(0, 300)}`)
  // held open until the container is gone
  const stream = await fetch(`http://127.0.0.1:${port}/mcp`, { headers: { ...inSession, accept: 'text/event-stream' } })
  stream.body
    ?.getReader()
    .read()
    .catch(() => {})
}
