import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { startTemplateServer } from '@sdp-mcp/migrations/testing'
import { findEngine } from '../../control-plane/evaluation/docker-engine.ts'
import { buildFixtureImage } from '../support/fixture-image.ts'
import { type Stack, startStack } from '../support/stack.ts'
import { childrenOf, needPrograms, openFilesLimit, residentKb } from './proxy/machine.ts'
import { type Calls, calls } from './proxy/measures.ts'
import { median, percentile } from './proxy/report.ts'
import { imageFlags } from './proxy/targets.ts'
import { clientHeaders, openStreams, roundTrips, type Where } from './proxy/wire.ts'

const image = 'sdp-mcp/instance:bench-fixture'

/**
 * What more workers bring: the same calls through control planes of 1, 2 ... workers, one for each core at most, in turns.
 * Nothing is bound to a core; load, instance and workers share what there is, and what the first two take is told.
 */
export async function workers({ rounds, seconds }: { rounds: number; seconds: number }): Promise<void> {
  needPrograms(['taskset', 'wrk'])
  const engine = await findEngine()
  if (!engine) throw new Error('No Docker engine answers. Start one, or set DOCKER_HOST.')
  const host = `unix://${engine.socket}`
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-bench-'))
  const server = await startTemplateServer([engine.hostAddress])
  const fixture = await buildFixtureImage({
    script: join(import.meta.dirname, 'proxy', 'fixture.ts'),
    image,
    engine: host,
  })
  const counts = [...new Set([1, 2, availableParallelism()])].filter(
    count => count <= Math.max(2, availableParallelism()),
  )
  const rows: { count: number; stack: Stack; key: string; found: Calls[]; pids: number[] }[] = []
  try {
    for (const count of counts) {
      const stack = await startStack({
        installation: `bench-workers-${count}`,
        on: { engine: { ...engine, host }, postgres: server.connection },
        environment: {
          SDP_WORKERS: String(count),
          NODE_OPTIONS: await imageFlags('control-plane'),
          SDP_INSTANCE_IMAGE: image,
          SDP_INSTANCE_CPUS: String(availableParallelism()),
          SDP_USER_REQUESTS_PER_SECOND: '0',
          SDP_USER_CONCURRENT_REQUESTS: '0',
        },
      })
      const key = await addUser(stack, 'bench')
      const primary = stack.controlPlane().process.pid!
      rows.push({
        count,
        stack,
        key,
        found: [],
        pids: count === 1 ? [primary] : [primary, ...childrenOf(primary)],
      })
    }
    for (let round = 0; round <= rounds; round++)
      for (const { count, stack, key, found, pids } of rows) {
        const where = { port: Number(new URL(stack.publicUrl).port), prefix: '/u/bench', key }
        const call = { path: '/u/bench/mcp', headers: clientHeaders(key) }
        const target = { name: `${count} workers`, where, call, pids: () => pids }
        const result = await calls(target, { connections: 64, seconds, folder, anyCore: true })
        // the first round warms up
        if (round > 0) found.push(result)
        process.stdout.write(`round ${round}/${rounds}, ${count} workers: ${result.perSecond.toFixed(0)} calls/s\n`)
      }
    const memoryMb = new Map(rows.map(({ count, pids }) => [count, residentKb(pids) / 1024]))
    const held = await holdStreams(rows.at(-1)!)
    const of = (found: Calls[], field: keyof Calls) => median(found.map(one => one[field]))
    const one = of(rows[0]!.found, 'perSecond')
    const report = [
      `64 connections, ${rounds} rounds of ${seconds} s, ${availableParallelism()} cores shared by workers, instance and load.`,
      '',
      '| Workers | calls/s | to one | p50 ms | p99 ms | CPU ms per 1,000 calls | memory MB |',
      '|---:|---:|---:|---:|---:|---:|---:|',
      ...rows.map(
        ({ count, found }) =>
          `| ${count} | ${of(found, 'perSecond').toFixed(0)} | ${(of(found, 'perSecond') / one).toFixed(2)} | ${of(found, 'p50').toFixed(2)} | ${of(found, 'p99').toFixed(2)} | ${of(found, 'cpuMicrosPerCall').toFixed(0)} | ${(memoryMb.get(count) ?? Number.NaN).toFixed(0)} |`,
      ),
      '',
      `${held.streams} streams held by ${rows.at(-1)!.count} workers, of ${held.users} users: ${held.kbPerStream.toFixed(1)} KB each; a call beside them takes ${held.p50.toFixed(2)} ms at p50, ${held.p99.toFixed(2)} ms at p99.`,
    ].join('\n')
    const results = join(import.meta.dirname, 'results')
    await mkdir(results, { recursive: true })
    await writeFile(join(results, 'workers.md'), `${report}\n`)
    await writeFile(
      join(results, 'workers.json'),
      `${JSON.stringify({ rows: rows.map(({ count, found }) => ({ count, found })), held }, null, 1)}\n`,
    )
    process.stdout.write(`\n${report}\n`)
  } finally {
    for (const { stack } of rows) await stack[Symbol.asyncDispose]()
    await fixture.remove()
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
}

async function addUser(stack: Stack, username: string): Promise<string> {
  const { status, body } = await stack.admin('POST', '/v1/users', { username }, { prefer: 'wait=60' })
  if (status !== 201) throw new Error(`the user ${username} could not be added: ${JSON.stringify(body)}`)
  return body.apiKey.key
}

/** Users who share the streams: an instance may open 8,192 files, too. */
const holders = Array.from({ length: 5 }, (_, index) => `holder-${index + 1}`)

/** What ten thousand streams cost, or as many as the workers and this process may open files for: one here, two in a worker. */
async function holdStreams({ stack, count, pids }: { stack: Stack; count: number; pids: number[] }) {
  const limit = openFilesLimit() - 1_500
  const streams = Math.min(10, Math.floor(limit / 1_000), Math.floor((limit * count) / 2_000)) * 1_000
  if (streams < 1_000) throw new Error('Too few files may be opened to hold streams; try again after: ulimit -n 20000')
  const ways: Where[] = []
  for (const username of holders)
    ways.push({
      port: Number(new URL(stack.publicUrl).port),
      prefix: `/u/${username}`,
      key: await addUser(stack, username),
    })
  for (const way of ways) await roundTrips(way, 'POST', '/mcp', 2_000)
  await delay(5_000)
  const before = residentKb(pids)
  const sockets: Awaited<ReturnType<typeof openStreams>> = []
  try {
    for (const way of ways) sockets.push(...(await openStreams(way, streams / holders.length)))
    await delay(5_000)
    const times = await roundTrips(ways[0]!, 'POST', '/mcp', 1_500, 5)
    const lost = sockets.filter(socket => socket.destroyed).length
    if (lost > 0) throw new Error(`${lost} of ${streams} held streams were lost`)
    return {
      streams,
      users: holders.length,
      kbPerStream: (residentKb(pids) - before) / streams,
      p50: percentile(times, 50) / 1000,
      p99: percentile(times, 99) / 1000,
    }
  } finally {
    for (const socket of sockets) socket.destroy()
  }
}
