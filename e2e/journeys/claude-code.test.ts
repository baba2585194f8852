import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Stack, startStack } from '../support/stack.ts'

// The real Claude Code, with a home folder of its own and no login. `claude mcp list` connects to each server.

const run = promisify(execFile)
let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let home: string

beforeAll(async () => {
  stack = await startStack()
  alice = await stack.addUser('alice')
  home = await mkdtemp(join(tmpdir(), 'sdp-mcp-claude-'))
})
afterAll(async () => {
  await stack?.[Symbol.asyncDispose]()
  await rm(home, { recursive: true, force: true })
})

// The package's own launcher of the program it carries for this machine; its install script would only save this step.
const launcher = join(
  dirname(createRequire(import.meta.url).resolve('@anthropic-ai/claude-code/package.json')),
  'cli-wrapper.cjs',
)

async function claude(...args: string[]): Promise<string> {
  const environment = {
    PATH: process.env.PATH ?? '',
    HOME: home,
    DISABLE_AUTOUPDATER: '1',
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
  }
  const { stdout, stderr } = await run(process.execPath, [launcher, ...args], {
    env: environment,
    cwd: home,
    timeout: 90_000,
  })
  return stdout + stderr
}

test('the printed line makes Claude Code connect; with a wrong key it does not', async () => {
  const { command } = alice.body.claudeCode as { command: string }
  // the line as a shell would take it apart
  const words = [...command.matchAll(/"([^"]*)"|(\S+)/g)].map(match => match[1] ?? match[2]!)
  expect(words.slice(0, 3)).toEqual(['claude', 'mcp', 'add'])
  await claude(...words.slice(1))
  await claude(
    'mcp',
    'add',
    '--transport',
    'http',
    'streamable',
    alice.mcp,
    '--header',
    `Authorization: Bearer ${alice.key}`,
  )
  await claude(
    'mcp',
    'add',
    '--transport',
    'sse',
    'wrong',
    alice.sse,
    '--header',
    `Authorization: Bearer sdpmcp_${'x'.repeat(43)}`,
  )
  const lines = (await claude('mcp', 'list')).split('\n')
  const stateOf = (name: string) =>
    lines.find(line => line.startsWith(`${name}:`)) ?? `no line for ${name} in:\n${lines.join('\n')}`
  expect(stateOf('sdp')).toContain('Connected')
  expect(stateOf('streamable')).toContain('Connected')
  expect(stateOf('wrong')).not.toContain('Connected')
})
