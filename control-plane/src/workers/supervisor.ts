import cluster, { type Worker } from 'node:cluster'
import type { Logger } from '../log.ts'
import { isMessage, type Message } from './siblings.ts'

/**
 * The primary of a control plane of several workers. It serves nothing itself: it accepts connections and hands them to the
 * workers in turn, starts a worker again that ended, and carries what workers ask each other.
 *
 * A worker: starting -> listening -> ended -> (pause) -> starting ... The first one starts alone, so that what is wrong with
 * the configuration is told once, and by the worker's own exit code.
 */
export type SupervisorOptions = {
  count: number
  log: Logger
  /** all workers listen */
  onListening: () => void
  /** exit code when workers end as soon as they start, and have none of their own */
  giveUpCode: number
  /** before a worker is started again; four times as long each time it ends again soon */
  firstPauseMs?: number
}

const answerTimeoutMs = 2_000
/** somewhat longer than a worker takes to end in order */
const endTimeoutMs = 27_000
const longestPauseMs = 30_000
/** a worker that listened for this long ended for another reason than its start */
const settledAfterMs = 60_000
const mostFailures = 5

type Place = {
  readonly number: number
  worker: Worker | undefined
  listening: boolean
  startedAt: number
  /** ends in a row, none of them after a long life */
  failures: number
  timer: NodeJS.Timeout | undefined
}

type Question = {
  asker: Place
  id: number
  open: Set<Place>
  answers: unknown[]
  errors: string[]
  timer: NodeJS.Timeout
}

/** Runs until the process ends; SIGTERM, SIGINT and a parent that goes away end all workers in order. */
export function supervise({
  count,
  log,
  onListening,
  giveUpCode,
  firstPauseMs = 200,
}: SupervisorOptions): Promise<never> {
  const places = Array.from(
    { length: count },
    (_, index): Place => ({
      number: index + 1,
      worker: undefined,
      listening: false,
      startedAt: 0,
      failures: 0,
      timer: undefined,
    }),
  )
  const questions = new Map<number, Question>()
  let lastQuestion = 0
  let up = false
  let ending = false
  let exitCode = 0
  const args = process.argv.slice(2)

  function start(place: Place): void {
    // an argument and not a variable of the environment: a list of processes shows it
    cluster.setupPrimary({ args: [...args, '--worker', String(place.number)] })
    const worker = cluster.fork()
    place.worker = worker
    place.listening = false
    place.startedAt = performance.now()
    worker.on('message', message => {
      if (message === 'listening') listening(place)
      else if (isMessage(message)) carry(place, message)
    })
    // a channel that breaks is followed by the end of the worker, which is what counts
    worker.on('error', error => log.warn({ error, worker: place.number }, 'worker.channel.failed'))
    worker.once('exit', (code, signal) => ended(place, code, signal))
  }

  function listening(place: Place): void {
    place.listening = true
    log.info({ worker: place.number, pid: place.worker?.process.pid }, 'worker.listening')
    if (!up && place === places[0]) for (const other of places.slice(1)) start(other)
    if (!up && places.every(other => other.listening)) {
      up = true
      onListening()
    }
  }

  function ended(place: Place, code: number | null, signal: string | null): void {
    const { listening: listened, number } = place
    place.worker = undefined
    place.listening = false
    for (const [key, question] of questions)
      if (question.asker === place) drop(key, question)
      else if (question.open.delete(place)) settle(key, question)
    for (const other of places) if (other.listening) send(other, { sdp: 'ended', number })
    if (ending) {
      // one that had just begun knows nothing of ending in order yet
      exitCode ||= code ?? (signal === 'SIGTERM' ? 0 : giveUpCode)
      if (places.every(other => !other.worker)) process.exit(exitCode)
      return
    }
    if (!up && !listened) {
      log.fatal({ worker: number, code, signal }, 'control-plane.failed')
      end('a worker could not be started', code || giveUpCode)
      return
    }
    place.failures = listened && performance.now() - place.startedAt > settledAfterMs ? 1 : place.failures + 1
    if (places.every(other => !other.listening) && place.failures >= mostFailures) {
      log.fatal({ worker: number, code, signal }, 'control-plane.failed')
      process.stderr.write(
        `sdp-mcp: no worker runs any more, and ${mostFailures} starts in a row have failed. The reason is in the log above.\n`,
      )
      end('no worker can be started', code || giveUpCode)
      return
    }
    const pauseMs = Math.min(longestPauseMs, firstPauseMs * 4 ** (place.failures - 1))
    log.error({ worker: number, code, signal, againInMs: pauseMs }, 'worker.ended')
    place.timer = setTimeout(() => start(place), pauseMs)
  }

  function carry(from: Place, message: Message): void {
    if (message.sdp === 'answer') {
      const question = questions.get(message.id)
      if (!question?.open.delete(from)) return
      if (message.error === undefined) question.answers.push(message.answer)
      else question.errors.push(message.error)
      settle(message.id, question)
      return
    }
    if (message.sdp !== 'ask' && message.sdp !== 'tell') return
    const { question, detail } = message
    const others = places.filter(place => place !== from && place.listening)
    if (message.sdp === 'tell') {
      for (const other of others) send(other, { sdp: 'asked', id: null, by: from.number, question, detail })
      return
    }
    const key = ++lastQuestion
    const asked: Question = {
      asker: from,
      id: message.id,
      open: new Set(others),
      answers: [],
      errors: [],
      timer: setTimeout(() => {
        log.warn({ question, silent: [...asked.open].map(({ number }) => number) }, 'worker.question.unanswered')
        asked.open.clear()
        settle(key, asked)
      }, answerTimeoutMs),
    }
    questions.set(key, asked)
    for (const other of others) send(other, { sdp: 'asked', id: key, by: from.number, question, detail })
    settle(key, asked)
  }

  function settle(key: number, question: Question): void {
    if (question.open.size > 0) return
    drop(key, question)
    const { id, answers, errors } = question
    send(question.asker, { sdp: 'answers', id, answers, errors })
  }

  function drop(key: number, question: Question): void {
    clearTimeout(question.timer)
    questions.delete(key)
  }

  function send(to: Place, message: Message): void {
    if (to.worker?.isConnected()) to.worker.send(message)
  }

  function end(why: string, code = 0): void {
    if (ending) return
    ending = true
    exitCode = code
    log.info({ why }, 'control-plane.ending')
    for (const place of places) {
      clearTimeout(place.timer)
      place.worker?.process.kill('SIGTERM')
    }
    if (places.every(place => !place.worker)) process.exit(exitCode)
    setTimeout(() => {
      for (const place of places) place.worker?.process.kill('SIGKILL')
    }, endTimeoutMs)
  }

  for (const event of ['SIGTERM', 'SIGINT', 'disconnect'] as const) process.once(event, () => end(event))
  start(places[0]!)
  return new Promise(() => {})
}
