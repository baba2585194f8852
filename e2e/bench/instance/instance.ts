import { randomBytes } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Docker from 'dockerode'
import { findEngine } from '../../../control-plane/evaluation/docker-engine.ts'
import { type Memory, startContainer, startProcess } from './running.ts'
import { commonJsFloor, floor, ours, prepareSubjects, type Subject, sample } from './subjects.ts'

/**
 * What an instance costs, which is paid once for each user: memory of the container while nobody works, memory of each
 * session, and time from the start to the first answer. Beside it, in the same rounds and on the same base image: a bare
 * HTTP server of ten lines, and the SDK's sample server.
 */

type Round = {
  containerStartMs: number
  processStartMs: number
  /** after the start and one `initialize`, which is how we know that it has started */
  started: Memory
  /** after `tools/list` and an open stream */
  listed: Memory
  /** with {@link sessions} more of them */
  crowded: Memory
}

const sessions = 50
/** One start takes from half to twice as long as the next, as the host gives time. */
const startsPerRound = 15
/** An instance gives memory back after 3 s of quiet, at most every 20 s; everybody gets the same time. */
const quietMs = { started: 5_000, listed: 25_000, crowded: 25_000 }

export async function instance({ rounds, short }: { rounds: number; short: boolean }): Promise<void> {
  const engine = await findEngine()
  if (!engine) throw new Error('No Docker engine answers. Start one, or set DOCKER_HOST.')
  const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
  const docker = new Docker({ socketPath: engine.socket })
  await using prepared = await prepareSubjects(image, `unix://${engine.socket}`)
  const { subjects } = prepared
  const samples: Record<string, Round[]> = Object.fromEntries(subjects.map(({ name }) => [name, []]))
  const wait = (ms: number) => delay(short ? Math.min(ms, 500) : ms)

  // the first round warms caches of the engine and of the kernel
  for (let round = 0; round <= rounds; round++) {
    // who comes first changes with each round
    const order = subjects.map((_, index) => subjects[(index + round) % subjects.length] as Subject)
    const measured = new Map<string, Round>()
    const running = []
    const starts = await processStarts(order, short ? 1 : startsPerRound)
    for (const subject of order) {
      const processStartMs = median(starts.get(subject) as number[])
      const container = await startContainer(docker, subject, `sdp-mcp-bench-${randomBytes(4).toString('hex')}`)
      running.push({ subject, processStartMs, container })
    }
    try {
      await wait(quietMs.started)
      const started = await Promise.all(running.map(({ container }) => container.memory()))
      await Promise.all(running.map(({ container }) => container.openSession()))
      await wait(quietMs.listed)
      const listed = await Promise.all(running.map(({ container }) => container.memory()))
      for (const { container } of running) for (let at = 0; at < sessions; at++) await container.openSession()
      await wait(quietMs.crowded)
      const crowded = await Promise.all(running.map(({ container }) => container.memory()))
      for (const [index, { subject, processStartMs, container }] of running.entries())
        measured.set(subject.name, {
          containerStartMs: container.startMs,
          processStartMs,
          started: started[index] as Memory,
          listed: listed[index] as Memory,
          crowded: crowded[index] as Memory,
        })
    } finally {
      for (const { container } of running) await container[Symbol.asyncDispose]()
    }
    if (round === 0) continue
    for (const [name, one] of measured) samples[name]?.push(one)
    process.stdout.write(
      `round ${round}/${rounds}: ${[...measured].map(([name, one]) => `${name} ${one.listed.container.toFixed(1)} MB, ${one.containerStartMs.toFixed(0)} ms`).join('; ')}\n`,
    )
  }

  const report = render(samples, rounds)
  process.stdout.write(`\n${report}\n`)
  const folder = join(import.meta.dirname, '..', 'results')
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'instance.json'), `${JSON.stringify({ rounds, sessions, samples }, null, 2)}\n`)
  await writeFile(join(folder, 'instance.md'), `${report}\n`)
}

function render(samples: Record<string, Round[]>, rounds: number): string {
  const of = (name: string, field: (round: Round) => number) => median((samples[name] ?? []).map(field))
  const ratio = (name: string, field: (round: Round) => number) => of(ours, field) / of(name, field)
  const perSession = (round: Round) => (round.crowded.container - round.listed.container) / sessions
  const fields: [string, (round: Round) => number, number][] = [
    ['container memory after start, MB', round => round.started.container, 1],
    ['after `tools/list`, MB', round => round.listed.container, 1],
    ['of it anonymous, MB', round => round.listed.anonymous, 1],
    [`each of ${sessions} sessions, MB`, perSession, 2],
    ['container start to `initialize`, ms', round => round.containerStartMs, 0],
    ['process start to `initialize`, ms', round => round.processStartMs, 0],
  ]
  const names = [ours, floor, commonJsFloor, sample]
  const targets: [string, number, string, boolean][] = [
    [
      'idle memory after the start, to the bare server',
      ratio(floor, fields[0]![1]),
      'at most 1.4',
      ratio(floor, fields[0]![1]) <= 1.4,
    ],
    [
      'idle memory after `tools/list`, to the bare server',
      ratio(floor, fields[1]![1]),
      'at most 1.4',
      ratio(floor, fields[1]![1]) <= 1.4,
    ],
    [`MB for each of ${sessions} sessions`, of(ours, perSession), 'below 1', of(ours, perSession) < 1],
    [
      'container start, to the bare server',
      ratio(floor, fields[4]![1]),
      'at most 1.5',
      ratio(floor, fields[4]![1]) <= 1.5,
    ],
    [
      'process start, to the bare server',
      ratio(floor, fields[5]![1]),
      'at most 1.5',
      ratio(floor, fields[5]![1]) <= 1.5,
    ],
  ]
  return [
    `Medians of ${rounds} interleaved rounds.`,
    '',
    '| What | Measured | Target | |',
    '|---|---:|---|---|',
    ...targets.map(
      ([what, value, target, met]) => `| ${what} | ${value.toFixed(2)} | ${target} | ${met ? 'met' : '**not met**'} |`,
    ),
    '',
    `| | ${names.join(' | ')} | to bare | to the sample |`,
    `|---|${names.map(() => '---:').join('|')}|---:|---:|`,
    ...fields.map(
      ([what, field, digits]) =>
        `| ${what} | ${names.map(name => of(name, field).toFixed(digits)).join(' | ')} | ${ratio(floor, field).toFixed(2)} | ${ratio(sample, field).toFixed(2)} |`,
    ),
  ].join('\n')
}

/** Starts all programs in turns, each so many times. @returns milliseconds of each */
async function processStarts(subjects: Subject[], times: number): Promise<Map<Subject, number[]>> {
  const found = new Map<Subject, number[]>(subjects.map(subject => [subject, []]))
  for (let time = 0; time < times; time++)
    for (const [index] of subjects.entries()) {
      const subject = subjects[(index + time) % subjects.length] as Subject
      found.get(subject)?.push(await startProcess(subject))
    }
  return found
}

function median(values: number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
}
