import { EventEmitter, once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as delay, setImmediate as turn } from 'node:timers/promises'
import fastify from 'fastify'
import { expect, onTestFinished, test } from 'vitest'
import { listenManifold } from './acceptors.ts'
import type { App } from './server.ts'

/** says `request` for each request of /slow, which is answered when it hears `go on` */
function appOf(underWay = new EventEmitter()): App {
  const app = fastify({ forceCloseConnections: 'idle' }) as unknown as App
  app.get('/', async () => 'here')
  app.get('/slow', async () => {
    underWay.emit('request')
    await once(underWay, 'go on')
    return 'at last'
  })
  onTestFinished(() => app.close().then(() => {}))
  return app
}
const portOf = (app: App) => (app.server.address() as { port: number }).port
const host = '127.0.0.1'

test.runIf(process.platform === 'linux')('many clients that come at once are taken in within few turns', async () => {
  const app = appOf()
  await listenManifold(app, { host, port: 0 })
  const sockets: Socket[] = []
  onTestFinished(() => sockets.forEach(socket => void socket.destroy()))
  let turns = 0
  let accepted = 0
  app.server.on('connection', () => accepted++)
  for (let client = 0; client < 64; client++) sockets.push(connect(portOf(app), host))
  // all of them wait in the kernel before the first is taken in
  for (const until = performance.now() + 100; performance.now() < until; );
  while (accepted < 64 && turns < 500) {
    await turn()
    turns++
  }
  expect(accepted).toBe(64)
  // one listener takes 64
  expect(turns).toBeLessThan(40)
})

test('every client is answered, whichever listener took it in', async () => {
  const app = appOf()
  await listenManifold(app, { host, port: 0 })
  const answers = Array.from({ length: 64 }, () =>
    fetch(`http://${host}:${portOf(app)}/`).then(answer => answer.text()),
  )
  expect(new Set(await Promise.all(answers))).toEqual(new Set(['here']))
})

test('a second server on the port is refused, and finds it free when the first has closed', async () => {
  const [first, second, third] = [appOf(), appOf(), appOf()]
  await listenManifold(first, { host, port: 0 })
  const port = portOf(first)
  await expect(listenManifold(second, { host, port })).rejects.toMatchObject({ code: 'EADDRINUSE' })
  await first.close()
  await expect(once(connect(port, host), 'connect')).rejects.toMatchObject({ code: 'ECONNREFUSED' })
  await listenManifold(third, { host, port })
  expect(await (await fetch(`http://${host}:${port}/`)).text()).toBe('here')
})

test('closing waits for requests under way at each listener', async () => {
  const underWay = new EventEmitter().setMaxListeners(32)
  const app = appOf(underWay)
  await listenManifold(app, { host, port: 0 })
  const url = `http://${host}:${portOf(app)}/slow`
  // a connection that no listener has taken in yet is reset when they close, so all of them have to be
  const allUnderWay = new Promise<void>(done => {
    let requests = 0
    underWay.on('request', () => ++requests === 32 && done())
  })
  const answers = Array.from({ length: 32 }, () => fetch(url, { headers: { connection: 'close' } }).then(a => a.text()))
  await Promise.race([allUnderWay, Promise.all(answers)])
  let closed = false
  const closing = app.close().then(() => (closed = true))
  await delay(50)
  expect(closed).toBe(false)
  underWay.emit('go on')
  await closing
  expect(new Set(await Promise.all(answers))).toEqual(new Set(['at last']))
})
