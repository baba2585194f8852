import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePort } from '@sdp-mcp/migrations/testing'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { eventually } from '../fleet/testing/support.ts'

// Real processes; what they serve is a program made for these tests.

let folder: string
const running: ChildProcess[] = []
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-workers-'))
})
afterEach(async () => {
  for (const child of running.splice(0)) if (child.exitCode === null) child.kill('SIGKILL')
  await rm(folder, { recursive: true, force: true })
})

async function start(count: number) {
  const port = await freePort()
  const failing = join(folder, 'failing')
  const program = join(import.meta.dirname, '..', 'testing', 'workers-program.ts')
  const child = spawn(process.execPath, [program, String(port), String(count), failing], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env.PATH },
  })
  running.push(child)
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', chunk => {
      output += chunk
    })
  const exit = new Promise<number | null>(done => child.once('close', code => done(code)))
  /** One request on a connection of its own. */
  const open = (path: string) =>
    new Promise<IncomingMessage>((done, failed) => {
      const request = httpRequest({ port, host: '127.0.0.1', path, agent: false })
      request.once('response', done).once('error', failed)
      request.end()
    })
  const ask = async (path = '/') => {
    let text = ''
    for await (const chunk of await open(path)) text += chunk
    return JSON.parse(text) as {
      number: number
      pid: number
      answers: unknown
      notes: unknown[]
      ended: number[]
    }
  }
  /** Asks until the worker of that number was the one to answer. */
  const askWorker = (number: number, path = '/') =>
    eventually(
      `an answer of worker ${number}`,
      async () => {
        const answer = await ask(path)
        return answer.number === number && answer
      },
      15_000,
    )
  return { child, exit, output: () => output, open, ask, askWorker, failing }
}
type Program = Awaited<ReturnType<typeof start>>

const allListen = ({ output }: Program) =>
  eventually('all workers', () => output().includes('all listen'), 20_000).catch(error => {
    throw new Error(output(), { cause: error })
  })

test('connections are spread over all workers, and each can ask and tell all others', async () => {
  const program = await start(3)
  await allListen(program)
  const pids = new Map<number, number>()
  for (let count = 0; count < 12; count++) {
    const { number, pid } = await program.ask()
    pids.set(number, pid)
  }
  expect([...pids.keys()].sort()).toEqual([1, 2, 3])
  expect(new Set(pids.values()).size).toBe(3)

  const { answers, number } = await program.ask('/?ask=number')
  const others = [1, 2, 3].filter(other => other !== number)
  expect(answers).toHaveLength(2)
  expect(answers).toEqual(expect.arrayContaining(others.map(other => ({ number: other, detail: 'why', by: number }))))

  const teller = (await program.ask('/tell')).number
  for (const other of [1, 2, 3])
    await eventually('the note', async () => {
      const { notes } = await program.askWorker(other)
      return JSON.stringify(notes) === JSON.stringify(other === teller ? [] : [[teller, 'hello']])
    })
})

test('a failure of one is told to who asked, and one that is silent costs two seconds', async () => {
  const program = await start(2)
  await allListen(program)
  const { number, answers } = await program.ask('/?ask=failure')
  expect(answers).toBe(`worker ${3 - number} cannot`)
  const before = performance.now()
  expect((await program.ask('/?ask=silence')).answers).toEqual([])
  expect(performance.now() - before).toBeGreaterThan(1_900)
  expect(program.output()).toContain('worker.question.unanswered')
  expect((await program.ask('/?ask=number')).answers).toHaveLength(1)
})

test('a worker that is killed is replaced, and the streams of the others go on', async () => {
  const program = await start(2)
  await allListen(program)
  const streams = await Promise.all(Array.from({ length: 8 }, () => program.open('/stream')))
  const closed = new Set<IncomingMessage>()
  for (const stream of streams)
    stream
      .on('error', () => {})
      .on('close', () => closed.add(stream))
      .resume()
  const of = (number: number) => streams.filter(({ headers }) => headers.worker === String(number))
  expect(of(1).length).toBeGreaterThan(0)
  expect(of(2).length).toBeGreaterThan(0)

  const { pid } = await program.askWorker(2)
  process.kill(pid, 'SIGKILL')
  await eventually('the end of its streams', () => of(2).every(stream => closed.has(stream)))
  const replaced = await program.askWorker(2)
  expect(replaced.pid).not.toBe(pid)
  expect(of(1).some(stream => closed.has(stream))).toBe(false)
  expect((await program.askWorker(1)).ended).toEqual([2])
  expect(program.output()).toMatch(/"worker":2,"code":null,"signal":"SIGKILL".*worker\.ended/)
  // whoever comes is asked as before
  expect((await program.ask('/?ask=number')).answers).toHaveLength(1)
})

test('what keeps workers from starting is told once, with their exit code', async () => {
  await writeFile(join(folder, 'failing'), '')
  const program = await start(3)
  expect(await program.exit).toBe(69)
  expect(readFileSync(program.failing, 'utf8')).toBe('.')
  expect(program.output().match(/the reason why it cannot start/g)).toHaveLength(1)
})

test('when no worker can be started any more, it says so and ends', async () => {
  const program = await start(2)
  await allListen(program)
  await writeFile(program.failing, '')
  for (const number of [1, 2]) {
    const { pid } = await program.askWorker(number)
    process.kill(pid, 'SIGKILL')
  }
  expect(await program.exit).toBe(69)
  expect(program.output()).toContain('sdp-mcp: no worker runs any more, and 5 starts in a row have failed.')
  expect(readFileSync(program.failing, 'utf8').length).toBeLessThanOrEqual(10)
})

test('one worker that cannot be started again leaves the others at work', async () => {
  const program = await start(2)
  await allListen(program)
  await writeFile(program.failing, '')
  const { pid } = await program.askWorker(2)
  process.kill(pid, 'SIGKILL')
  await eventually('some tries', () => existsSync(program.failing) && readFileSync(program.failing).length >= 3, 20_000)
  for (let count = 0; count < 5; count++) expect((await program.ask()).number).toBe(1)
  await rm(program.failing)
  expect((await program.askWorker(2)).number).toBe(2)
})

test.each(['SIGTERM', 'SIGINT'] as const)(
  '%s ends all workers in order: what is under way is answered',
  async signal => {
    const program = await start(2)
    await allListen(program)
    const pids = [(await program.askWorker(1)).pid, (await program.askWorker(2)).pid]
    const slow = [1, 2, 3, 4].map(() => program.open('/slow').then(readText))
    await program.ask()
    program.child.kill(signal)
    expect(await Promise.all(slow)).toEqual(['done', 'done', 'done', 'done'])
    expect(await program.exit).toBe(0)
    for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow()
  },
)

test('workers end with a primary that is killed', async () => {
  const program = await start(2)
  await allListen(program)
  const pids = [(await program.askWorker(1)).pid, (await program.askWorker(2)).pid]
  program.child.kill('SIGKILL')
  await eventually('their end', () =>
    pids.every(pid => {
      try {
        process.kill(pid, 0)
        return false
      } catch {
        return true
      }
    }),
  )
})

async function readText(response: IncomingMessage): Promise<string> {
  let text = ''
  for await (const chunk of response) text += chunk
  return text
}
