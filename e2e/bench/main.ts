import { instance } from './instance/instance.ts'
import { provision } from './provision.ts'
import { proxy, type Size } from './proxy/proxy.ts'
import { scale } from './scale.ts'
import { toolpath } from './toolpath.ts'
import { tools } from './tools.ts'
import { workers } from './workers.ts'

/**
 * `npm run bench [name] [-- rounds | held | short | smoke]`: measures, prints ratios, writes e2e/bench/results/<name>.{json,md}. Compares
 * side by side in one run, because machines are noisy. Not a test: nothing is asserted.
 */

type Options = { rounds?: number; size: Size; short: boolean }

const benchmarks: Record<string, (options: Options) => Promise<void>> = {
  provision: ({ rounds, short }) => provision({ rounds: rounds ?? (short ? 3 : 11) }),
  // its number is that of users
  scale: ({ rounds, short }) => scale({ users: rounds ?? (short ? 10 : 100) }),
  proxy: ({ rounds, size }) => proxy({ rounds: rounds ?? 5, size }),
  workers: ({ rounds, short }) => workers({ rounds: rounds ?? (short ? 2 : 7), seconds: short ? 1 : 3 }),
  instance: ({ rounds, short }) => instance({ rounds: rounds ?? (short ? 1 : 5), short }),
  toolpath: ({ rounds, short }) => toolpath({ rounds: rounds ?? (short ? 2 : 6), short }),
  tools: () => tools(),
}

const [name, wanted = 'full'] = process.argv.slice(2)
const size = (['full', 'held', 'short', 'smoke'] as const).find(one => one === wanted) ?? 'full'
const rounds = wanted === size ? undefined : Number(wanted)
if (rounds !== undefined && !(Number.isInteger(rounds) && rounds > 0))
  stop(`"${wanted}" is neither a number of rounds nor "held", "short" or "smoke".`)
const chosen = name ? { [name]: benchmarks[name] } : benchmarks
for (const [title, work] of Object.entries(chosen)) {
  if (!work) stop(`there is no benchmark "${title}". Choose from: ${Object.keys(benchmarks).join(', ')}`)
  process.stdout.write(`== ${title}\n`)
  await work({ ...(rounds === undefined ? {} : { rounds }), size, short: size !== 'full' }).catch((error: Error) =>
    stop(error.message),
  )
}

function stop(reason: string): never {
  process.stderr.write(`bench: ${reason}\n`)
  process.exit(1)
}
