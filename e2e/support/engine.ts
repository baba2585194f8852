import { execFile, spawn } from 'node:child_process'
import { createWriteStream, existsSync } from 'node:fs'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Programs of the Chromium family that the browser tests can drive. */
export const browserPrograms = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']

export type EngineInUse = { host: string; stop(): Promise<void> }

/**
 * The Docker engine of the tests: one that answers already, or, as root on Debian or Ubuntu, a private one: installed from
 * the distribution when missing, with its own socket and data, ended afterwards.
 *
 * @throws Error that says what is missing
 */
export async function prepareEngine(scratch: string): Promise<EngineInUse> {
  await installTools()
  const host = process.env.DOCKER_HOST ?? 'unix:///var/run/docker.sock'
  if (await answers(host)) {
    process.stdout.write(`using the engine at ${host}\n`)
    return { host, stop: async () => {} }
  }
  if (!isRoot())
    throw new Error(
      `No Docker engine answers at ${host}. Start one, or run as root on Debian or Ubuntu so that one can be started, or skip these tests with SKIP_DOCKER=1.`,
    )
  return startPrivateEngine(scratch)
}

/**
 * What the tests call, from the distribution: the engine, the compose program, what makes base images without a registry,
 * and a browser.
 */
async function installTools(): Promise<void> {
  const has = (program: string) =>
    (process.env.PATH ?? '')
      .split(':')
      .concat('/usr/sbin', '/sbin')
      .some(folder => existsSync(join(folder, program)))
  const missing = [
    ...(has('docker') ? [] : ['docker.io']),
    ...(has('dockerd') || (await answers(process.env.DOCKER_HOST ?? 'unix:///var/run/docker.sock'))
      ? []
      : ['docker.io', 'iptables']),
    ...(has('docker-compose') || (await hasComposePlugin()) ? [] : ['docker-compose']),
    ...(has('mmdebstrap') ? [] : ['mmdebstrap']),
    ...(browserPrograms.some(has) ? [] : ['chromium']),
  ]
  const packages = [...new Set(missing)]
  if (packages.length === 0) return
  if (!isRoot() || !existsSync('/usr/bin/apt-get'))
    throw new Error(
      `These are missing and can only be installed as root on Debian or Ubuntu: ${packages.join(', ')}. Install them, or skip the tests that need Docker with SKIP_DOCKER=1.`,
    )
  process.stdout.write(`installing ${packages.join(', ')} ...\n`)
  const options = { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }, maxBuffer: 64 * 1024 * 1024 }
  await run('apt-get', ['update', '-qq'], options)
  // no service manager may start the packaged daemon: ours has its own socket and data
  await run(
    'apt-get',
    [
      'install',
      '-y',
      '-qq',
      '--no-install-recommends',
      ...packages,
      ...(packages.includes('docker.io') ? ['ca-certificates', 'iptables'] : []),
    ],
    options,
  )
}

async function startPrivateEngine(scratch: string): Promise<EngineInUse> {
  const folder = join(scratch, 'docker')
  await mkdir(folder, { recursive: true })
  const host = `unix://${join(folder, 'docker.sock')}`
  const logFile = join(folder, 'dockerd.log')
  const log = createWriteStream(logFile)
  process.stdout.write('starting a private Docker engine ...\n')
  const daemon = spawn(
    existsSync('/usr/sbin/dockerd') ? '/usr/sbin/dockerd' : 'dockerd',
    [
      '--host',
      host,
      '--data-root',
      join(folder, 'data'),
      '--exec-root',
      join(folder, 'exec'),
      '--pidfile',
      join(folder, 'docker.pid'),
    ],
    // a group of its own: an interrupted test run stops it in order, below
    { stdio: ['ignore', 'pipe', 'pipe'], detached: true },
  )
  daemon.stdout.pipe(log)
  daemon.stderr.pipe(log)
  const stop = async () => {
    if (daemon.exitCode === null && daemon.signalCode === null) {
      const gone = new Promise(resolve => daemon.once('exit', resolve))
      daemon.kill('SIGTERM')
      await Promise.race([gone, delay(30_000)])
    }
    await rm(folder, { recursive: true, force: true }).catch(() => {})
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => void stop().then(() => process.exit(130)))
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; await delay(200)) {
    if (await answers(host)) return { host, stop }
    if (daemon.exitCode !== null) break
  }
  const words = (await readFile(logFile, 'utf8')).split('\n').slice(-12).join('\n')
  await stop()
  throw new Error(
    `The private Docker engine did not start:\n${words}\nStart a Docker engine yourself and set DOCKER_HOST, or skip these tests with SKIP_DOCKER=1.`,
  )
}

function answers(host: string): Promise<boolean> {
  return run('docker', ['version', '--format', '{{.Server.Version}}'], {
    env: { ...process.env, DOCKER_HOST: host },
    timeout: 10_000,
  }).then(
    () => true,
    () => false,
  )
}

function hasComposePlugin(): Promise<boolean> {
  return run('docker', ['compose', 'version']).then(
    () => true,
    () => false,
  )
}

const isRoot = () => process.getuid?.() === 0
