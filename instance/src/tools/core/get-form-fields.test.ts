import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, startDesk } from '../../testing/desk.ts'

let desk: Desk
beforeAll(async () => {
  desk = await startDesk()
})
afterAll(() => desk[Symbol.asyncDispose]())

it('lists mandatory, additional and read-only fields', async () => {
  const carol = await desk.connect(await desk.context('carol'))
  const form = await carol.ok('get_form_fields', { module: 'request', template: 'Default Request' })
  expect(form.mandatory).toContain('subject')
  expect(form.additional).toContainEqual(
    expect.objectContaining({
      key: 'txt_environment',
      label: 'Environment',
      choices: expect.arrayContaining(['Production']),
    }),
  )
  expect(form.read_only).toContain('created_by')
  for (const module of ['problem', 'change', 'release', 'project', 'solution', 'asset']) {
    expect((await carol.ok('get_form_fields', { module })).writable?.length, module).toBeGreaterThan(0)
  }
})

it.each(['401', '403', '404'] as const)('says what it cannot know where _metainfo answers %s', async metainfo => {
  desk.simulator.faults.set({ metainfo })
  const context = await desk.context('carol')
  const carol = await desk.connect(context)
  const form = await carol.ok('get_form_fields')
  expect(form.additional.map(({ key }: { key: string }) => key)).toContain('txt_environment')
  expect(form.hint).toMatch(/does not show its form/)
  expect(context.tokens.invalidated).toBe(0)
})
