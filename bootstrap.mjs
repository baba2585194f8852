#!/usr/bin/env node
// Runs one of our TypeScript programs on any machine that has Node 20 and npm: brings Node 24 and pnpm into
// .node/, installs the workspace, then hands over. Usage: node bootstrap.mjs <script.ts | pnpm> [arguments]
// Everything it says goes to standard error: standard output belongs to the program.
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const nodeVersion = '24.21.0'
const root = dirname(fileURLToPath(import.meta.url))
const home = join(root, '.node')
const pnpmVersion = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).packageManager.split('@')[1]

const [script, ...args] = process.argv.slice(2)
if (!script) stop('name the script to run, for example: node bootstrap.mjs control-plane/evaluation/start.ts')

const node = bringTools()
installWorkspace()
const command =
  script === 'pnpm' ? [join(home, 'node_modules', 'pnpm', 'bin', 'pnpm.cjs'), ...args] : [join(root, script), ...args]
// nothing but data may be written to a pipe that speaks MCP: experimental notes would go to standard error, still noise
const child = spawn(node, ['--disable-warning=ExperimentalWarning', ...command], {
  stdio: 'inherit',
  cwd: process.env.SDP_CALLER_CWD === '1' ? process.cwd() : root,
  env: { ...process.env, PATH: `${dirname(node)}:${join(home, 'node_modules', '.bin')}:${process.env.PATH}` },
})
// the child gets the terminal's signals itself; we stay to pass on how it ended
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'])
  process.on(signal, () => signal !== 'SIGINT' && child.kill(signal))
child.on('error', error => stop(`Node ${nodeVersion} could not be started: ${error.message}`))
child.on('exit', (code, signal) => {
  if (signal) {
    process.removeAllListeners(signal)
    process.kill(process.pid, signal)
  } else process.exit(code ?? 1)
})

/** Node 24 and pnpm, from npm packages that carry the programs themselves; returns the path of node. */
function bringTools() {
  const platform = `${process.platform === 'win32' ? 'win' : process.platform}-${process.arch}`
  const packageName = `node-${platform}`
  const ownNode = join(home, 'node_modules', packageName, 'bin', 'node')
  const have = (name, version) => {
    try {
      return JSON.parse(readFileSync(join(home, 'node_modules', name, 'package.json'), 'utf8')).version === version
    } catch {
      return false
    }
  }
  if (have(packageName, nodeVersion) && have('pnpm', pnpmVersion) && existsSync(ownNode)) return ownNode
  say(`bringing Node ${nodeVersion} and pnpm ${pnpmVersion} (once, about 60 MB) ...`)
  mkdirSync(home, { recursive: true })
  // a project of its own, so that npm neither looks at nor changes the workspace around it
  writeFileSync(join(home, 'package.json'), '{"private":true}\n')
  const result = spawnSync(
    'npm',
    [
      'install',
      '--prefix',
      home,
      '--no-save',
      '--no-package-lock',
      '--no-audit',
      '--no-fund',
      '--ignore-scripts',
      '--loglevel=error',
      `${packageName}@${nodeVersion}`,
      `pnpm@${pnpmVersion}`,
    ],
    { stdio: ['ignore', 2, 2], cwd: home },
  )
  if (result.status !== 0 || !existsSync(ownNode))
    stop(
      `npm could not bring ${packageName}@${nodeVersion}. Check that the npm registry is reachable; on a platform without such a package install Node 24 and pnpm yourself.`,
    )
  return ownNode
}

/** Installs dependencies when the lock file is not the one installed last; those of the end-to-end tests only for these. */
function installWorkspace() {
  const everything = script === 'pnpm' || script.startsWith('e2e/')
  const stamp = join(root, 'node_modules', '.sdp-mcp-installed')
  const hash = createHash('sha256')
  for (const file of ['pnpm-lock.yaml', 'pnpm-workspace.yaml', 'package.json'])
    hash.update(readFileSync(join(root, file)))
  const lock = hash.digest('hex')
  const installed = existsSync(stamp) ? readFileSync(stamp, 'utf8') : ''
  if (installed === `${lock} everything` || (!everything && installed === `${lock} product`)) return
  say('installing dependencies (once) ...')
  rmSync(stamp, { force: true })
  const started = Date.now()
  const options = [
    'install',
    '--frozen-lockfile',
    '--reporter=append-only',
    '--loglevel=warn',
    ...(everything ? [] : ['--filter=!@sdp-mcp/e2e']),
  ]
  const result = spawnSync(node, [join(home, 'node_modules', 'pnpm', 'bin', 'pnpm.cjs'), ...options], {
    stdio: ['ignore', 2, 2],
    cwd: root,
    env: { ...process.env, PATH: `${dirname(node)}:${process.env.PATH}`, CI: 'true' },
  })
  if (result.status !== 0)
    stop(
      'dependencies could not be installed; pnpm says why above. Check that the npm registry is reachable and run the command again.',
    )
  writeFileSync(stamp, `${lock} ${everything ? 'everything' : 'product'}`)
  say(`installed in ${Math.round((Date.now() - started) / 1000)} s`)
}

function say(text) {
  process.stderr.write(`sdp-mcp: ${text}\n`)
}

function stop(text) {
  say(text)
  process.exit(1)
}
