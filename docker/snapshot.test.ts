import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { afterAll, expect, test } from 'vitest'
import { builtinsWhenUsed } from './lean-instance.ts'

const run = promisify(execFile)
const start = join(import.meta.dirname, '../instance/src/start.ts')
const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-snapshot-'))
afterAll(() => rm(folder, { recursive: true, force: true }))

/** Makes a snapshot of a program as docker/bundle-inside.sh does. @returns runs it */
async function snapshotOf(name: string, program: string): Promise<() => Promise<string>> {
  await build({
    stdin: { contents: `import { start } from ${JSON.stringify(start)}\n${program}`, resolveDir: folder, loader: 'ts' },
    outfile: join(folder, `${name}.cjs`),
    bundle: true,
    platform: 'node',
    format: 'cjs',
    plugins: [builtinsWhenUsed],
    logLevel: 'error',
  })
  await writeFile(join(folder, `${name}.json`), JSON.stringify({ builder: `${name}.cjs`, withoutCodeCache: true }))
  const blob = join(folder, `${name}.blob`)
  await run(process.execPath, ['--snapshot-blob', blob, '--build-snapshot-config', `${name}.json`], { cwd: folder })
  return async () => {
    const { stdout, stderr } = await run(process.execPath, ['--snapshot-blob', blob, join(folder, `${name}.cjs`)])
    // V8 tells there of a flag that it does not know
    expect(stderr).toBe('')
    return stdout
  }
}

test('what is drawn after the start differs between instances of one snapshot, and their environment is their own', async () => {
  const instance = await snapshotOf(
    'draws',
    `import { randomBytes, randomInt, randomUUID } from 'node:crypto'
     const { getRandomValues } = globalThis.crypto
     start(() => console.log(JSON.stringify({
       uuid: randomUUID(), web: globalThis.crypto.randomUUID(), bytes: randomBytes(8).toString('hex'), int: randomInt(2 ** 40),
       math: Math.random(), values: getRandomValues.call(globalThis.crypto, new Uint32Array(2)).join(), pid: process.pid,
       now: Date.now(),
     })), () => {})`,
  )
  const [one, two] = (await Promise.all([instance(), instance()])).map(text => JSON.parse(text))
  for (const key of Object.keys(one)) if (key !== 'now') expect([key, one[key] === two[key]]).toEqual([key, false])
  expect(Math.abs(Date.now() - one.now)).toBeLessThan(60_000)
})

test.each([
  ['randomUUID', `import { randomUUID } from 'node:crypto'; const id = randomUUID()`],
  ['randomBytes', `import { randomBytes } from 'node:crypto'; const id = randomBytes(16)`],
  ['random', `const id = Math.random()`],
  ['getRandomValues', `const id = globalThis.crypto.getRandomValues(new Uint8Array(4))`],
  [
    'generateKeyPairSync',
    `import { generateKeyPairSync } from 'node:crypto'; const id = generateKeyPairSync('ed25519')`,
  ],
])('no snapshot is made of a program that draws with %s while its modules are loaded', async (name, program) => {
  await expect(snapshotOf(`early-${name}`, `${program}\nstart(() => console.log(id), () => {})`)).rejects.toThrow(
    `${name} was called while the snapshot is made`,
  )
})

test('modules of Node.js that a snapshot cannot hold are there when the program runs', async () => {
  const instance = await snapshotOf(
    'server',
    `import { createServer } from 'node:http'
     start(() => {
       const server = createServer((request, response) => response.end('answered')).listen(0, '127.0.0.1', async () => {
         console.log(await (await fetch('http://127.0.0.1:' + server.address().port)).text())
         process.exit(0)
       })
     }, () => {})`,
  )
  expect(await instance()).toBe('answered\n')
})

test('the guard is the first module of an instance that runs, before any package', async () => {
  const source = await readFile(join(start, '../main.ts'), 'utf8')
  expect(/^import .*$/m.exec(source)?.[0]).toBe("import './start.ts'")
  expect(await readFile(start, 'utf8')).not.toMatch(/^import .* from '(?!node:)/m)
})
