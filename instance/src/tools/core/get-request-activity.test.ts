import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'
import { trimmed } from './get-request-activity.ts'

let desk: Desk
let carol: Session
let number: string
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  const created = await carol.ok('create_request', { subject: 'Busy ticket', requester: 'Ana Ferreira' })
  number = created.number
  await carol.ok('add_note', { request_id: number, text: 'first look' })
  await carol.ok('add_note', { request_id: number, text: 'for the requester', visibility: 'requester' })
  const { confirm_token } = await carol.ok('reply_to_requester', { request_id: number, text: 'A mail', mode: 'send' })
  await carol.ok('reply_to_requester', { request_id: number, text: 'A mail', mode: 'send', confirm_token })
  await carol.ok('update_request', { request_id: number, priority: 'High' })
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

type Entry = { at: string; kind: string; author: string; public?: boolean; text?: string; changes?: string[] }

it('merges mails, notes and history, newest first, with author and visibility', async () => {
  const { entries } = (await carol.ok('get_request_activity', {
    request_id: number,
    kinds: ['conversation', 'notes', 'history'],
    limit: 50,
  })) as { entries: Entry[] }
  const times = entries.map(({ at }) => Date.parse(at))
  expect(times).toEqual([...times].sort((a, b) => b - a))
  const notes = entries.filter(({ kind }) => kind === 'note')
  expect(notes.map(({ public: isPublic, text }) => [isPublic, text?.includes('requester')])).toEqual(
    expect.arrayContaining([
      [false, false],
      [true, true],
    ]),
  )
  for (const { author } of notes) expect(author).toBe('Carol Jensen')
  const mails = entries.filter(({ kind }) => kind === 'reply')
  expect(mails).toHaveLength(1)
  expect(mails[0]?.text).toContain('A mail')
  expect(entries.some(({ changes }) => changes?.some(change => /priority.*High/i.test(change)))).toBe(true)
})

it('reads bodies only of what it shows', async () => {
  const { entries, more } = await carol.ok('get_request_activity', { request_id: number, limit: 1 })
  expect(entries).toHaveLength(1)
  expect(more).toMatch(/older entries: page=2/)
})

it('tells what the site refuses and shows the rest', async () => {
  desk.simulator.faults.add({ kind: 'status', status: 404, match: { path: '/requests/*/conversations' } })
  const shown = await carol.ok('get_request_activity', { request_id: number })
  expect(shown.not_available).toEqual([expect.stringContaining('conversation')])
  expect(shown.entries.length).toBeGreaterThan(0)
})

it('pages and parts together show every entry and all of a long note', async () => {
  const { number: busy } = await carol.ok('create_request', { subject: 'Long notes', requester: 'Ana Ferreira' })
  const texts = Array.from({ length: 5 }, (_, note) => Array.from({ length: 2_500 }, (_, word) => `n${note}w${word}`))
  for (const words of texts) await carol.ok('add_note', { request_id: busy, text: words.join(' ') })
  const seen: string[] = []
  let more: string | undefined
  for (let page = 1; ; page++) {
    for (let part = 1; ; part++) {
      const args = { request_id: busy, kinds: ['notes'], limit: 3, page, ...(part > 1 ? { part } : {}) }
      const answer = await carol.ok('get_request_activity', args)
      for (const entry of answer.entries) seen.push(...(entry.text.match(/n\dw\d+/g) ?? []))
      more = answer.more ?? more
      if (!answer.cut) break
      expect(JSON.stringify(answer.cut)).toContain(`part=${part + 1}`)
    }
    if (!more?.includes(`page=${page + 1}`)) break
  }
  expect(new Set(seen).size).toBe(seen.length)
  expect(seen.toSorted()).toEqual(texts.flat().toSorted())
})

describe('quoted mail', () => {
  it.each([
    ['<p>New text</p><p>-----Original Message-----<br>From: x</p><p>old</p>'],
    [
      '<p>New text</p><p>On Mon, Jan 6, 2025 at 9:00 AM Desk &lt;d@x.example&gt; wrote:</p><blockquote>old</blockquote>',
    ],
    ['<p>New text</p><blockquote>old</blockquote>'],
    ['<p>New text</p><hr><p><b>From:</b> Desk<br><b>Sent:</b> Monday</p><p>old</p>'],
  ])('is left out and said so: %s', html => {
    const shown = trimmed(html) ?? ''
    expect(shown).toContain('New text')
    expect(shown).not.toContain('old')
    expect(shown).toContain('[quoted mail left out]')
  })
  it('is only that: a text without quotes stays whole', () => {
    expect(trimmed('<p>From what I see</p><p>it works</p>')).toBe(
      '<untrusted>\nFrom what I see\n\nit works\n</untrusted>',
    )
  })
})
