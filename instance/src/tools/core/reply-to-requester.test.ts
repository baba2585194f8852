import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
let number: string
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  number = (await carol.ok('create_request', { subject: 'Please answer', requester: 'Ana Ferreira' })).number
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

const mails = () =>
  desk.simulator.log.list().filter(({ method, path }) => method === 'POST' && path.endsWith('/notifications'))

it('only shows the mail unless told to send', async () => {
  const before = mails().length
  const shown = await carol.ok('reply_to_requester', { request_id: number, text: 'On it' })
  expect(shown).toMatchObject({
    sent: false,
    preview: {
      to: ['ana.ferreira@northwind.example'],
      subject: expect.stringMatching(/^Re: \[Request ID :##.+##\] : Please answer$/),
    },
  })
  expect(mails().length).toBe(before)
})

it('sends only with the token of a preview of the very same mail, once', async () => {
  const before = mails().length
  const ask = { request_id: number, text: 'On it', mode: 'send' }
  const { confirm_token, sent } = await carol.ok('reply_to_requester', ask)
  expect(sent).toBe(false)
  expect(await carol.fails('reply_to_requester', { ...ask, text: 'Something else', confirm_token })).toContain(
    'does not fit',
  )
  expect(await carol.fails('reply_to_requester', { ...ask, to: ['x@evil.example'], confirm_token })).toContain(
    'does not fit',
  )
  expect(await carol.fails('reply_to_requester', { ...ask, confirm_token: 'made-up' })).toContain('does not fit')
  expect(mails().length).toBe(before)
  const result = await carol.ok('reply_to_requester', { ...ask, confirm_token })
  expect(result).toMatchObject({
    sent: true,
    mail_id: expect.stringMatching(/^\d+$/),
    to: ['ana.ferreira@northwind.example'],
  })
  await carol.fails('reply_to_requester', { ...ask, confirm_token })
  expect(mails().length).toBe(before + 1)
  expect(mails().at(-1)?.input).toMatchObject({
    notification: { type: 'REQREPLY', is_public: true, in_reply_to: { id: expect.any(String) } },
  })
})

it('what is sent is what was shown, whatever became of the ticket since', async () => {
  const ticket = (await carol.ok('create_request', { subject: 'As shown', requester: 'Ana Ferreira' })).number
  const ask = { request_id: ticket, text: 'Shown', mode: 'send' }
  const { preview, confirm_token } = await carol.ok('reply_to_requester', ask)
  await carol.ok('update_request', { request_id: ticket, subject: 'Changed', requester: 'Ben Whitaker' })
  const sent = await carol.ok('reply_to_requester', { ...ask, confirm_token })
  expect(sent).toMatchObject({ sent: true, to: preview.to, subject: preview.subject })
  expect(mails().at(-1)?.input).toMatchObject({ notification: { to: preview.to, subject: preview.subject } })
  expect((await carol.ok('reply_to_requester', ask)).preview.to).toEqual(['ben.whitaker@northwind.example'])
})

it('asks the person where the client can', async () => {
  const questions: string[] = []
  let answer: 'yes' | 'no' = 'no'
  const elicitation = (message: string) => {
    questions.push(message)
    return answer
  }
  const session = await desk.connect(await desk.context('carol'), { client: { elicitation } })
  const ask = { request_id: number, text: 'Fixed', mode: 'send' }
  const before = mails().length
  expect(await session.fails('reply_to_requester', ask)).toContain('The person said no')
  expect(mails().length).toBe(before)
  answer = 'yes'
  expect((await session.ok('reply_to_requester', ask)).sent).toBe(true)
  expect(questions.at(-1)).toContain('ana.ferreira@northwind.example')
  expect(questions.at(-1)).toContain('Fixed')
})

it('a client that cannot ask after all gets the preview', async () => {
  const session = await desk.connect(await desk.context('carol'), {
    client: {
      elicitation: () => {
        throw new Error('no window')
      },
    },
  })
  expect(await session.ok('reply_to_requester', { request_id: number, text: 'x', mode: 'send' })).toMatchObject({
    sent: false,
    confirm_token: expect.any(String),
  })
})

it('where the site does not offer it, it says so, sends nothing and writes no note instead', async () => {
  desk.simulator.faults.set({ repliesRefused: true })
  const posts = () => desk.simulator.log.list().filter(({ method }) => method === 'POST').length
  const before = posts()
  const failure = await carol.fails('reply_to_requester', { request_id: number, text: 'Hello', mode: 'send' })
  expect(failure).toMatch(/does not let you mail/)
  expect(failure).toContain('add_note with visibility=requester')
  expect(posts()).toBe(before)
})

it('where the call itself is refused, nothing claims to be sent', async () => {
  desk.simulator.faults.set({ repliesRefused: true, metainfo: '404' })
  const { confirm_token } = await carol.ok('reply_to_requester', { request_id: number, text: 'Hello', mode: 'send' })
  const failure = await carol.fails('reply_to_requester', {
    request_id: number,
    text: 'Hello',
    mode: 'send',
    confirm_token,
  })
  expect(failure).toMatch(/was not sent[\s\S]*add_note/)
})

it('a mail whose answer is lost is found on the ticket, and never sent again', async () => {
  const ask = { request_id: number, text: 'Found', mode: 'send' }
  const { confirm_token } = await carol.ok('reply_to_requester', ask)
  desk.simulator.faults.add({ kind: 'drop-after', match: { method: 'POST' } })
  const before = mails().length
  const sent = await carol.ok('reply_to_requester', { ...ask, confirm_token })
  expect(sent).toMatchObject({ sent: true, mail_id: expect.stringMatching(/^\d+$/) })
  expect(mails().length - before).toBe(1)
})

it('a mail that is not found is told as such and never sent again, even beside another one of the same minute', async () => {
  const other = { request_id: number, text: 'Another', mode: 'send' }
  const token = (await carol.ok('reply_to_requester', other)).confirm_token
  await carol.ok('reply_to_requester', { ...other, confirm_token: token })
  const { confirm_token } = await carol.ok('reply_to_requester', { request_id: number, text: 'Lost', mode: 'send' })
  desk.simulator.faults.add({ kind: 'drop', match: { method: 'POST' } })
  const before = mails().length
  expect(
    await carol.fails('reply_to_requester', { request_id: number, text: 'Lost', mode: 'send', confirm_token }),
  ).toMatch(/may have been sent/)
  expect(mails().length - before).toBeLessThanOrEqual(1)
})

it('the subject of a mail is one line of whole characters', async () => {
  const stored = Object.values(desk.simulator.state.portals[0]?.tables.requests ?? {})
  // two, because one length ends between two emoji
  for (const [request_id, length] of [
    ['12', 199],
    ['13', 200],
  ] as const) {
    stored.find(record => record.display_id === request_id)!.subject = `${'a'.repeat(length)}\n\u200b${'😀'.repeat(20)}`
    const { preview } = await carol.ok('reply_to_requester', { request_id, text: 'On it' })
    expect(preview.subject.length).toBeGreaterThan(240)
    expect(preview.subject.isWellFormed()).toBe(true)
    expect(preview.subject).not.toMatch(/[\n\u200b]/)
  }
})
