import { execFile } from 'node:child_process'
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

// That the benchmark works; how fast anything is, a test does not say.

test('the proxy benchmark measures every target and writes its report, its figures and its plot', async () => {
  const results = join(import.meta.dirname, 'results', 'smoke')
  await rm(results, { recursive: true, force: true })
  const script = join(import.meta.dirname, 'main.ts')
  await promisify(execFile)(process.execPath, [script, 'proxy', 'smoke'], { timeout: 110_000 })
  const read = (name: string) => readFile(join(results, name), 'utf8')
  const { bars, sheets } = JSON.parse(await read('proxy.json'))
  expect(Object.keys(sheets)).toEqual(['direct', 'sdp-mcp', 'bare node'])
  for (const sheet of Object.values(sheets) as { calls: Record<string, { perSecond: number; p99: number }[]> }[])
    for (const key of ['1', '16']) {
      expect(sheet.calls[key]).toHaveLength(1)
      expect(sheet.calls[key]![0]!.perSecond).toBeGreaterThan(0)
      expect(sheet.calls[key]![0]!.p99).toBeGreaterThan(0)
    }
  const measured = (bars as { what: string; measured: number }[]).map(({ what }) => what)
  for (const part of [
    'added latency',
    'first event',
    'memory of a held stream',
    'an instance dies',
    'a client vanishes',
  ])
    expect(
      measured.some(what => what.includes(part)),
      part,
    ).toBe(true)
  expect(await read('proxy.md')).toContain('### Targets')
  expect(await read('proxy.svg')).toMatch(/^<svg [\s\S]*sdp-mcp[\s\S]*<\/svg>\s*$/)
})
