import { provision } from './provision.ts'

/**
 * `npm run bench [name] [-- rounds]`: measures, prints ratios, writes e2e/bench/results/<name>.{json,md}. Compares side by
 * side in one run, because machines are noisy. Not a test: nothing is asserted.
 */

const benchmarks: Record<string, (rounds: number) => Promise<void>> = { provision: rounds => provision({ rounds }) }

const [name, rounds] = process.argv.slice(2)
const chosen = name ? { [name]: benchmarks[name] } : benchmarks
for (const [title, work] of Object.entries(chosen)) {
  if (!work) {
    process.stderr.write(`there is no benchmark "${title}". Choose from: ${Object.keys(benchmarks).join(', ')}\n`)
    process.exit(1)
  }
  process.stdout.write(`== ${title}\n`)
  await work(rounds ? Number(rounds) : 11)
}
