import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'

/**
 * Builds the image of instances with another program in the place of ours, so that everything around it is as it always is.
 * @param script - what runs; takes a boot line, see e2e/bench/proxy/door.ts
 */
export async function buildFixtureImage({
  script,
  image,
  engine,
}: {
  script: string
  image: string
  engine: string
}): Promise<{ remove(): Promise<void> }> {
  const docker = (...args: string[]) =>
    promisify(execFile)('docker', args, { env: { ...process.env, DOCKER_HOST: engine } })
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-fixture-'))
  try {
    await build({
      entryPoints: [script],
      outfile: join(folder, 'main.mjs'),
      bundle: true,
      platform: 'node',
      target: 'node24',
      format: 'esm',
      // dependencies that are CommonJS expect it, as those of our programs do (docker/bundle.ts)
      banner: {
        js: "import { createRequire } from 'node:module'\nglobalThis.require ??= createRequire(import.meta.url)",
      },
    })
    const base = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
    await writeFile(
      join(folder, 'Dockerfile'),
      `FROM ${base}\nCOPY main.mjs /app/main.mjs\nENTRYPOINT ["node", "/app/main.mjs"]\n`,
    )
    await docker('build', '--quiet', '--tag', image, folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  return {
    async remove() {
      await docker('rmi', image).catch(() => {})
    },
  }
}
