import { dirname, join, relative } from 'node:path'
import { type BuildOptions, build, type Metafile, type Plugin } from 'esbuild'

/**
 * Bundles a program as two files: what runs from the start, and what its own code asks for with `import()`. Instances start
 * from a snapshot, which holds the first file's source twice, on the heap and in the blob that Node.js keeps; the second file
 * is read when the first tool is called. Modules that both need are in the first file only, and the second is handed them:
 * a class or a cache that exists twice would be two.
 *
 * Expects CommonJS output, and that nobody takes the default export of an ES module of the first file from the second.
 */

/** Name of the second file, beside the first. */
export const laterFile = 'later.cjs'

const asked = Symbol('asked')

/** A file's name within the program. */
type IdOf = (path: string) => string

export async function buildWithLaterFile(options: BuildOptions & { outfile: string }): Promise<Metafile> {
  const folder = options.absWorkingDir ?? process.cwd()
  // so that both files are the same wherever they are built
  const idOf = (path: string) => relative(folder, path)
  const later = new Set<string>()
  const plugins = options.plugins ?? []
  const first = (shared: Iterable<string>, write: boolean) =>
    build({ ...options, write, metafile: true, plugins: [atFirstUse({ later, shared, idOf }), ...plugins] })
  const { metafile } = await first([], false)
  // modules that plugins made up bear the name of their namespace
  const core = new Set(Object.keys(metafile.inputs).map(path => join(folder, path)))
  const shared = new Set<string>()
  await build({
    ...options,
    entryPoints: undefined as never,
    stdin: {
      contents: `module.exports = { ${[...later].map(path => `${JSON.stringify(idOf(path))}: () => require(${JSON.stringify(path)})`).join(', ')} }`,
      resolveDir: folder,
      sourcefile: 'later.js',
    },
    outfile: join(dirname(options.outfile), laterFile),
    banner: { js: 'module.exports = function (shared) { "use strict"; const module = {};' },
    footer: { js: 'return module.exports }' },
    plugins: [handedOver({ core, shared, idOf }), ...plugins],
  })
  return (await first(shared, true)).metafile
}

/** In the first file: `import()` of a file takes it out of the second. */
function atFirstUse({ later, shared, idOf }: { later: Set<string>; shared: Iterable<string>; idOf: IdOf }): Plugin {
  return {
    name: 'at-first-use',
    setup(bundle) {
      bundle.onResolve({ filter: /^\.{1,2}\// }, async ({ path, kind, importer, resolveDir, pluginData }) => {
        if (kind !== 'dynamic-import' || pluginData === asked || importer.includes('node_modules')) return undefined
        const found = await bundle.resolve(path, { kind, importer, resolveDir, pluginData: asked })
        if (found.errors.length > 0) return undefined
        later.add(found.path)
        return { path: idOf(found.path), namespace: 'at-first-use' }
      })
      bundle.onResolve({ filter: /^later-file$/ }, ({ path }) => ({ path, namespace: 'later-file' }))
      bundle.onLoad({ filter: /.*/, namespace: 'at-first-use' }, ({ path }) => ({
        contents: `module.exports = require('later-file')[${JSON.stringify(path)}]()`,
      }))
      bundle.onLoad({ filter: /.*/, namespace: 'later-file' }, () => ({
        contents: `if (process.getBuiltinModule('node:v8').startupSnapshot.isBuildingSnapshot())
  throw new Error('${laterFile} is loaded at the start; whoever imports from it must wait for its first use')
const shared = {
${[...shared].map(path => `  ${JSON.stringify(idOf(path))}: () => require(${JSON.stringify(path)}),`).join('\n')}
}
module.exports = process.getBuiltinModule('node:module').createRequire(process.argv[1])('./${laterFile}')(id => {
  if (!shared[id]) throw new Error(\`${laterFile} asks for \${id}, which is not here: both files must come from one build\`)
  return shared[id]()
})`,
        resolveDir: join(import.meta.dirname, '..'),
      }))
    },
  }
}

/** In the second file: what is in the first one comes from there. */
function handedOver({ core, shared, idOf }: { core: ReadonlySet<string>; shared: Set<string>; idOf: IdOf }): Plugin {
  return {
    name: 'handed-over',
    setup(bundle) {
      bundle.onResolve({ filter: /.*/ }, async ({ path, kind, importer, namespace, resolveDir, pluginData }) => {
        if (pluginData === asked || kind === 'entry-point') return undefined
        const found = await bundle.resolve(path, { kind, importer, namespace, resolveDir, pluginData: asked })
        // all others esbuild resolves itself, which then also knows how their package is to be read
        if (found.errors.length > 0 || found.namespace !== 'file' || !core.has(found.path)) return undefined
        shared.add(found.path)
        return { path: idOf(found.path), namespace: 'handed-over' }
      })
      bundle.onLoad({ filter: /.*/, namespace: 'handed-over' }, ({ path }) => ({
        contents: `module.exports = shared(${JSON.stringify(path)})`,
      }))
    },
  }
}
