import { existsSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { cpus, setPriority, tmpdir } from 'node:os'
import { join } from 'node:path'
import { startTemplateServer } from '@sdp-mcp/migrations/testing'
import { calmly, calmShare, installCompared, loadCore, needPrograms, openFilesLimit, pin, turns } from './machine.ts'
import * as measure from './measures.ts'
import { bars, emptySheet, markdown, percentile, plot, type Sheets } from './report.ts'
import { type Instance, starters, startInstance, type Target, type TargetName } from './targets.ts'

/**
 * The proxy beside others, in one run: each round asks every target the same, one after the other, and what counts is the
 * ratio of the medians. Ours runs as a whole control plane with its database, authentication on; the others pass everything
 * through. A proxy has a core for itself; load and instances share the other. docs/performance.md tells what it showed.
 */
export async function proxy({ rounds, size }: { rounds: number; size: Size }): Promise<void> {
  const plan = { full: fullPlan(rounds), held: heldPlan, short: shortPlan, smoke: smokePlan }[size]
  needPrograms(['taskset', ...plan.programs])
  const npmFolder = plan.programs.includes('npm') ? installCompared() : ''
  pin(process.pid, loadCore)
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-bench-'))
  const server = await startTemplateServer()
  const sheets: Sheets = Object.fromEntries(plan.targets.map(name => [name, emptySheet()]))
  const stolenShares: number[] = []
  let repeated = 0
  const turn = turns()
  const say = (text: string) => process.stdout.write(`${text}\n`)

  const startOne = (name: TargetName, instance: Instance) =>
    starters[name]({ instance, postgres: server.connection, npmFolder })

  // one at a time, and new processes: what a stream costs shows best in a process that has done little
  async function hold(): Promise<void> {
    for (const name of plan.targets) {
      if (plan.counts.length === 0 || name === 'supergateway' || name === 'direct') continue
      await turn.take()
      const instance = await startInstance()
      const target = await startOne(name, instance)
      try {
        sheets[name]!.held = await measure.heldStreams(target, plan)
        for (const held of sheets[name]!.held)
          say(
            `${name}: ${held.kbPerStream.toFixed(1)} KB a stream at ${held.streams}, a call then takes ${held.call.p99.toFixed(1)} ms at p99`,
          )
      } catch (error) {
        say(`${name} could not hold the streams: ${(error as Error).message}`)
      } finally {
        await target[Symbol.asyncDispose]()
        await instance.program.stop('SIGKILL')
        turn.mayGiveBack()
      }
    }
  }

  async function round(number: number, targets: Target[]): Promise<void> {
    // no target always comes first
    const order = [...targets.slice(number % targets.length), ...targets.slice(0, number % targets.length)]
    const streaming = order.filter(({ streams }) => streams)
    for (const { key, connections, query } of plan.calls)
      for (const target of query ? streaming : order) {
        const { seconds, warmUpFactor, load } = plan
        const settings = { connections, seconds, folder, query, load }
        // the first round warms up: it compiles code, and fills caches and pools
        if (number === 0) {
          await measure.calls(target, { ...settings, seconds: seconds * warmUpFactor })
          continue
        }
        // V8 throws compiled code away when a full collection finds no object left that it is compiled for, so after a rest
        // each program of Node's learns again
        await measure.calls(target, { ...settings, seconds: plan.warmUpSeconds })
        const { found, stolenShare, times } = await calmly(() => measure.calls(target, settings))
        stolenShares.push(stolenShare)
        repeated += times - 1
        const list = sheets[target.name]!.calls
        list[key] = [...(list[key] ?? []), found]
        say(
          `round ${number}/${plan.rounds} ${key} ${target.name}: ${found.perSecond.toFixed(0)} calls/s, p50 ${found.p50.toFixed(3)} ms, p99 ${found.p99.toFixed(2)} ms, ${found.cpuMicrosPerCall.toFixed(0)} µs CPU a call${times > 1 ? `, the best of ${times}` : ''}`,
        )
      }
    for (const target of streaming) {
      const opening = await measure.streamOpening(target, plan.openings)
      const headers = await measure.silentHeaders(target, Math.ceil(plan.openings / 10))
      const burst = await measure.burst(target, 64)
      const events = await measure.eventLatency(target, plan.eventStreams, 20)
      if (number === 0) continue
      const sheet = sheets[target.name]!
      sheet.opening.push(...opening)
      sheet.headers.push(...headers)
      sheet.burst.push(burst)
      sheet.events.push({ p50: percentile(events, 50), p99: percentile(events, 99) })
      sheet.aborts.stream.push(await measure.abortNoticed(target, 'stream'))
      sheet.aborts.call.push(await measure.abortNoticed(target, 'call'))
      if (target.name !== 'direct') sheet.death.push(await measure.deathNoticed(target))
      sheet.large.fast.push(await measure.largeAnswer(target, 50, 'fast'))
      sheet.large.stopped.push(await measure.largeAnswer(target, 50, 'stopped'))
    }
    say(`round ${number}/${plan.rounds} done`)
  }

  try {
    await hold()
    if (plan.rounds === 0) return await report()
    takePrecedence()
    await using stack = new AsyncDisposableStack()
    const instance = await startInstance()
    stack.defer(() => instance.program.stop('SIGKILL'))
    const targets: Target[] = []
    for (const name of plan.targets) targets.push(stack.use(await startOne(name, instance)))
    for (let number = 0; number <= plan.rounds; number++) {
      await turn.take()
      await round(number, targets)
      turn.mayGiveBack()
    }
  } finally {
    turn.giveBack()
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }

  await report()

  async function report(): Promise<void> {
    const [cpu] = cpus()
    const percent = (share: number) => `${(share * 100).toFixed(1)} %`
    const host =
      stolenShares.length === 0
        ? ''
        : `The host took ${percent(percentile(stolenShares, 50))} of a core while calls were counted (median; at most ${percent(Math.max(...stolenShares))}); ${repeated} of ${stolenShares.length + repeated} counts were done again because it took more than ${percent(calmShare)}.`
    const setting = `${plan.rounds} rounds of ${plan.seconds} s, each after ${plan.warmUpSeconds} s that did not count, Node ${process.versions.node}, ${cpus().length} cores (${cpu?.model.trim()}), at most ${openFilesLimit()} open files; medians. ${host}`
    // a folder for each size: what took a minute must not replace what took an hour
    const results = join(import.meta.dirname, '..', 'results', size === 'full' ? '' : size)
    await mkdir(results, { recursive: true })
    await writeFile(
      join(results, 'proxy.json'),
      `${JSON.stringify({ setting, bars: bars(sheets), sheets: thin(sheets) }, null, 1)}\n`,
    )
    await writeFile(join(results, 'proxy.md'), markdown(sheets, setting))
    await writeFile(join(results, 'proxy.svg'), plot(sheets, setting))
    say(`\n${markdown(sheets, setting)}\nwritten to ${results}/proxy.{json,md,svg}`)
  }
}

/**
 * - `held`: only what held streams cost, a few minutes
 * - `short`: a first look, a minute or two
 * - `smoke`: whether the benchmark itself works; needs nothing that has to be fetched, and its figures mean little
 */
export type Size = 'full' | 'held' | 'short' | 'smoke'

/** On a machine that others use too, SDP_BENCH_NICE=-10 (as root) gives everything that is measured the same precedence. */
function takePrecedence(): void {
  const { SDP_BENCH_NICE: nice } = process.env
  if (!nice) return
  setPriority(Number(nice))
  // where the kernel groups processes by session, it is the group that counts
  if (existsSync('/proc/self/autogroup')) writeFileSync('/proc/self/autogroup', nice)
}

/** Thousands of single openings are summed up. */
function thin(sheets: Sheets) {
  const summary = (values: number[]) => ({
    count: values.length,
    p50: percentile(values, 50),
    p90: percentile(values, 90),
    p99: percentile(values, 99),
  })
  return Object.fromEntries(
    Object.entries(sheets).map(([name, { opening, headers, ...rest }]) => [
      name,
      { ...rest, opening: summary(opening), headers: summary(headers) },
    ]),
  )
}

type Plan = {
  /** what must be installed beside Node */
  programs: string[]
  targets: TargetName[]
  /** what makes calls; see measure.calls */
  load: 'wrk' | 'node'
  rounds: number
  /** of one measurement of calls */
  seconds: number
  /** how much longer the measurements of the first round take, which do not count */
  warmUpFactor: number
  /** of calls before each measurement, which do not count; wrk takes whole seconds only */
  warmUpSeconds: number
  calls: { key: string; connections: number; query?: string }[]
  /** streams opened one after the other in each round */
  openings: number
  eventStreams: number
  /** how many streams are held at once, in rising order */
  counts: number[]
  watchSeconds: number
  /** calls before, so that code is compiled and pools have grown */
  warmUp: number
}

// a proxied stream takes two of the files a process may have open
const mostStreams = Math.min(10_000, Math.floor((openFilesLimit() - 1_500) / 2_000) * 1_000)

const fullPlan = (rounds: number): Plan => ({
  programs: ['wrk', 'nginx', 'haproxy', 'npm'],
  load: 'wrk',
  targets: ['direct', 'sdp-mcp', 'configurable-http-proxy', 'nginx', 'haproxy', 'bare node', 'supergateway'],
  rounds,
  // a window begins with new connections: in one second their first calls are most of the slowest hundredth
  seconds: 3,
  warmUpFactor: 2,
  warmUpSeconds: 1,
  calls: [
    { key: '1', connections: 1 },
    { key: '16', connections: 16 },
    { key: '64', connections: 64 },
    { key: '16 events', connections: 16, query: '?as=events' },
  ],
  openings: 200,
  eventStreams: 500,
  counts: [2_000, mostStreams],
  watchSeconds: 10,
  warmUp: 5_000,
})

const shortPlan: Plan = {
  programs: ['wrk', 'npm'],
  load: 'wrk',
  targets: ['direct', 'sdp-mcp', 'configurable-http-proxy', 'bare node'],
  rounds: 2,
  seconds: 1,
  warmUpFactor: 2,
  warmUpSeconds: 1,
  calls: [
    { key: '1', connections: 1 },
    { key: '16', connections: 16 },
    { key: '64', connections: 64 },
  ],
  openings: 60,
  eventStreams: 100,
  counts: [1_000],
  watchSeconds: 2,
  warmUp: 5_000,
}

const heldPlan: Plan = { ...fullPlan(0), calls: [] }

const smokePlan: Plan = {
  programs: [],
  targets: ['direct', 'sdp-mcp', 'bare node'],
  load: 'node',
  rounds: 1,
  seconds: 0.5,
  warmUpFactor: 1,
  warmUpSeconds: 0.1,
  calls: [
    { key: '1', connections: 1 },
    { key: '16', connections: 16 },
  ],
  openings: 10,
  eventStreams: 20,
  counts: [100],
  watchSeconds: 0.2,
  warmUp: 200,
}
