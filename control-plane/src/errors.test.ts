import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { variableNames } from './config.ts'
import { AppError, catalogue, type ErrorCode } from './errors.ts'

const folder = join(dirname(dirname(import.meta.dirname)), 'docs', 'errors')
const codes = Object.keys(catalogue) as ErrorCode[]
const page = (code: string) => readFileSync(join(folder, `${code}.md`), 'utf8')

test('each code has a page, and each page a code', () => {
  expect(readdirSync(folder).sort()).toEqual(codes.map(code => `${code}.md`).sort())
})

test.each(codes)('the page about %s says what happened, how to fix it, and what people get wrong', code => {
  const [status, title] = catalogue[code]
  const text = page(code)
  expect(text.startsWith(`# ${title}\n\n\`${code}\`, HTTP ${status}\n`)).toBe(true)
  const sections = new Map(
    text
      .split(/^## /m)
      .slice(1)
      .map(section => [section.slice(0, section.indexOf('\n')), section.slice(section.indexOf('\n')).trim()]),
  )
  expect([...sections.keys()]).toEqual(['What happened', 'How to fix it', 'Usual mistakes'])
  expect(sections.get('What happened')!.length).toBeGreaterThan(60)
  // an exact command or call
  expect(sections.get('How to fix it')).toMatch(/```sh\n[^`]+\n```/)
  expect(sections.get('Usual mistakes')).toMatch(/^- .{20}/)
  expect(text).not.toMatch(/[ \t]$/m)
})

test('the pages name only variables that exist', () => {
  const others = ['SDP_POSTGRES_MAX_CONNECTIONS', 'SDP_CONTROL_PLANE_USER', 'SDP_MCP_API_KEY']
  const named = codes.flatMap(code => page(code).match(/\bSDP_[A-Z0-9_]+\b/g) ?? [])
  expect(named.length).toBeGreaterThan(20)
  expect(named.filter(name => !variableNames.includes(name) && !others.includes(name))).toEqual([])
})

test('codes are nouns then a state, in lower case, and statuses are failures', () => {
  for (const code of codes) {
    expect(code).toMatch(/^[a-z]+(-[a-z]+)*$/)
    const [status, title] = catalogue[code]
    expect(status).toBeGreaterThanOrEqual(400)
    expect(title).toMatch(/^[A-Z].*[^.]$/)
  }
})

test('what may work later says when, in whole seconds', () => {
  for (const code of codes) {
    const { retryAfterSeconds, status } = new AppError(code, 'x')
    expect(retryAfterSeconds).toBe(status === 503 ? 5 : undefined)
  }
  expect(new AppError('instance-failed', 'x', { retryAfterSeconds: 30 }).retryAfterSeconds).toBe(30)
})

test('an error keeps its cause apart from what the caller is told', () => {
  const cause = new Error('password=Wd39')
  const error = new AppError('internal', 'Something went wrong here.', { cause })
  expect(error.message).not.toContain('Wd39')
  expect(error.cause).toBe(cause)
  expect(error).toMatchObject({ name: 'AppError', status: 500, title: 'Something went wrong here' })
})
