import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { startTemplateServer } from '@sdp-mcp/migrations/testing'
import { findEngine } from '../../control-plane/evaluation/docker-engine.ts'
import { startStack } from '../support/stack.ts'
import { plot } from './plot.ts'
import { type SoakReport, soak, tellingHeap } from './soak.ts'

/**
 * `npm run soak [minutes] [streams]`, default 30 and 500: streams and everything that happens to them, on real parts; needs what
 * `docker/images.sh` builds. Ends with code 1 when something unexpected went wrong, or something grew without end.
 */

const [minutes, streams] = [Number(process.argv[2] ?? 30), Number(process.argv[3] ?? 500)]
if (!(minutes > 0)) stop(`"${process.argv[2]}" is no number of minutes.`)
if (!(Number.isInteger(streams) && streams > 0)) stop(`"${process.argv[3]}" is no number of streams.`)
/** Below this a slope is printed, and means nothing. */
const meaningfulMinutes = 10

const engine = await findEngine()
if (!engine) stop('no Docker engine answers. Start one, or set DOCKER_HOST.')
const installation = process.env.SDP_TEST_INSTALLATION ?? 'soak'
const server = await startTemplateServer([engine.hostAddress])
const stack = await startStack({
  installation,
  on: { engine: { ...engine, host: `unix://${engine.socket}` }, postgres: server.connection },
  environment: { SDP_LOG_LEVEL: 'warn', SDP_IDLE_STOP_AFTER: '20s', NODE_OPTIONS: tellingHeap },
})
let report: SoakReport
try {
  report = await soak(stack, {
    durationMs: minutes * 60_000,
    streams,
    // an instance takes 100 sessions; half of them are left for who comes back
    users: Math.max(3, Math.ceil(streams / 50)),
    sampleMs: 5_000,
    disturbMs: 30_000,
    installation,
    socket: engine.socket,
    say: line => process.stdout.write(`${line}\n`),
  })
} finally {
  await stack[Symbol.asyncDispose]()
  await server.close()
}

const isLong = minutes >= meaningfulMinutes
const growing = isLong ? report.series.filter(({ trend }) => trend.exceeds) : []
const { calls, reconnects, rotations, restarts, wakes, expected, unexpected, descriptors } = report
const lines = [
  `${minutes} minutes, ${streams} streams: ${calls} calls, ${reconnects} reconnects, ${rotations} key rotations, ${restarts} restarts, ${wakes} wakes.`,
  `Unexpected errors: ${unexpected.length}. Expected ones, of users who were just disturbed: ${JSON.stringify(expected)}.`,
  `Descriptors of the control plane: ${descriptors.before} before, ${descriptors.after} after everybody had left.`,
  '',
  '| What | First | Last | Slope per hour | Standard error | Bound | |',
  '|---|---:|---:|---:|---:|---:|---|',
  ...report.series.map(({ name, unit, points, trend, bound }) => {
    const verdict = !Number.isFinite(bound)
      ? 'not judged'
      : !isLong
        ? `needs ${meaningfulMinutes} minutes`
        : trend.exceeds
          ? '**grows**'
          : 'flat'
    return `| ${name}, ${unit} | ${points[0]?.value.toFixed(1)} | ${points.at(-1)?.value.toFixed(1)} | ${trend.slope.toFixed(2)} | ${trend.error.toFixed(2)} | ${Number.isFinite(bound) ? bound : ''} | ${verdict} |`
  }),
]
process.stdout.write(`\n${lines.join('\n')}\n`)
const folder = join(import.meta.dirname, '..', 'bench', 'results')
await mkdir(folder, { recursive: true })
await writeFile(join(folder, 'soak.md'), `${lines.join('\n')}\n`)
await writeFile(join(folder, 'soak.json'), `${JSON.stringify({ minutes, ...report }, null, 2)}\n`)
await writeFile(join(folder, 'soak.svg'), plot(`npm run soak ${minutes} ${streams}`, report.series))
process.exit(unexpected.length > 0 || growing.length > 0 ? 1 : 0)

function stop(reason: string): never {
  process.stderr.write(`soak: ${reason}\n`)
  process.exit(1)
}
