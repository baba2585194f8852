import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { cpuMicros, loadCore, residentKb } from './machine.ts'
import { percentile } from './report.ts'
import type { Target } from './targets.ts'
import { ask, begin, message, nowMicros, open, openStream, openStreams, roundTrips } from './wire.ts'

/** Each function measures one thing at one target, once. Times are in milliseconds. */

const run = promisify(execFile)

export type Calls = { perSecond: number; p50: number; p99: number; cpuMicrosPerCall: number }

/**
 * JSON-RPC calls on connections that are kept, as fast as the answers come.
 * @param anyCore - leave the load where the system puts it
 * @param load - `wrk`, which costs little itself, or this very process, which is always at hand
 */
export async function calls(
  target: Pick<Target, 'name' | 'where' | 'call' | 'pids'>,
  {
    connections,
    seconds,
    folder,
    query = '',
    load = 'wrk',
    anyCore = false,
  }: { connections: number; seconds: number; folder: string; query?: string; load?: 'wrk' | 'node'; anyCore?: boolean },
): Promise<Calls> {
  if (load === 'node') return callsFromHere(target, connections, seconds, query)
  const script = join(folder, `${target.name.replaceAll(' ', '-')}.lua`)
  await writeFile(script, wrkScript(target))
  const url = `http://127.0.0.1:${target.where.port}${target.call.path}${query}`
  const args = ['-t1', `-c${connections}`, `-d${seconds}s`, '--timeout', '10s', '-s', script, url]
  const before = cpuMicros(target.pids())
  const { stdout } = anyCore
    ? await run('wrk', args)
    : await run('taskset', ['--cpu-list', String(loadCore), 'wrk', ...args])
  const cpu = cpuMicros(target.pids()) - before
  const found = /RESULT (\d+) (\d+) (\d+) (\d+) (\d+)/.exec(stdout)?.slice(1).map(Number)
  if (!found) throw new Error(`wrk did not report on ${target.name}:\n${stdout}`)
  const [requests, micros, p50, p99, errors] = found as [number, number, number, number, number]
  if (errors > 0 || requests === 0)
    throw new Error(
      `${errors} of ${requests} calls through ${target.name} were not answered as they should be:\n${stdout}`,
    )
  return { perSecond: requests / (micros / 1e6), p50: p50 / 1000, p99: p99 / 1000, cpuMicrosPerCall: cpu / requests }
}

async function callsFromHere(
  target: Pick<Target, 'where' | 'pids'>,
  connections: number,
  seconds: number,
  query: string,
): Promise<Calls> {
  const before = cpuMicros(target.pids())
  const beganAt = nowMicros()
  const times: number[] = []
  const lane = async () => {
    while (nowMicros() - beganAt < seconds * 1e6)
      times.push(...(await roundTrips(target.where, 'POST', `/mcp${query}`, 50)))
  }
  await Promise.all(Array.from({ length: connections }, lane))
  return {
    perSecond: times.length / ((nowMicros() - beganAt) / 1e6),
    p50: percentile(times, 50) / 1000,
    p99: percentile(times, 99) / 1000,
    cpuMicrosPerCall: (cpuMicros(target.pids()) - before) / times.length,
  }
}

function wrkScript({ call }: Pick<Target, 'call'>): string {
  const headers = Object.entries(call.headers).map(([name, value]) => `wrk.headers["${name}"] = "${value}"`)
  return `wrk.method = "POST"
wrk.body = '${message}'
${headers.join('\n')}
function done(summary, latency)
  local e = summary.errors
  print(string.format("RESULT %d %d %d %d %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
`
}

/** From a new connection to the first event of its stream. */
export async function streamOpening(target: Target, count: number): Promise<number[]> {
  const times: number[] = []
  for (let index = 0; index < count; index++) {
    const startedAt = nowMicros()
    const socket = await openStream(target.where)
    times.push((nowMicros() - startedAt) / 1000)
    socket.destroy()
  }
  return times
}

/**
 * Many clients that come all at once, and go on calling: the slowest first answer. Those that are served keep a proxy busy
 * while it takes in the others.
 */
export async function burst(target: Target, clients: number): Promise<number> {
  const firsts = await Promise.all(
    Array.from({ length: clients }, async () => (await roundTrips(target.where, 'POST', '/mcp', 20, 0, 'connect'))[0]!),
  )
  return Math.max(...firsts) / 1000
}

/** From a new connection to the headers of a stream on which nothing happens; infinite when they wait for the first byte. */
export async function silentHeaders(target: Target, count: number): Promise<number[]> {
  const times: number[] = []
  for (let index = 0; index < count; index++) {
    const startedAt = nowMicros()
    const socket = await open(target.where, 'GET', '/sse?first=never', '\r\n\r\n', 1_000).catch(() => null)
    if (!socket) return [Number.POSITIVE_INFINITY]
    times.push((nowMicros() - startedAt) / 1000)
    socket.destroy()
  }
  return times
}

/** From an instance that writes an event to each of many streams to the clients that read it. */
export async function eventLatency(target: Target, streams: number, events: number): Promise<number[]> {
  const times: number[] = []
  const sockets = await openStreams(target.where, streams)
  for (const socket of sockets)
    socket.on('data', chunk => {
      const now = nowMicros()
      for (const [, at] of chunk.toString('latin1').matchAll(/event: tick\ndata: (\d+)/g))
        times.push((now - Number(at)) / 1000)
    })
  const sender = await open(target.where, 'POST', `/messages?broadcast=${events}`, '\r\n\r\n')
  for (const deadline = Date.now() + 20_000; times.length < streams * events && Date.now() < deadline; ) await delay(50)
  sender.destroy()
  for (const socket of sockets) socket.destroy()
  if (times.length < streams * events)
    throw new Error(`${target.name} delivered ${times.length} of ${streams * events} events`)
  await delay(300)
  return times
}

export type Held = {
  streams: number
  kbPerStream: number
  /** kernel memory of all sockets of the machine, pages of TCP; includes both ends */
  kernelKbPerStream: number
  /** of a small call made while the streams are held and get their keep-alives */
  call: { p50: number; p99: number }
}

/** What held streams cost. Best asked of a process that has done nothing yet. */
export async function heldStreams(
  target: Target,
  { counts, watchSeconds, warmUp }: { counts: number[]; watchSeconds: number; warmUp: number },
): Promise<Held[]> {
  // code gets compiled, pools and the young generation of a heap grow: all that is not what a stream costs
  for (const socket of await openStreams(target.where, Math.min(300, warmUp))) socket.destroy()
  await roundTrips(target.where, 'POST', '/mcp', warmUp)
  await delay(2_000)
  const before = { resident: residentKb(target.pids()), kernel: await kernelKb() }
  const sockets = []
  const found: Held[] = []
  try {
    for (const streams of counts) {
      sockets.push(...(await openStreams(target.where, streams - sockets.length)))
      await delay(2_000)
      const times = await roundTrips(target.where, 'POST', '/mcp', watchSeconds * 150, 5)
      found.push({
        streams,
        kbPerStream: (residentKb(target.pids()) - before.resident) / streams,
        kernelKbPerStream: ((await kernelKb()) - before.kernel) / streams,
        call: { p50: percentile(times, 50) / 1000, p99: percentile(times, 99) / 1000 },
      })
    }
    const lost = sockets.filter(socket => socket.destroyed).length
    if (lost > 0) throw new Error(`${target.name} lost ${lost} of ${sockets.length} held streams`)
  } finally {
    for (const socket of sockets) socket.destroy()
  }
  await delay(2_000)
  return found
}

async function kernelKb(): Promise<number> {
  const { stdout } = await run('cat', ['/proc/net/sockstat'])
  return Number(/TCP:.* mem (\d+)/.exec(stdout)?.[1] ?? 0) * 4
}

/** From the end of an instance, as a client directly connected to it sees it, to the end of a proxied stream. */
export async function deathNoticed(target: Target): Promise<number> {
  const victim = await target.victim()
  const [direct, proxied] = [await openStream(victim.direct), await openStream(victim.where)]
  for (const socket of [direct, proxied]) socket.resume()
  const ends = Promise.all(
    [direct, proxied].map(socket => new Promise<number>(done => socket.once('close', () => done(nowMicros())))),
  )
  await victim.kill()
  const [directAt, proxiedAt] = (await ends) as [number, number]
  return Math.max(0, proxiedAt - directAt) / 1000
}

/** From a client that goes away to the instance that knows: a stream, or a call that has no answer yet. */
export async function abortNoticed(target: Target, kind: 'stream' | 'call'): Promise<number> {
  const mark = Math.random().toString(36).slice(2)
  const socket =
    kind === 'stream'
      ? await openStream(target.where, `?mark=${mark}`)
      : await begin(target.where, 'POST', `/mcp?as=silence&mark=${mark}`)
  // a call is under way when its body has arrived
  await delay(30)
  const leftAt = nowMicros()
  socket.destroy()
  for (const deadline = Date.now() + 5_000; Date.now() < deadline; await delay(5)) {
    const closedAt = Number(await ask(target.direct, `/mcp?closed=${mark}`))
    if (closedAt > 0) return Math.max(0, closedAt - leftAt) / 1000
  }
  return Number.POSITIVE_INFINITY
}

/** How much memory grows while a large answer passes: read as fast as it comes, or not at all after its beginning. */
export async function largeAnswer(target: Target, megabytes: number, reader: 'fast' | 'stopped'): Promise<number> {
  await delay(500)
  const before = residentKb(target.pids())
  let peak = before
  const sampler = setInterval(() => {
    peak = Math.max(peak, residentKb(target.pids()))
  }, 10)
  const path = `/mcp?as=bytes&bytes=${megabytes * 1_000_000}`
  const socket = await open(target.where, 'POST', path, '\r\n\r\n')
  if (reader === 'stopped') {
    socket.pause()
    await delay(2_000)
  } else
    await new Promise<void>(done => {
      socket.on('data', chunk => {
        if (chunk.subarray(-5).toString('latin1') === '0\r\n\r\n') done()
      })
      socket.on('close', () => done())
    })
  clearInterval(sampler)
  socket.destroy()
  return (peak - before) / 1024
}
