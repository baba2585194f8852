import { inspect } from 'node:util'
import { expect, test } from 'vitest'
import { AppError } from './errors.ts'
import { createLog } from './log.ts'
import { testConfig, testSecrets } from './testing/config.ts'
import { recordingLog } from './testing/log.ts'

const secret = 'secret-Wd39'
const lines = (text: string) =>
  text
    .split('\n')
    .filter(Boolean)
    .map(line => JSON.parse(line))

test('a line has a time, a level by name, the event and its fields', () => {
  const { log, text } = recordingLog()
  log.info({ username: 'alice' }, 'fleet.instance.ready')
  expect(lines(text())).toEqual([
    { level: 'info', time: expect.stringMatching(/^\d{4}-.*Z$/), username: 'alice', msg: 'fleet.instance.ready' },
  ])
})

test('what is named like a secret is not written, down to the third level', () => {
  const { log, text } = recordingLog()
  const named = {
    authorization: secret,
    password: secret,
    secret,
    token: secret,
    key: secret,
    apiKey: secret,
    clientSecret: secret,
    grantCode: secret,
    refreshToken: secret,
    accessToken: secret,
    dataKey: secret,
    boot: { dataKey: secret },
  }
  log.info({ ...named, one: named, two: { one: named }, headers: { 'x-api-key': secret, cookie: secret } }, 'event')
  expect(text()).not.toContain(secret)
  expect(lines(text())[0]).toMatchObject({ password: '[redacted]', one: { token: '[redacted]' } })
})

test('secrets of the configuration stay hidden wherever they are logged', () => {
  const { log, text } = recordingLog()
  const config = testConfig()
  log.info({ config, list: [config.admin.token], text: `${config.database.password}`, shown: inspect(config) }, 'event')
  for (const value of Object.values(testSecrets)) expect(text()).not.toContain(value)
})

test('an error is written with its code and all of its causes, without its other properties', () => {
  const { log, text } = recordingLog()
  const deepest = Object.assign(new Error('connect refused'), { code: 'ECONNREFUSED', config: { pass: secret } })
  const cause = Object.assign(new Error('query failed', { cause: deepest }), { detail: secret, query: secret })
  log.error({ error: new AppError('internal', 'Something went wrong here.', { cause }) }, 'event')
  expect(text()).not.toContain(secret)
  expect(lines(text())[0].error).toMatchObject({
    name: 'AppError',
    code: 'internal',
    message: 'Something went wrong here.',
    stack: expect.stringContaining('log.test.ts'),
    cause: { message: 'query failed', cause: { message: 'connect refused', code: 'ECONNREFUSED' } },
  })
})

test('whatever a text contains, it makes one line', () => {
  const { log, text } = recordingLog()
  log.warn({ username: 'a\r\n{"level":"fatal"}', error: 'b\nc' }, 'd\u2028e\n{"level":"fatal"}')
  expect(text().split('\n').filter(Boolean)).toHaveLength(1)
  expect(lines(text())[0]).toMatchObject({ level: 'warn' })
})

test('lines below the level are not written', () => {
  const written: string[] = []
  const log = createLog('warn', { write: (line: string) => void written.push(line) })
  log.info('quiet')
  log.warn('loud')
  expect(written).toHaveLength(1)
})
