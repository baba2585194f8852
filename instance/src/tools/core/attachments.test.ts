import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
let number: string
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  number = (await carol.ok('create_request', { subject: 'See the picture' })).number
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

/** one red pixel */
const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=='

it('a text goes up and comes back', async () => {
  const text = 'line 1\nline ü 2\n'
  const added = await carol.ok('add_attachment', { request_id: number, name: 'trace.log', content: text })
  expect(added).toMatchObject({ name: 'trace.log', bytes: Buffer.byteLength(text), attachment_id: expect.any(String) })
  const read = await carol.ok('get_attachment', { request_id: number, attachment_id: added.attachment_id })
  expect(read.text).toBe(`<untrusted>\n${text.trim()}\n</untrusted>`)
  const { attachments } = await carol.ok('get_request', { request_id: number })
  expect(attachments).toContainEqual(expect.objectContaining({ name: 'trace.log' }))
})

it('a picture is shown as a picture, whatever it calls itself', async () => {
  await carol.ok('add_attachment', { request_id: number, name: 'shot.png', content: png, encoding: 'base64' })
  await carol.ok('add_attachment', { request_id: number, name: 'shot.txt', content: png, encoding: 'base64' })
  for (const attachment_id of ['shot.png', 'shot.txt']) {
    const { content } = await carol.call('get_attachment', { request_id: number, attachment_id })
    expect(content).toContainEqual({ type: 'image', data: png, mimeType: 'image/png' })
  }
})

it('another file comes as a link', async () => {
  await carol.ok('add_attachment', {
    request_id: number,
    name: 'a.zip',
    content: Buffer.from('PK\u0003\u0004xx').toString('base64'),
    encoding: 'base64',
  })
  const { content } = await carol.call('get_attachment', { request_id: number, attachment_id: 'a.zip' })
  expect(content).toContainEqual(
    expect.objectContaining({ type: 'resource_link', name: 'a.zip', uri: expect.stringMatching(/^http/) }),
  )
})

it.each([
  [{ name: 'run.exe', content: 'x' }, 'run when opened'],
  [{ name: 'x.txt', content: '***', encoding: 'base64' }, 'not base64'],
  [{ name: '..', content: 'x' }, 'needs a name'],
])('refuses %o before sending', async (args, text) => {
  expect(await carol.fails('add_attachment', { request_id: number, ...args })).toContain(text)
  expect(carol.calls.at(-1)?.sdpCalls).toBe(0)
})

it('a file above the limit is refused by size, not read', async () => {
  await carol.ok('add_attachment', { request_id: number, name: 'big.txt', content: 'x'.repeat(5_000) })
  expect(
    await carol.fails('get_attachment', { request_id: number, attachment_id: 'big.txt', max_bytes: 1_000 }),
  ).toContain('max_bytes')
})

it('the limit of the site is told as the site tells it', async () => {
  desk.simulator.faults.set({ attachmentLimitBytes: 100 })
  expect(
    await carol.fails('add_attachment', { request_id: number, name: 'big.txt', content: 'x'.repeat(5_000) }),
  ).toMatch(/HTTP 400/)
})

it('an unknown attachment names those there are', async () => {
  expect(await carol.fails('get_attachment', { request_id: number, attachment_id: 'nothing.png' })).toContain(
    'shot.png',
  )
})
