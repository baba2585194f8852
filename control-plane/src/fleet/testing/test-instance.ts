import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'

// Stands in for an instance in tests of the runtimes: reads its boot line, answers /healthz as the contract says,
// and does on request what a test wants to see from inside. One file without imports of ours: it runs in a bare image.

// standard output is the log of an instance
const say = (line: string) => process.stdout.write(`${line}\n`)

type BootLine = { user: { id: string; username: string }; generation: number; listen: { host: string; port: number } }

const exits = { bootMissing: 64, portInUse: 66 }

async function readBoot(): Promise<BootLine> {
  for await (const line of createInterface({ input: process.stdin })) return JSON.parse(line) as BootLine
  say('no boot line')
  process.exit(exits.bootMissing)
}

const boot = await readBoot()
const { user, generation, listen } = boot
// a username that begins with one of these words asks for a kind of trouble
if (user.username.startsWith('crash')) {
  say('crashing as asked')
  process.exit(70)
}
if (user.username.startsWith('mute')) await delay(2 ** 31 - 1)
if (user.username.startsWith('slow')) await delay(1_500)

const hog: Buffer[] = []
const actions: Record<string, (query: URLSearchParams, request: IncomingMessage) => unknown> = {
  '/healthz': () => ({
    status: 'ok',
    audience: `instance:${user.id}:${generation}`,
    version: 'test',
    uptimeSeconds: process.uptime(),
    sessions: 0,
  }),
  '/boot': () => boot,
  '/environment': () => ({ env: process.env, argv: process.argv, execArgv: process.execArgv }),
  '/say': query => say(query.get('text') ?? ''),
  '/exit': query => {
    setTimeout(() => process.exit(Number(query.get('code'))), 20)
  },
  '/status': () => readFile('/proc/self/status', 'utf8'),
  '/write': query => attempt(() => writeFile(query.get('path') ?? '', 'x')),
  '/execute': () =>
    attempt(async () => {
      await writeFile('/tmp/program', '#!/bin/sh\necho ran\n', { mode: 0o755 })
      await run('/tmp/program')
    }),
  '/spawn': async query => {
    let started = 0
    const children = []
    for (let index = 0; index < Number(query.get('count')); index++) {
      const child = spawn('sleep', ['60'], { stdio: 'ignore' })
      child.on('error', () => {})
      if (child.pid === undefined) continue
      started++
      children.push(child)
    }
    for (const child of children) child.kill('SIGKILL')
    return { started }
  },
  '/connect': query =>
    attempt(
      () =>
        new Promise<void>((done, failed) => {
          const socket = connect({ host: query.get('host') ?? '', port: Number(query.get('port')), timeout: 1_500 })
          socket.once('connect', () => {
            socket.destroy()
            done()
          })
          socket.once('timeout', () => {
            socket.destroy()
            failed(new Error('timeout'))
          })
          socket.once('error', failed)
        }),
    ),
  '/hog': async () => {
    for (;;) {
      hog.push(Buffer.alloc(8 * 1024 * 1024, 1))
      await delay(1)
    }
  },
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url ?? '/', 'http://instance')
  const action = actions[url.pathname]
  const result = action ? await action(url.searchParams, request) : { error: 'unknown' }
  response.writeHead(action ? 200 : 404, { 'content-type': 'application/json' }).end(JSON.stringify(result ?? {}))
})
server.on('error', error => {
  say(String(error))
  process.exit((error as NodeJS.ErrnoException).code === 'EADDRINUSE' ? exits.portInUse : 70)
})
server.listen(listen.port, listen.host, () => say(`listening for ${user.username}`))
// "stubborn" ignores the polite request, as a hung instance does
if (!user.username.startsWith('stubborn')) process.on('SIGTERM', () => process.exit(0))
else process.on('SIGTERM', () => {})

async function attempt(work: () => Promise<unknown>): Promise<{ worked: boolean; code?: string }> {
  try {
    await work()
    return { worked: true }
  } catch (error) {
    return { worked: false, code: (error as NodeJS.ErrnoException).code ?? String((error as Error).message) }
  }
}

function run(file: string): Promise<void> {
  return new Promise((done, failed) => {
    const child = spawn(file)
    child.once('error', failed)
    child.once('exit', code => (code === 0 ? done() : failed(new Error(`exit ${code}`))))
  })
}
