import { type SpawnOptions, spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { type EngineInUse, prepareEngine } from './support/engine.ts'

/**
 * `npm test`: everything that must hold, in the order in which failures are cheapest: formatting and lint, types, unit and
 * integration tests (real PostgreSQL), then the black box on a real Docker Engine. Ends with `N passed, N failed, N skipped`.
 *
 *   npm test -- --only static|unit|e2e     one stage
 *   npm test -- <vitest filter>            only test files whose path contains it
 *   SKIP_DOCKER=1 npm test                 without the tests that need Docker; they count as skipped
 */

const root = dirname(import.meta.dirname)
const bin = (name: string) => join(root, 'node_modules', '.bin', name)
const args = process.argv.slice(2)
const only = args.includes('--only') ? args[args.indexOf('--only') + 1] : undefined
const filters = args.filter((argument, index) => argument !== '--only' && args[index - 1] !== '--only')
const skipDocker = process.env.SKIP_DOCKER === '1'

const total = { passed: 0, failed: 0, skipped: 0 }
const scratch = await mkdtemp(join(tmpdir(), 'sdp-mcp-tests-'))
let engine: EngineInUse | undefined
const started = Date.now()

try {
  if (runs('static') && filters.length === 0) {
    await check('formatting and lint', bin('biome'), [
      'ci',
      process.stdout.isTTY ? '--colors=force' : '--colors=off',
      '.',
    ])
    await check('types', bin('tsc'), ['--noEmit', '-p', '.'])
  }
  if (runs('unit')) await vitest('unit and integration tests', 'vitest.config.ts')
  if (runs('e2e')) {
    if (skipDocker) {
      title('end to end: skipped, because SKIP_DOCKER=1')
      total.skipped += 1
    } else {
      title('Docker engine and images')
      engine = await prepareEngine(scratch)
      await run(join(root, 'docker/images.sh'), ['instance', 'control-plane', 'simulator'], { env: environment() })
      await vitest('end to end on a real Docker engine', 'e2e/vitest.config.ts')
    }
  }
} catch (error) {
  process.stderr.write(`\n${error instanceof Error ? error.message : String(error)}\n`)
  total.failed += 1
} finally {
  await engine?.stop()
  await rm(scratch, { recursive: true, force: true })
}

process.stdout.write(`\nin ${Math.round((Date.now() - started) / 1000)} s\n`)
process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`)
process.exit(total.failed > 0 || total.passed === 0 ? 1 : 0)

function runs(stage: string): boolean {
  return only === undefined || only === stage
}

function title(text: string): void {
  process.stdout.write(`\n== ${text} (${Math.round((Date.now() - started) / 1000)} s)\n`)
}

function environment(): NodeJS.ProcessEnv {
  // a log that nobody watches in a terminal is read as plain text
  const plain = process.stdout.isTTY ? {} : { NO_COLOR: '1' }
  return { ...process.env, ...plain, ...(engine ? { DOCKER_HOST: engine.host } : {}) }
}

async function check(name: string, command: string, commandArgs: string[]): Promise<void> {
  title(name)
  const ok = await run(command, commandArgs, { env: environment() }).then(
    () => true,
    () => false,
  )
  total[ok ? 'passed' : 'failed'] += 1
}

async function vitest(name: string, config: string): Promise<void> {
  title(name)
  const report = join(scratch, `${config.replaceAll('/', '-')}.json`)
  const failure = await run(
    bin('vitest'),
    [
      'run',
      '--config',
      config,
      '--passWithNoTests',
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${report}`,
      ...filters,
    ],
    { env: environment() },
  ).then(
    () => undefined,
    (error: Error) => error,
  )
  const counts = JSON.parse(await readFile(report, 'utf8').catch(() => '{}')) as Record<string, number>
  const failed = counts.numFailedTests ?? 0
  total.passed += counts.numPassedTests ?? 0
  // a file that cannot even be loaded, or an error outside any test, fails the run without a failed test
  total.failed += failure && failed === 0 ? 1 : failed
  total.skipped += (counts.numPendingTests ?? 0) + (counts.numTodoTests ?? 0)
}

function run(command: string, commandArgs: string[], options: SpawnOptions = {}): Promise<void> {
  return new Promise((done, failed) => {
    const child = spawn(command, commandArgs, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'], ...options })
    child.on('error', failed)
    child.on('exit', code =>
      code === 0 ? done() : failed(new Error(`${command} ${commandArgs.join(' ')} ended with code ${code}`)),
    )
  })
}
