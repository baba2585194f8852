import { instance } from './instance/instance.ts'
import { provision } from './provision.ts'
import { proxy } from './proxy/proxy.ts'
import { scale } from './scale.ts'
import { toolpath } from './toolpath.ts'
import { tools } from './tools.ts'
import { transparency } from './transparency/transparency.ts'

/**
 * `npm run bench [name] [-- rounds | short]`: measures, prints ratios, writes e2e/bench/results/<name>.{json,md}. Compares
 * side by side in one run, because machines are noisy. Not a test: nothing is asserted.
 */

const benchmarks: Record<string, (options: { rounds?: number; short: boolean }) => Promise<void>> = {
  provision: ({ rounds, short }) => provision({ rounds: rounds ?? (short ? 3 : 11) }),
  // its number is that of users
  scale: ({ rounds, short }) => scale({ users: rounds ?? (short ? 10 : 100) }),
  proxy: ({ rounds, short }) => proxy({ rounds: rounds ?? 5, short }),
  transparency,
  instance: ({ rounds, short }) => instance({ rounds: rounds ?? (short ? 1 : 5), short }),
  toolpath: ({ rounds, short }) => toolpath({ rounds: rounds ?? (short ? 2 : 6), short }),
  tools: () => tools(),
}

const [name, size] = process.argv.slice(2)
const rounds = size === undefined || size === 'short' ? undefined : Number(size)
if (rounds !== undefined && !(Number.isInteger(rounds) && rounds > 0))
  stop(`"${size}" is neither a number of rounds nor "short".`)
const chosen = name ? { [name]: benchmarks[name] } : benchmarks
for (const [title, work] of Object.entries(chosen)) {
  if (!work) stop(`there is no benchmark "${title}". Choose from: ${Object.keys(benchmarks).join(', ')}`)
  process.stdout.write(`== ${title}\n`)
  await work({ rounds, short: size === 'short' }).catch((error: Error) => stop(error.message))
}

function stop(reason: string): never {
  process.stderr.write(`bench: ${reason}\n`)
  process.exit(1)
}
