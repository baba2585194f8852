import cluster from 'node:cluster'
import { appendFileSync, existsSync } from 'node:fs'
import { createServer } from 'node:http'
import { createLog } from '../log.ts'
import { connectSiblings } from '../workers/siblings.ts'
import { supervise } from '../workers/supervisor.ts'

// A program of several workers, as main.ts is one: `workers-program.ts <port> <count> <file that makes starts fail>`.

const [port, count, failing] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]!]
const log = createLog('info')

if (cluster.isPrimary)
  await supervise({
    count,
    log,
    onListening: () => process.stdout.write('all listen\n'),
    giveUpCode: 70,
    firstPauseMs: 10,
  })

if (existsSync(failing)) {
  appendFileSync(failing, '.')
  process.stderr.write('the reason why it cannot start\n')
  process.exit(69)
}

const number = Number(process.argv[process.argv.indexOf('--worker') + 1])
const siblings = connectSiblings({ channel: process, count, log })
const notes: unknown[] = []
const ended: number[] = []
siblings.on('number', (detail: unknown, by: number) => ({ number, detail, by }))
siblings.on('silence', () => new Promise(() => {}))
siblings.on('failure', () => {
  throw new Error(`worker ${number} cannot`)
})
siblings.on('note', (detail: unknown, by: number) => notes.push([by, detail]))
siblings.onEnded(one => ended.push(one))

const server = createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url!, 'http://x')
  response.setHeader('worker', number)
  if (pathname === '/stream') return void response.writeHead(200).write('open')
  if (pathname === '/slow') return void setTimeout(() => response.end('done'), 500)
  if (pathname === '/die') process.kill(process.pid, 'SIGKILL')
  if (pathname === '/tell') siblings.tell('note', 'hello')
  const asked = searchParams.get('ask')
  const answers = asked ? await siblings.ask(asked, 'why').catch((error: Error) => error.message) : null
  response.end(JSON.stringify({ number, pid: process.pid, answers, notes, ended }))
})
server.listen(port, '127.0.0.1', () => process.send?.('listening'))
process.once('SIGTERM', () => {
  server.close(() => process.exit(0))
  setInterval(() => server.closeIdleConnections(), 20)
})
