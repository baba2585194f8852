import { existsSync } from 'node:fs'
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { type BuildOptions, build, type Plugin } from 'esbuild'
import { buildWithLaterFile, laterFile } from './later-file.ts'
import { filesOfTheirOwn, leanPlugins, leftOut, type Replacement } from './lean-instance.ts'

/**
 * Bundles what runs in images: one file per program, two for the instance (later-file.ts), so that an image holds no
 * node_modules and starts without resolving a thousand modules. Usage: `node docker/bundle.ts [instance] [control-plane] [simulator]`, default all.
 */

type Target = {
  /** folder of the package; the entry is `src/main.ts` in it, the result `dist/main.mjs`, or `.cjs` where it is small */
  name: string
  /**
   * Smaller source to read at start and to hold; names stay, so that stack traces still tell something. CommonJS, because a
   * snapshot is made from that only (bundle-inside.sh).
   */
  small?: boolean
  plugins?: Plugin[]
  /** what the program reads from beside its bundle */
  copy?: (dist: string) => Promise<void>
}

const root = dirname(import.meta.dirname)

// CommonJS dependencies expect these; as properties of the global object they cannot clash with a module's own names.
const commonJsGlobals = `globalThis.require ??= process.getBuiltinModule('node:module').createRequire(import.meta.url)
globalThis.__filename ??= import.meta.filename
globalThis.__dirname ??= import.meta.dirname`

/**
 * Native add-ons that dependencies try to load and do without: ssh2's faster ciphers, libpq for pg, and ws's masking.
 * They stay out of the bundle, and the `try` around each `require` then takes the JavaScript path.
 */
const optionalNatives = ['*.node', 'cpu-features', 'pg-native', 'bufferutil', 'utf-8-validate']

/** dockerode's image building needs gRPC and protobuf, a third of its weight. We never build images through it. */
const withoutImageBuilding = leaveOut({
  filter: /^\.\/(session|buildkit)$/,
  importer: join('node_modules', 'dockerode', 'lib'),
  contents: 'module.exports = () => { throw new Error("docker/bundle.ts leaves out how dockerode builds images") }',
})

/** Only somebody who runs an instance alone, with a database, needs them there; and that is done from a checkout. */
const withoutMigrations = leaveOut({
  filter: /^@sdp-mcp\/migrations$/,
  importer: '',
  contents: `export const migrate = () => {
    throw new Error('this image carries no migrations, because the control plane runs them. Start the instance from a checkout (start-user-instance.sh), or let it keep its tokens in a file')
  }`,
})

/** @fastify/swagger-ui finds its assets relative to its own files; in a bundle they lie in `static` beside it. */
const swaggerUiAssets: Plugin = {
  name: 'swagger-ui-assets',
  setup(bundle) {
    bundle.onLoad({ filter: /@fastify[\\/]swagger-ui[\\/]lib[\\/]routes\.js$/ }, async ({ path }) => {
      const source = await readFile(path, 'utf8')
      const expected = "path.join(__dirname, '..', 'static')"
      if (!source.includes(expected))
        throw new Error(
          `${path} no longer contains ${expected}: adapt the plugin swagger-ui-assets in docker/bundle.ts.`,
        )
      return { contents: source.replace(expected, "path.join(__dirname, 'static')") }
    })
  },
}

const targets: Target[] = [
  {
    name: 'instance',
    small: true,
    plugins: [withoutMigrations, ...leftOut.map(leaveOut), ...leanPlugins],
    async copy(dist) {
      for (const [name, contents] of Object.entries(filesOfTheirOwn))
        await build({
          absWorkingDir: root,
          stdin: { contents, resolveDir: join(root, 'instance') },
          outfile: join(dist, `${name}.cjs`),
          bundle: true,
          platform: 'node',
          target: 'node24',
          format: 'cjs',
          minifyWhitespace: true,
          minifySyntax: true,
          legalComments: 'external',
          logLevel: 'warning',
        })
      // Without the compiled code of Node.js' own modules, which is 4 MB in each instance and ties a snapshot to the processor
      // that it was made on.
      await writeFile(join(dist, 'snapshot.json'), JSON.stringify({ builder: 'main.cjs', withoutCodeCache: true }))
    },
  },
  {
    name: 'control-plane',
    plugins: [withoutImageBuilding, swaggerUiAssets],
    async copy(dist) {
      await copyFolder(join(root, 'migrations'), join(dist, 'migrations'), '.sql')
      await copyFolder(join(root, 'docs', 'errors'), join(dist, 'errors'), '.md')
      // the filter in front of the Docker socket runs from the same image (compose/socket-proxy.yaml)
      await build({
        absWorkingDir: root,
        entryPoints: [join(root, 'docker', 'socket-proxy', 'src', 'main.ts')],
        outfile: join(dist, 'socket-proxy.mjs'),
        bundle: true,
        platform: 'node',
        target: 'node24',
        format: 'esm',
        logLevel: 'warning',
      })
      const ui = packageFolder('control-plane', '@fastify/swagger-ui')
      await cp(join(ui, 'static'), join(dist, 'static'), {
        recursive: true,
        filter: source => !source.endsWith('.map'),
      })
    },
  },
  { name: 'simulator' },
]

const names = targets.map(target => target.name)
const wanted = process.argv.slice(2)
for (const name of wanted)
  if (!names.includes(name)) stop(`there is no "${name}" to bundle. Choose from: ${names.join(', ')}.`)

for (const target of targets.filter(({ name }) => wanted.length === 0 || wanted.includes(name))) {
  const entry = join(root, target.name, 'src', 'main.ts')
  const dist = join(root, target.name, 'dist')
  if (!existsSync(entry))
    stop(`${relative(root, entry)} is missing. Check out the complete repository (git status shows what was removed).`)
  await rm(dist, { recursive: true, force: true })
  await mkdir(dist, { recursive: true })
  const file = join(dist, target.small ? 'main.cjs' : 'main.mjs')
  const bundled = target.small
    ? buildWithLaterFile
    : (options: BuildOptions) => build(options).then(({ metafile }) => metafile)
  const metafile = await bundled({
    absWorkingDir: root,
    entryPoints: [entry],
    outfile: file,
    bundle: true,
    platform: 'node',
    target: 'node24',
    format: target.small ? 'cjs' : 'esm',
    minifyWhitespace: target.small ?? false,
    minifySyntax: target.small ?? false,
    // kept beside the bundle for whoever debugs; images leave it out, because Node would hold it parsed in memory
    sourcemap: 'external',
    legalComments: 'external',
    banner: target.small ? {} : { js: commonJsGlobals },
    external: optionalNatives,
    plugins: target.plugins ?? [],
    metafile: true,
    logLevel: 'warning',
  }).catch(() => stop(`${target.name} could not be bundled; esbuild's reasons are above.`))
  await target.copy?.(dist)
  if (target.small) for (const one of [file, join(dist, laterFile)]) await mustBeAscii(one)
  const bytes = metafile?.outputs[relative(root, file)]?.bytes ?? 0
  process.stdout.write(`${relative(root, file)} ${(bytes / 1_048_576).toFixed(2)} MiB\n`)
}

/** Puts `contents` in the place of a module. */
function leaveOut({ filter, importer, contents }: Replacement): Plugin {
  return {
    name: `leave-out ${filter.source}`,
    setup(bundle) {
      bundle.onResolve({ filter }, request =>
        request.importer.includes(importer)
          ? { path: request.path, namespace: `left-out ${filter.source}` }
          : undefined,
      )
      bundle.onLoad({ filter: /.*/, namespace: `left-out ${filter.source}` }, () => ({
        contents,
        resolveDir: join(root, 'instance'),
      }))
    },
  }
}

/** One character beyond ASCII makes V8 hold the whole source with two bytes a character, as long as the process lives. */
async function mustBeAscii(file: string): Promise<void> {
  const source = await readFile(file, 'latin1')
  const at = source.search(/[^\0-\x7f]/)
  if (at !== -1)
    stop(
      `${relative(root, file)} holds a character beyond ASCII, so each instance would need twice the memory for it. esbuild escapes them everywhere but in regular expressions: write it as \\u... in the source of: ${source.slice(Math.max(0, at - 80), at)}`,
    )
}

/** Copies the files with that ending, not what lies deeper. */
async function copyFolder(from: string, to: string, ending: string): Promise<void> {
  await mkdir(to, { recursive: true })
  const names = await readdir(from).catch(() => [])
  for (const name of names) if (name.endsWith(ending)) await cp(join(from, name), join(to, name))
}

/** Folder of a package as the given workspace package sees it. */
function packageFolder(from: string, name: string): string {
  const require = createRequire(join(root, from, 'package.json'))
  let folder = dirname(require.resolve(name))
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return folder
}

function stop(reason: string): never {
  process.stderr.write(`bundle: ${reason}\n`)
  process.exit(1)
}
