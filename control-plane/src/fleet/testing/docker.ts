import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { expect } from 'vitest'
import { createDockerRuntime, type DockerRuntimeOptions } from '../docker-runtime.ts'
import type { Runtime } from '../runtime.ts'
import { silentLog, testInstanceEntry } from './support.ts'

const run = promisify(execFile)

/** Where the engine of the tests listens. */
export const dockerHost = process.env.DOCKER_HOST ?? 'unix:///var/run/docker.sock'
/** The one way to do without an engine, chosen by hand. */
export const withoutDocker = process.env.SKIP_DOCKER === '1'

export async function docker(...args: string[]): Promise<string> {
  const { stdout } = await run('docker', args, { env: { ...process.env, DOCKER_HOST: dockerHost } })
  return stdout.trim()
}

/** An installation of its own for each test file: files may run side by side on one engine. */
export const testInstallation = () => `test-${randomBytes(4).toString('hex')}`

/** @returns name of an image whose only program is the test instance; made once, by the engine itself */
export async function testImage(): Promise<string> {
  await docker('version', '--format', '{{.Server.Version}}').catch(error => {
    throw new Error(
      `These tests need a Docker engine, and none answers at ${dockerHost}. Start one, set DOCKER_HOST, or leave them out with SKIP_DOCKER=1. (${String(error.stderr ?? error).trim()})`,
    )
  })
  const hash = createHash('sha256')
    .update(await readFile(testInstanceEntry))
    .digest('hex')
  const image = `sdp-mcp/test-instance:${hash.slice(0, 12)}`
  if (await docker('image', 'inspect', image).catch(() => '')) return image
  const base = 'sdp-mcp/base-node:24'
  await docker('image', 'inspect', base).catch(() => {
    throw new Error(`These tests need the image ${base}. Make it with: docker/base-images.sh`)
  })
  // no builder needed: a container is made, given the file, and kept as an image
  const id = await docker('create', base)
  try {
    await docker('cp', testInstanceEntry, `${id}:/test-instance.ts`)
    await docker('commit', '--change', 'CMD ["node", "/test-instance.ts"]', id, image)
  } finally {
    await docker('rm', '-f', id)
  }
  return image
}

/** A runtime on the engine of the tests, as on a plain host unless `options` say otherwise. */
export function testRuntime(installation: string, options: Partial<DockerRuntimeOptions> = {}): Runtime {
  return createDockerRuntime({
    engine: dockerHost,
    reach: 'loopback',
    networkPool: '10.213.0.0/16',
    log: silentLog,
    installation,
    ...options,
  })
}

/** {@link testRuntime} for the suite that all runtimes pass; it fails unless everything was removed again. */
export async function runtimeUnderTest(installation: string, options?: Partial<DockerRuntimeOptions>) {
  const image = await testImage()
  const runtime = testRuntime(installation, options)
  return {
    runtime,
    image,
    async dispose() {
      await runtime.close()
      expect(await leftovers(installation)).toEqual([])
      await removeEverything(installation)
    },
  }
}

/** Everything of one installation, for the end of a test file. */
export async function removeEverything(installation: string): Promise<void> {
  const filter = `label=com.sdp-mcp.installation=${installation}`
  const ids = async (...list: string[]) => (await docker(...list, '--filter', filter)).split('\n').filter(Boolean)
  const containers = await ids('ps', '-aq')
  if (containers.length > 0) await docker('rm', '-f', ...containers).catch(() => '')
  for (const network of await ids('network', 'ls', '-q')) await docker('network', 'rm', network).catch(() => '')
}

export async function leftovers(installation: string): Promise<string[]> {
  const filter = `label=com.sdp-mcp.installation=${installation}`
  const [containers, networks] = await Promise.all([
    docker('ps', '-a', '--format', '{{.Names}}', '--filter', filter),
    docker('network', 'ls', '--format', '{{.Name}}', '--filter', filter),
  ])
  return [...containers.split('\n'), ...networks.split('\n')].filter(Boolean)
}
