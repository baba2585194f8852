import { readFile } from 'node:fs/promises'
import { builtinModules } from 'node:module'
import { join } from 'node:path'
import type { Plugin } from 'esbuild'
import type { Tool } from '../instance/src/tools/define.ts'

/**
 * What keeps the bundle of an instance small in memory, because it is paid for once per user: parts that an instance never
 * runs are left out, and each tool is made when it is first called. docs/performance-instance.md has the numbers.
 */

/** A module that is put in the place of another one, where files whose path contains `importer` ask for it. */
export type Replacement = { filter: RegExp; importer: string; contents: string }

const sdk = join('@modelcontextprotocol', 'sdk')
const never = (what: string) =>
  `() => { throw new Error(${JSON.stringify(`docker/lean-instance.ts leaves out ${what}`)}) }`

/** Only modules that no call path of ours reaches; each stand-in says so if that should ever change. */
export const leftOut: Replacement[] = [
  // the SDK's own reading of request bodies, which brings half a megabyte of character tables: transports/body.ts reads them
  { filter: /^raw-body$/, importer: sdk, contents: `export default ${never('raw-body')}` },
  // the SDK's JSON Schema validator: server.ts brings the only check that an instance needs
  {
    filter: /\/validation\/ajv-provider\.js$/,
    importer: sdk,
    contents: `export class AjvJsonSchemaValidator { getValidator = ${never('ajv')} }`,
  },
  // for servers that still describe their tools with the previous zod
  {
    filter: /^zod\/v3$/,
    importer: sdk,
    contents: `export const object = ${never('zod 3')}`,
  },
  { filter: /^zod-to-json-schema$/, importer: sdk, contents: `export const zodToJsonSchema = ${never('zod 3')}` },
  // only asked whether a request came over TLS, when it reads the body itself
  { filter: /^node:tls$/, importer: sdk, contents: 'export class TLSSocket {}' },
  // pino in a thread of its own
  { filter: /^thread-stream$/, importer: join('pino', 'lib'), contents: `module.exports = ${never('thread-stream')}` },
  { filter: /^(node:)?worker_threads$/, importer: join('pino', 'lib'), contents: 'export const isMainThread = true' },
  // zod's messages in fifty languages; ours are English
  {
    filter: /^\.\.\/locales\/index\.js$/,
    importer: join('zod', 'v4'),
    contents: `export { default as en } from 'zod/v4/locales/en.js'`,
  },
]

/** They hold native objects that no snapshot can, and with each other most of what an instance needs last. */
const neverInSnapshot = ['http', 'https', 'http2', 'tls', 'sqlite']

/**
 * Modules of Node.js that cannot be part of a snapshot are loaded when something of them is used, by a call; an import of
 * node:http would also make Node.js touch everything it exports, with that the HTTP client inside it: 5 MB.
 */
export const builtinsWhenUsed: Plugin = {
  name: 'builtins-when-used',
  setup(bundle) {
    bundle.onResolve({ filter: /^(node:)?[a-z_]+(\/[a-z_]+)*$/ }, ({ path, namespace }) => {
      const name = path.replace(/^node:/, '')
      return namespace !== 'builtin' && builtinModules.includes(name) ? { path: name, namespace: 'builtin' } : undefined
    })
    bundle.onLoad({ filter: /.*/, namespace: 'builtin' }, ({ path }) => {
      const load = `process.getBuiltinModule(${JSON.stringify(`node:${path}`)})`
      return {
        contents: neverInSnapshot.includes(path) ? whenUsed(path, load) : `module.exports = ${load}`,
        loader: 'js',
      }
    })
  },
}

function whenUsed(name: string, load: string): string {
  const names = Object.keys(process.getBuiltinModule(`node:${name}`) ?? {})
  return `for (const name of ${JSON.stringify(names)})
  Object.defineProperty(exports, name, { enumerable: true, get: () => ${load}[name] })`
}

/**
 * Packages that most instances do without for most of their time, as files of their own beside the bundle, and what of them is
 * used. In the snapshot they would cost each instance their source twice over, a megabyte for undici alone, whose index also
 * gives dispatchers the methods that its proxies need.
 */
export const filesOfTheirOwn: Record<string, string> = {
  undici: `Object.assign(require('undici/lib/dispatcher/dispatcher.js').prototype, require('undici/lib/api'))
  module.exports = {
    Agent: require('undici/lib/dispatcher/agent.js'),
    EnvHttpProxyAgent: require('undici/lib/dispatcher/env-http-proxy-agent.js'),
    FormData: require('undici/lib/web/fetch/formdata.js').FormData,
    ProxyAgent: require('undici/lib/dispatcher/proxy-agent.js'),
    buildConnector: require('undici/lib/core/connect.js'),
  }`,
  turndown: `module.exports = require('turndown')`,
}

export const loadedWhenNeeded: Plugin = {
  name: 'loaded-when-needed',
  setup(bundle) {
    const filter = new RegExp(`^(${Object.keys(filesOfTheirOwn).join('|')})$`)
    bundle.onResolve({ filter }, ({ path }) => ({ path, namespace: 'own-file' }))
    bundle.onLoad({ filter: /.*/, namespace: 'own-file' }, ({ path }) => ({
      contents: `if (process.getBuiltinModule('node:v8').startupSnapshot.isBuildingSnapshot())
  throw new Error('${path} is loaded at the start; it must wait for its first use')
module.exports = process.getBuiltinModule('node:module').createRequire(process.argv[1])('./${path}.cjs')`,
      loader: 'js',
    }))
  },
}

const transportFile = /[\\/]esm[\\/]server[\\/]webStandardStreamableHttp\.js$/

/** The SDK's transport answers with our {@link file://../instance/src/transports/web.ts}, not with the global class. */
export const leanResponses: Plugin = {
  name: 'lean-responses',
  setup(bundle) {
    bundle.onLoad({ filter: transportFile }, async ({ path }) => {
      const web = join(import.meta.dirname, '..', 'instance', 'src', 'transports', 'web.ts')
      return {
        contents: `import { WebResponse as Response } from ${JSON.stringify(web)}\n${await readFile(path, 'utf8')}`,
      }
    })
  },
}

/** Parts of zod that make code from schemas and schemas from JSON Schema: for those who ask, and an instance never does. */
const partsOfZod = /[\\/]zod[\\/]v4[\\/](core[\\/]compile|classic[\\/]from-json-schema)\.js$/

export const leanZod: Plugin = {
  name: 'lean-zod',
  setup(bundle) {
    bundle.onLoad({ filter: partsOfZod }, async ({ path }) => {
      const source = await readFile(path, 'utf8')
      const names = [...source.matchAll(/^export (?:const|class|(?:async )?function) (\w+)/gm)].map(([, name]) => name)
      if (names.length === 0)
        throw new Error(`${path} exports nothing that is understood: adapt docker/lean-instance.ts.`)
      return { contents: names.map(name => `export const ${name} = ${never(`zod's ${name}`)}`).join('\n') }
    })
  },
}

const catalogueFile = /[\\/]instance[\\/]src[\\/]tools[\\/]catalogue\.ts$/

/**
 * Puts into the place of the catalogue what `tools/list` shows, worked out now, and loads a tool's own code when it is
 * called: eighty tools with their schemas would otherwise be made at each start, for sessions that call three.
 */
export const lazyCatalogue: Plugin = {
  name: 'lazy-catalogue',
  setup(bundle) {
    bundle.onLoad({ filter: catalogueFile }, async ({ path }) => {
      // only now: the packages of an instance may be missing where another program is bundled
      const { catalogue } = await import('../instance/src/tools/catalogue.ts')
      return { contents: lazySource(catalogue, await readFile(path, 'utf8')), loader: 'js' }
    })
  },
}

/**
 * @param tools - the catalogue
 * @param source - of the file that imports them, which tells where each comes from
 * @throws Error when a tool is not imported in the one way that this understands
 */
export function lazySource(tools: readonly Tool[], source: string): string {
  const imports = new Map<string, string>()
  for (const [, binding, from] of source.matchAll(/^import \{ (\w+) \} from '(\.\/[\w/.-]+)'$/gm))
    imports.set(binding as string, from as string)
  const listed = /export const catalogue: readonly Tool\[\] = \[([\w\s,]*)\]/.exec(source)?.[1]
  const bindings =
    listed
      ?.split(',')
      .map(name => name.trim())
      .filter(Boolean) ?? []
  if (bindings.length !== tools.length || !bindings.every(binding => imports.has(binding)))
    throw new Error(
      'instance/src/tools/catalogue.ts no longer imports each tool by name in one line and lists exactly those: adapt docker/lean-instance.ts.',
    )
  const entries = tools.map((tool, index) => {
    const { name, toolset, alsoNeeds, effect, scopes, requiredLists, published } = tool
    const facts = { name, toolset, ...(alsoNeeds ? { alsoNeeds } : {}), effect, scopes, requiredLists }
    const binding = bindings[index] as string
    const load = `() => import(${JSON.stringify(imports.get(binding))}).then(found => found.${binding})`
    return `tool(${JSON.stringify(facts)}, ${JSON.stringify(JSON.stringify(published))}, ${load})`
  })
  return `function tool(facts, published, load) {
  let shown
  let loaded
  return {
    ...facts,
    get published() { return shown ??= JSON.parse(published) },
    run: async (args, call) => (loaded ??= await load()).run(args, call),
  }
}
export const catalogue = [\n${entries.join(',\n')}\n]\n`
}

/** Everything above that is a plugin of its own. */
export const leanPlugins: Plugin[] = [lazyCatalogue, builtinsWhenUsed, loadedWhenNeeded, leanResponses, leanZod]
