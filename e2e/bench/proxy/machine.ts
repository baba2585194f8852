import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { availableParallelism, homedir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

/** What the benchmark asks of the operating system: programs, cores, CPU time, memory. Linux only. */

const cores = availableParallelism()
/** With two cores or more, proxies have one for themselves, and load and instances share another. */
export const proxyCore = 0
export const loadCore = cores > 1 ? 1 : 0

/** Binds a process, and what it starts later, to one core. */
export function pin(pid: number, core: number): void {
  execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', String(core), String(pid)], { stdio: 'ignore' })
}

/** @throws Error that names what is missing and how to get it */
export function needPrograms(names: string[]): void {
  const folders = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin']
  const missing = names.filter(name => !folders.some(folder => folder && existsSync(join(folder, name))))
  if (missing.length === 0) return
  const hint = process.getuid?.() === 0 ? 'apt-get install' : 'sudo apt-get install'
  throw new Error(
    `This benchmark compares with other programs, and these are missing: ${missing.join(', ')}. On Debian: ${hint} ${missing.map(name => debianPackages[name] ?? name).join(' ')}`,
  )
}
const debianPackages: Record<string, string> = { nginx: 'nginx-light', taskset: 'util-linux' }

const compared = {
  'configurable-http-proxy': '5.3.0',
  supergateway: '4.0.0',
}

/**
 * Installs the npm packages that we compare and test with beside the project, once.
 * @returns the folder that holds their `node_modules`
 */
export function installCompared(): string {
  const folder = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'sdp-mcp-bench')
  const wanted = JSON.stringify({ private: true, dependencies: compared }, null, 2)
  const manifest = join(folder, 'package.json')
  if (existsSync(join(folder, 'complete')) && readFileSync(join(folder, 'complete'), 'utf8') === wanted) return folder
  process.stdout.write(`installing ${Object.keys(compared).join(', ')} into ${folder} ...\n`)
  mkdirSync(folder, { recursive: true })
  writeFileSync(manifest, wanted)
  try {
    execFileSync('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error'], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'pipe'],
    })
  } catch (error) {
    throw new Error(
      `npm could not install what we compare and test with. Is there a way to its registry?\n${(error as { stderr?: Buffer }).stderr}`,
    )
  }
  writeFileSync(join(folder, 'complete'), wanted)
  return folder
}

/** CPU time that all threads of these processes have used, in microseconds. The scheduler counts it, so other load does not. */
export function cpuMicros(pids: number[]): number {
  let nanos = 0
  for (const pid of pids)
    for (const task of readdirSync(`/proc/${pid}/task`))
      try {
        nanos += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0])
      } catch {
        // the thread has just ended
      }
  return nanos / 1000
}

/** Time that the host of a virtual machine took of each of these cores since it started, in milliseconds (proc(5), "steal"). */
function stolenMs(of: number[]): number[] {
  const lines = readFileSync('/proc/stat', 'utf8').split('\n')
  // the kernel counts hundredths of a second
  return of.map(core => Number(lines.find(line => line.startsWith(`cpu${core} `))?.split(' ')[8] ?? 0) * 10)
}

/**
 * Measures again, a few times, while the host takes time of the cores that are measured on: a proxy that does not run cannot
 * answer, and the slowest hundredth of the answers is then the host's.
 * @returns what was found when it took least, and how often it was measured
 */
export async function calmly<T>(work: () => Promise<T>): Promise<{ found: T; stolenShare: number; times: number }> {
  let best: { found: T; stolenShare: number } | undefined
  for (let times = 1; ; times++) {
    const [before, startedAt] = [stolenMs([proxyCore, loadCore]), performance.now()]
    const found = await work()
    const took = performance.now() - startedAt
    const stolen = stolenMs([proxyCore, loadCore]).map((ms, index) => ms - before[index]!)
    const stolenShare = Math.max(...stolen) / took
    if (!best || stolenShare < best.stolenShare) best = { found, stolenShare }
    if (best.stolenShare <= calmShare || times === mostTimes) return { ...best, times }
  }
}
/** of a core, taken by the host: more is not calm */
export const calmShare = 0.02
const mostTimes = 4

/** Resident memory of these processes in KB. */
export function residentKb(pids: number[]): number {
  let sum = 0
  for (const pid of pids) sum += Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0)
  return sum
}

/** How many files a process may hold open; a proxied stream takes two. */
export function openFilesLimit(): number {
  return Number(/Max open files\s+(\d+)/.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? 1024)
}

/**
 * On a machine that others measure on, too, SDP_BENCH_LOCK names a file: who holds its lock (flock) has the machine. A turn
 * is given back between two measurements, once it has lasted for some minutes.
 */
export function turns(): { take(): Promise<void>; mayGiveBack(): void; giveBack(): void } {
  const { SDP_BENCH_LOCK: file } = process.env
  let holder: ChildProcess | undefined
  let since = 0
  const giveBack = () => {
    holder?.stdin?.end()
    holder = undefined
  }
  return {
    async take() {
      if (!file || holder) return
      // it ends with its input, and so with us
      holder = spawn('flock', [file, 'sh', '-c', 'echo mine; cat'], { stdio: ['pipe', 'pipe', 'inherit'] })
      await new Promise(done => holder!.stdout!.once('data', done))
      since = performance.now()
    },
    mayGiveBack() {
      if (performance.now() - since > longTurnMs) giveBack()
    },
    giveBack,
  }
}
const longTurnMs = 200_000

export function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number)
}

export type Program = { pid: number; output(): string; stop(signal?: NodeJS.Signals): Promise<void> }

/** Starts a program on one core. Its output is kept for the case that it fails. */
export function start(
  command: string,
  args: string[],
  { core = proxyCore, environment = {} }: { core?: number; environment?: Record<string, string> } = {},
): Program {
  const path = `${process.env.PATH}:/usr/sbin:/sbin`
  const child: ChildProcess = spawn('taskset', ['--cpu-list', String(core), command, ...args], {
    env: { PATH: path, HOME: process.env.HOME ?? '/', ...environment },
    // a program may take the end of its input for its own
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let output = ''
  const keep = (chunk: Buffer) => {
    output = (output + chunk).slice(-4_000)
  }
  child.stdout?.on('data', keep)
  child.stderr?.on('data', keep)
  const ended = new Promise<void>(done => child.once('close', () => done()))
  programs.add(child)
  void ended.then(() => programs.delete(child))
  return {
    pid: child.pid as number,
    output: () => output,
    async stop(signal = 'SIGTERM') {
      child.kill(signal)
      const patience = setTimeout(() => child.kill('SIGKILL'), 10_000)
      await ended
      clearTimeout(patience)
    },
  }
}
const programs = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of programs) child.kill('SIGKILL')
})

/** Waits until something listens there. */
export async function listening(port: number, program: Program, what: string): Promise<void> {
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; await delay(20)) if (await answers(port)) return
  throw new Error(`${what} did not listen on port ${port} within 60 s:\n${program.output()}`)
}

function answers(port: number): Promise<boolean> {
  return new Promise(done => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => done(true)).once('error', () => done(false))
    socket.once('connect', () => socket.destroy())
  })
}
