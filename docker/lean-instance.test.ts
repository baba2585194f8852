import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { glob, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { type AddressInfo, connect } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { afterAll, expect, test } from 'vitest'
import { exchange } from '../instance/src/http-exchange.ts'
import { catalogue } from '../instance/src/tools/catalogue.ts'
import { buildWithLaterFile, laterFile } from './later-file.ts'
import { builtinsWhenUsed, filesOfTheirOwn, lazyCatalogue, lazySource, leanZod } from './lean-instance.ts'

const root = join(import.meta.dirname, '..')
const file = join(root, 'instance/src/tools/catalogue.ts')
/** inside of the package, so that its dependencies are found */
const folder = await mkdtemp(join(root, 'instance/node_modules/.lean-'))
afterAll(() => rm(folder, { recursive: true, force: true }))

test('the bundled catalogue shows every tool as the source does, and runs its code from the later file when it is called', async () => {
  const asks = `JSON.stringify({
    tools: catalogue.map(({ name, toolset, alsoNeeds, effect, scopes, requiredLists, published }) =>
      ({ name, toolset, alsoNeeds, effect, scopes, requiredLists, published })),
    told: await Promise.all(catalogue.map(tool =>
      tool.run({ no_tool_has_this: true }, {}).catch(error => error.constructor.name + ': ' + error.message))),
  })`
  const entry = join(folder, 'asks.mjs')
  const outfile = join(folder, 'asks.cjs')
  await writeFile(
    entry,
    `import { catalogue } from ${JSON.stringify(file)}\nasync function main() { console.log(${asks}) }\nmain()`,
  )
  await buildWithLaterFile({
    entryPoints: [entry],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    packages: 'external',
    plugins: [lazyCatalogue, builtinsWhenUsed],
    logLevel: 'error',
  })
  type Answers = { tools: { name: string }[]; told: string[] }
  const ask = async (script: string[]): Promise<Answers> =>
    JSON.parse((await promisify(execFile)(process.execPath, script, { maxBuffer: 64 * 1024 * 1024 })).stdout)
  const [bundled, plain] = await Promise.all([ask([outfile]), ask([entry])])
  expect(bundled.tools.length).toBeGreaterThan(70)
  expect(bundled.tools).toEqual(plain.tools)
  // each one is the tool of its name: an argument that none has is refused in its own words
  expect(bundled.told).toEqual(plain.told)
  for (const [index, { name }] of bundled.tools.entries()) expect(bundled.told[index]).toContain(name)
  // words of a tool's own code are in the later file alone
  const [first, later] = await Promise.all([outfile, join(folder, laterFile)].map(one => readFile(one, 'utf8')))
  for (const words of ['The resolution is set.', 'This site has no status called Resolved.'])
    expect([words, first!.includes(words), later!.includes(words)]).toEqual([words, false, true])
})

test('what is left out of zod is not there, and says so; the rest works', async () => {
  const outfile = join(folder, 'zod.cjs')
  await build({
    stdin: {
      contents: `import { z } from 'zod'
        const told = [z.object({ a: z.string() }).safeParse({ a: 1 }).error.issues[0].path.join()]
        for (const part of [() => z.compile(z.string()), () => z.fromJSONSchema({ type: 'string' })])
          try { told.push(part()) } catch (error) { told.push(error.message) }
        console.log(JSON.stringify(told))`,
      resolveDir: join(root, 'instance'),
    },
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    plugins: [leanZod],
    logLevel: 'error',
  })
  expect(JSON.parse((await promisify(execFile)(process.execPath, [outfile])).stdout)).toEqual([
    'a',
    "docker/lean-instance.ts leaves out zod's compile",
    "docker/lean-instance.ts leaves out zod's fromJSONSchema",
  ])
})

test('a catalogue that is written in another way stops the build instead of leaving tools out', async () => {
  const source = await readFile(file, 'utf8')
  expect(lazySource(catalogue, source)).toContain('get_my_context')
  expect(() => lazySource(catalogue.slice(1), source)).toThrow(/adapt docker\/lean-instance\.ts/)
  expect(() => lazySource(catalogue, source.replace(/^import \{ addNote \}.*$/m, ''))).toThrow(/adapt/)
  expect(() => lazySource(catalogue, source.replace('export const catalogue', 'export const tools'))).toThrow(/adapt/)
})

test('the file that stands for undici has every part of it that an instance uses, and they work together', async () => {
  const used = new Set<string>()
  for await (const path of glob('instance/src/**/*.ts', { cwd: root, exclude: ['**/*.test.ts', '**/testing/**'] })) {
    const source = await readFile(join(root, path), 'utf8')
    const forms = [
      /^import \{([^}]*)\} from 'undici'/gm,
      /\{([\w, ]*)\}(?:, [^=]*)?\] =\s*await Promise\.all\(\[import\('undici'\)/g,
    ]
    for (const form of forms)
      for (const [, names] of source.matchAll(form))
        for (const name of names!.split(',').map(one => one.trim())) if (name) used.add(name)
    // a way of importing that is not looked for above
    const mentions = source.match(/^import (?!type)[^;\n]*'undici'|import\('undici'\)/gm)?.length ?? 0
    if (mentions > 0) expect([path, forms.some(form => new RegExp(form).test(source))]).toEqual([path, true])
  }
  expect(used).toContain('Agent')
  const outfile = join(folder, 'undici.cjs')
  await build({
    stdin: { contents: filesOfTheirOwn.undici as string, resolveDir: join(root, 'instance') },
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    logLevel: 'error',
  })
  const require = createRequire(join(root, 'instance/package.json'))
  const [parts, whole] = [require(outfile), require('undici')] as [Record<string, unknown>, Record<string, unknown>]
  expect(Object.keys(parts).sort()).toEqual([...used].sort())
  for (const name of used)
    expect([name, (parts[name] as { name: string }).name]).toEqual([name, (whole[name] as { name: string }).name])

  // through a tunnel, and with a form, which takes most of its parts
  const target = createServer(async (request, response) => {
    response.end(`${request.headers['content-type']?.slice(0, 19)} ${(await text(request)).includes('of the form')}`)
  }).listen(0, '127.0.0.1')
  const proxy = createServer().listen(0, '127.0.0.1')
  proxy.on('connect', (request, socket) => {
    const onward = connect(Number(request.url?.split(':')[1]), '127.0.0.1', () =>
      socket.write('HTTP/1.1 200 OK\r\n\r\n'),
    )
    onward.pipe(socket).pipe(onward)
  })
  await Promise.all([once(target, 'listening'), once(proxy, 'listening')])
  const port = (server: typeof target) => (server.address() as AddressInfo).port
  type Call = Parameters<typeof exchange>[1]
  const { ProxyAgent, FormData } = parts as {
    ProxyAgent: new (options: object) => Parameters<typeof exchange>[0]
    FormData: new () => Exclude<Call['body'], string | undefined>
  }
  const dispatcher = new ProxyAgent({ uri: `http://127.0.0.1:${port(proxy)}`, proxyTunnel: true })
  const body = new FormData()
  body.set('part', 'of the form')
  const answer = await exchange(dispatcher, {
    method: 'POST',
    url: `http://127.0.0.1:${port(target)}/`,
    headers: {},
    body,
    timeoutMs: 10_000,
    maxBytes: 1_000,
  })
  expect(answer.bytes.toString()).toBe('multipart/form-data true')
  await dispatcher.destroy()
  for (const server of [target, proxy]) server.close()
})
