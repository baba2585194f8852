import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, expect, test } from 'vitest'
import { buildWithLaterFile, laterFile } from './later-file.ts'

const run = promisify(execFile)
const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-later-'))
afterAll(() => rm(folder, { recursive: true, force: true }))

async function bundle(files: Record<string, string>): Promise<string> {
  for (const [name, contents] of Object.entries(files)) await writeFile(join(folder, name), contents)
  const outfile = join(folder, 'out', 'main.cjs')
  await buildWithLaterFile({
    absWorkingDir: folder,
    entryPoints: [join(folder, 'main.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    logLevel: 'error',
  })
  return outfile
}

test('what is imported by a call is read from the second file, once, and shares classes and state with the first', async () => {
  const outfile = await bundle({
    'shared.ts': `export class Wrong extends Error {}
      export let count = 0
      export const add = () => ++count`,
    'package.json': '{ "type": "module" }',
    'old.cjs': 'module.exports = { name: "a CommonJS module", made: Math.random() }',
    // as compilers of the time wrote it: Node.js and the first file take all of it for its default
    'compiled.cjs': 'exports.__esModule = true; exports.default = "its own default"; exports.all = "all of it"',
    'tool.ts': `import { basename } from 'node:path'
      import compiled from './compiled.cjs'
      import old from './old.cjs'
      import { add, count, Wrong } from './shared.ts'
      console.log('TOOL is read')
      export async function tool(seen: { made: number }) {
        const { deeper } = await import('./deeper.ts')
        add()
        const isStrict = (function (this: unknown) { return this === undefined })()
        console.log(basename('/a/b'), count, deeper, old.name, old.made === seen.made, (compiled as any).all, isStrict)
        throw new Wrong('as wanted')
      }`,
    'deeper.ts': `export const deeper = 'DEEPER'`,
    'main.ts': `import old from './old.cjs'
      import { add, count, Wrong } from './shared.ts'
      console.log('MAIN')
      add()
      for (let time = 0; time < 2; time++)
        import('./tool.ts')
          .then(({ tool }) => tool(old))
          .catch(error => console.log(error instanceof Wrong, error.message, count))`,
  })
  const { stdout } = await run(process.execPath, [outfile])
  expect(stdout.trim().split('\n')).toEqual([
    'MAIN',
    'TOOL is read',
    'b 2 DEEPER a CommonJS module true all of it true',
    'b 3 DEEPER a CommonJS module true all of it true',
    'true as wanted 3',
    'true as wanted 3',
  ])
  const [first, second] = await Promise.all([outfile, join(folder, 'out', laterFile)].map(one => readFile(one, 'utf8')))
  expect(first).not.toMatch(/TOOL|DEEPER/)
  expect(second).toMatch(/TOOL/)
  expect(second).toMatch(/DEEPER/)
  expect(second).not.toMatch(/MAIN|a CommonJS module|extends Error/)
  // the same from whatever folder it is built in
  expect(`${first}${second}`).not.toContain(folder)
})

test('a module that is needed from the start stays in the first file, whoever else imports it by a call', async () => {
  const outfile = await bundle({
    'both.ts': `export const both = 'BOTH'`,
    'main.ts': `import { both } from './both.ts'
      import('./both.ts').then(found => console.log(found.both === both))`,
  })
  expect((await run(process.execPath, [outfile])).stdout).toBe('true\n')
  expect(await readFile(join(folder, 'out', laterFile), 'utf8')).not.toContain('BOTH')
})

test('no snapshot is made of a program that reads its second file at the start', async () => {
  const outfile = await bundle({
    'tool.ts': 'export const tool = 1',
    'main.ts': `import('./tool.ts')`,
  })
  const config = join(folder, 'out', 'snapshot.json')
  await writeFile(config, JSON.stringify({ builder: outfile }))
  const blob = join(folder, 'out', 'main.blob')
  await expect(
    run(process.execPath, ['--snapshot-blob', blob, '--build-snapshot-config', config], { cwd: join(folder, 'out') }),
  ).rejects.toThrow(`${laterFile} is loaded at the start`)
})
