import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { startTemplateServer } from '@sdp-mcp/migrations/testing'
import { findEngine } from '../../control-plane/evaluation/docker-engine.ts'
import { buildFixtureImage } from '../support/fixture-image.ts'
import { type Stack, startStack } from '../support/stack.ts'
import { childrenOf, needPrograms, residentKb } from './proxy/machine.ts'
import { type Calls, calls } from './proxy/measures.ts'
import { median } from './proxy/report.ts'
import { clientHeaders } from './proxy/wire.ts'

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
          SDP_INSTANCE_IMAGE: image,
          SDP_INSTANCE_CPUS: String(availableParallelism()),
          SDP_USER_REQUESTS_PER_SECOND: '0',
          SDP_USER_CONCURRENT_REQUESTS: '0',
        },
      })
      const { status, body } = await stack.admin('POST', '/v1/users', { username: 'bench' }, { prefer: 'wait=60' })
      if (status !== 201) throw new Error(`the user could not be added: ${JSON.stringify(body)}`)
      const primary = stack.controlPlane().process.pid!
      rows.push({
        count,
        stack,
        key: body.apiKey.key,
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
    const of = (found: Calls[], field: keyof Calls) => median(found.map(one => one[field]))
    const one = of(rows[0]!.found, 'perSecond')
    const report = [
      `64 connections, ${rounds} rounds of ${seconds} s, ${availableParallelism()} cores shared by workers, instance and load.`,
      '',
      '| Workers | calls/s | to one | p50 ms | p99 ms | CPU ms per 1,000 calls | memory MB |',
      '|---:|---:|---:|---:|---:|---:|---:|',
      ...rows.map(
        ({ count, found, pids }) =>
          `| ${count} | ${of(found, 'perSecond').toFixed(0)} | ${(of(found, 'perSecond') / one).toFixed(2)} | ${of(found, 'p50').toFixed(2)} | ${of(found, 'p99').toFixed(2)} | ${of(found, 'cpuMicrosPerCall').toFixed(0)} | ${(residentKb(pids) / 1024).toFixed(0)} |`,
      ),
    ].join('\n')
    const results = join(import.meta.dirname, 'results')
    await mkdir(results, { recursive: true })
    await writeFile(join(results, 'workers.md'), `${report}\n`)
    await writeFile(
      join(results, 'workers.json'),
      `${JSON.stringify(
        rows.map(({ count, found }) => ({ count, found })),
        null,
        1,
      )}\n`,
    )
    process.stdout.write(`\n${report}\n`)
  } finally {
    for (const { stack } of rows) await stack[Symbol.asyncDispose]()
    await fixture.remove()
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
}
