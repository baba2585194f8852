import { randomUUID } from 'node:crypto'
import { createServer } from 'node:net'
import { freePort } from '@sdp-mcp/migrations/testing'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { type Runtime, RuntimeError } from '../runtime.ts'
import { answering, eventually, getJson, readAll, testSpec } from './support.ts'

export type RuntimeUnderTest = { runtime: Runtime; image: string; dispose(): Promise<void> }

/** What the fleet relies on, whatever starts the instances. */
export function describeRuntime(name: string, open: () => Promise<RuntimeUnderTest>): void {
  describe(`${name} as a runtime`, () => {
    let subject: RuntimeUnderTest
    let runtime: Runtime
    beforeAll(async () => {
      subject = await open()
      runtime = subject.runtime
    })
    afterEach(async () => {
      for (const { id } of await runtime.list()) await runtime.remove(id)
      expect(await runtime.list()).toEqual([])
    })
    afterAll(() => subject?.dispose())
    const spec = (part: Parameters<typeof testSpec>[1] = {}) => testSpec(subject.image, part)

    test('tells the version of what is behind it', async () => {
      expect((await runtime.ping()).version).toMatch(/\d+\.\d+/)
    })

    test('a started instance has its boot material and answers as the user and generation it was started for', async () => {
      const wanted = await spec({ generation: 7 })
      const started = await runtime.start(wanted)
      const { user } = wanted.boot
      expect(started).toMatchObject({ userId: user.id, generation: 7, image: subject.image, running: true, exit: null })
      await answering(started.address, user.id, 7)
      const boot = await getJson(started.address!, '/boot')
      expect(boot).toMatchObject({ dataKey: wanted.boot.dataKey, database: wanted.boot.database, user })
    })

    test('lists what runs, all of it or one user’s', async () => {
      const one = await runtime.start(await spec({ username: 'one' }))
      const two = await runtime.start(await spec({ username: 'two' }))
      const ids = async (userId?: string) => (await runtime.list(userId)).map(({ id }) => id).sort()
      expect(await ids()).toEqual([one.id, two.id].sort())
      expect(await ids(two.userId)).toEqual([two.id])
      expect(await ids(randomUUID())).toEqual([])
      expect((await runtime.list(one.userId))[0]).toMatchObject({
        running: true,
        address: one.address,
        generation: 1,
        image: subject.image,
        exit: null,
      })
    })

    test('starting what runs already changes nothing', async () => {
      const wanted = await spec()
      const first = await runtime.start(wanted)
      const again = await runtime.start(wanted)
      expect(again.id).toBe(first.id)
      expect(await runtime.list()).toHaveLength(1)
    })

    test('a stopped instance tells its exit, keeps its log, and can be started again', async () => {
      const wanted = await spec()
      const { user } = wanted.boot
      const first = await runtime.start(wanted)
      await answering(first.address, user.id, 1)
      await runtime.stop(first.id, 5)
      const [stopped] = await runtime.list()
      expect(stopped).toMatchObject({ running: false, address: null, exit: { code: 0, outOfMemory: false } })
      expect(await readAll(await runtime.logs(first.id, { tail: 50, follow: false, signal: never }))).toContain(
        `listening for ${user.username}`,
      )
      const second = await runtime.start(wanted)
      await answering(second.address, user.id, 1)
      expect((await runtime.list()).filter(({ running }) => running)).toHaveLength(1)
    })

    test('a new generation starts beside the old one, which stays as it is', async () => {
      const old = await runtime.start(await spec({ generation: 1 }))
      const next = await runtime.start(await spec({ userId: old.userId, generation: 2 }))
      await Promise.all([answering(old.address, old.userId, 1), answering(next.address, old.userId, 2)])
      await runtime.remove(old.id)
      await answering(next.address, old.userId, 2)
    })

    test('an instance that ignores the request to end is killed after the grace', async () => {
      const started = await runtime.start(await spec({ username: 'stubborn' }))
      await answering(started.address, started.userId, 1)
      const before = Date.now()
      await runtime.stop(started.id, 1)
      expect(Date.now() - before).toBeGreaterThan(900)
      expect((await runtime.list())[0]).toMatchObject({ running: false, exit: { code: 137 } })
    })

    test('stopping and removing can be repeated', async () => {
      const started = await runtime.start(await spec())
      await runtime.stop(started.id, 5)
      await runtime.stop(started.id, 5)
      await runtime.remove(started.id)
      await runtime.remove(started.id)
      await runtime.stop(started.id, 5)
      expect(await readAll(await runtime.logs(started.id, { tail: 5, follow: false, signal: never }))).toBe('')
    })

    test('an end of an instance is told at once, with its exit code', async () => {
      const told: (string | null)[] = []
      const abort = new AbortController()
      runtime.watch(userId => told.push(userId), abort.signal)
      const started = await runtime.start(await spec())
      await answering(started.address, started.userId, 1)
      await getJson(started.address!, '/exit?code=70')
      await eventually('told', () => told.includes(started.userId), 3_000)
      expect((await runtime.list())[0]).toMatchObject({ running: false, exit: { code: 70, outOfMemory: false } })
      abort.abort()
    })

    test('a followed log brings new lines until the reader leaves', async () => {
      const started = await runtime.start(await spec())
      await answering(started.address, started.userId, 1)
      const abort = new AbortController()
      const seen: string[] = []
      const reading = (async () => {
        for await (const chunk of await runtime.logs(started.id, { tail: 10, follow: true, signal: abort.signal }))
          seen.push(Buffer.from(chunk).toString())
      })()
      await eventually('the past', () => seen.join('').includes('listening for'))
      await getJson(started.address!, '/say?text=fresh+line')
      await eventually('the present', () => seen.join('').includes('fresh line\n'))
      abort.abort()
      await reading
    })

    test('a followed log ends with the instance', async () => {
      const started = await runtime.start(await spec())
      await answering(started.address, started.userId, 1)
      const reading = readAll(await runtime.logs(started.id, { tail: 10, follow: true, signal: never }))
      await runtime.stop(started.id, 5)
      expect(await reading).toContain('listening for')
    })

    test('a port held by another program is told as such, and nothing is left behind', async () => {
      const foreign = createServer().listen(await freePort(), '127.0.0.1')
      await new Promise(done => foreign.once('listening', done))
      const { port } = foreign.address() as { port: number }
      const failure = await runtime.start(await spec({ port })).catch(error => error)
      expect(failure).toBeInstanceOf(RuntimeError)
      expect(failure).toMatchObject({ kind: 'port-taken', message: expect.stringContaining(String(port)) })
      expect(await runtime.list()).toEqual([])
      foreign.close()
    })

    test('ten instances start at once', async () => {
      const specs = await Promise.all(Array.from({ length: 10 }, (_, index) => spec({ username: `user-${index}` })))
      const started = await Promise.all(specs.map(one => runtime.start(one)))
      await Promise.all(started.map(one => answering(one.address, one.userId, 1)))
      expect(await runtime.list()).toHaveLength(10)
    }, 60_000)

    test('tidying leaves what is in use alone', async () => {
      const started = await runtime.start(await spec())
      await runtime.tidy()
      await answering(started.address, started.userId, 1)
    })
  })
}

const never = new AbortController().signal
