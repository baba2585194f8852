import { execFile } from 'node:child_process'
import { generateKeyPairSync, type KeyObject, randomBytes, randomUUID, sign } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { imageFlags } from '../proxy/targets.ts'

const run = promisify(execFile)
const root = dirname(dirname(dirname(import.meta.dirname)))

/** The programs that are compared: ours, the floor, and what the SDK gives. */
export type Subject = {
  name: string
  image: string
  /** of the process in the container; undefined: the image's own */
  command?: (port: number) => string[]
  environment: string[]
  /** what is written to its standard input, and what a client must send to be let in */
  admission(port: number): { boot?: string; headers: Record<string, string> }
  /** what Node.js of this machine is told to run, and its environment */
  args: string[]
  fileEnvironment: Record<string, string>
}

export const ours = 'this instance'
export const floor = 'bare node server'
export const commonJsFloor = 'bare node server, CommonJS'
export const sample = 'SDK sample server'

/** As the image sets them, beside Node's flags. */
const instanceEnvironment = {
  MALLOC_ARENA_MAX: '1',
  MALLOC_TRIM_THRESHOLD_: '65536',
  NODE_ENV: 'production',
}

/**
 * Bundles the programs to compare with and puts them into an image on the same base as the instance's, without the
 * instance's settings.
 * @param image - of the instance
 */
export async function prepareSubjects(image: string, dockerHost: string) {
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-bench-'))
  const compared = `sdp-mcp/bench-instance:${randomBytes(4).toString('hex')}`
  const bundle = (name: string, format: 'esm' | 'cjs', file: string) =>
    build({
      entryPoints: [join(import.meta.dirname, `${name}.ts`)],
      outfile: join(folder, file),
      bundle: true,
      platform: 'node',
      target: 'node24',
      format,
      banner:
        format === 'esm' && name === 'sample'
          ? { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url)" }
          : {},
      logLevel: 'warning',
    })
  await bundle('bare', 'esm', 'bare.mjs')
  await bundle('bare', 'cjs', 'bare.cjs')
  await bundle('sample', 'esm', 'sample.mjs')
  await writeFile(
    join(folder, 'Dockerfile'),
    `FROM ${image} AS instance\nFROM scratch\nCOPY --from=instance / /\nCOPY *.mjs *.cjs /bench/\nENV PATH=/usr/local/bin\nUSER 10001:10001\n`,
  )
  const environment = { ...process.env, DOCKER_HOST: dockerHost }
  await run('docker', ['build', '--quiet', '--tag', compared, folder], { env: environment })
  const dist = join(root, 'instance', 'dist')
  const blob = join(folder, 'main.blob')
  // as docker/bundle-inside.sh does for the image
  const building = ['--expose-gc', '--snapshot-blob', blob, '--build-snapshot-config', 'snapshot.json']
  await run(process.execPath, building, { cwd: dist })

  const reference = (name: string, file: string): Subject => ({
    name,
    image: compared,
    command: port => ['node', `/bench/${file}`, String(port)],
    environment: [],
    admission: () => ({ headers: {} }),
    args: [join(folder, file)],
    fileEnvironment: {},
  })
  const subjects: Subject[] = [
    {
      name: ours,
      image,
      environment: ['SDP_BOOT=stdin'],
      admission: bootAndStatement,
      args: ['--snapshot-blob', blob, join(dist, 'main.cjs')],
      fileEnvironment: { ...instanceEnvironment, NODE_OPTIONS: await imageFlags('instance'), SDP_BOOT: 'stdin' },
    },
    reference(floor, 'bare.mjs'),
    reference(commonJsFloor, 'bare.cjs'),
    reference(sample, 'sample.mjs'),
  ]
  return {
    subjects,
    async [Symbol.asyncDispose]() {
      await run('docker', ['rmi', '--force', compared], { env: environment }).catch(() => {})
      await rm(folder, { recursive: true, force: true })
    },
  }
}

/** What the control plane writes to a new instance, and the statement that it shows with each request. */
function bootAndStatement(port: number): { boot: string; headers: Record<string, string> } {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519')
  const user = { id: randomUUID(), username: 'bench', displayName: 'Bench', email: null }
  const boot = {
    version: 1,
    user,
    generation: 1,
    listen: { host: '0.0.0.0', port },
    statementKeys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'bench', alg: 'EdDSA' }],
    // nobody is there: what is measured needs no token
    database: { host: '127.0.0.1', port: 1, database: 'none', user: 'none', password: 'none' },
    dataKey: randomBytes(32).toString('base64'),
    sdp: { dataCenter: 'US', portal: 'itdesk', baseUrl: 'http://127.0.0.1:1', accountsUrl: 'http://127.0.0.1:1' },
    allowInsecureUpstream: true,
    toolsets: ['core'],
    readOnly: false,
    logLevel: 'silent',
  }
  const statement = signed(privateKey, `instance:${user.id}:1`, user.username)
  return { boot: `${JSON.stringify(boot)}\n`, headers: { authorization: `Bearer ${statement}` } }
}

function signed(key: KeyObject, audience: string, subject: string): string {
  const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const now = Math.floor(Date.now() / 1000)
  const claims = { iss: 'sdp-mcp', aud: audience, sub: subject, purpose: 'mcp', iat: now, exp: now + 290 }
  const text = `${part({ alg: 'EdDSA', kid: 'bench', typ: 'JWT' })}.${part(claims)}`
  return `${text}.${sign(null, Buffer.from(text), key).toString('base64url')}`
}
