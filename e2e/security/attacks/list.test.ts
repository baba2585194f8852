import { readdir, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'

const folder = import.meta.dirname

/** The attacks of each file, in order. Titles are plain texts, so that this can read them. */
async function attacks(): Promise<Record<string, string[]>> {
  const found: Record<string, string[]> = {}
  for (const file of (await readdir(folder))
    .filter(name => name.endsWith('.test.ts') && name !== 'list.test.ts')
    .sort()) {
    const source = await readFile(join(folder, file), 'utf8')
    const titles = [...source.matchAll(/^test\(\s*(['"])attack: (.+)\1,/gm)].map(match => match[2]!)
    expect([file, titles.length]).toEqual([file, source.match(/^\s*test\b/gm)!.length])
    found[file] = titles
  }
  return found
}

test('the attack suite has at least sixty attacks, no two of a name, and e2e/security/README.md lists every one', async () => {
  const all = await attacks()
  const titles = Object.values(all).flat()
  expect(titles.length).toBeGreaterThanOrEqual(60)
  expect(new Set(titles).size).toBe(titles.length)
  const page = await readFile(join(dirname(folder), 'README.md'), 'utf8')
  const listed = [...page.matchAll(/^- (.+)$/gm)].map(match => match[1]!)
  expect(listed.sort()).toEqual(titles.sort())
  for (const [file, { length }] of Object.entries(all)) {
    expect(page).toContain(`\`attacks/${file}\`, ${length} attacks`)
  }
})
