import { mkdtemp, rm } from 'node:fs/promises'
import { request, type Server } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createSocketProxy } from '../../../docker/socket-proxy/src/proxy.ts'
import {
  docker,
  dockerHost,
  removeEverything,
  runtimeUnderTest,
  testImage,
  testInstallation,
  withoutDocker,
} from './testing/docker.ts'
import { describeRuntime } from './testing/runtime-contract.ts'

// The control plane behind the filter in front of the Docker socket: it can do all its work, and nothing else.

describe.skipIf(withoutDocker)('behind the socket proxy', () => {
  const installation = testInstallation()
  const refusals: string[] = []
  let folder: string
  let socket: string
  let server: Server

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-socket-'))
    socket = join(folder, 'docker.sock')
    server = createSocketProxy({
      engine: dockerHost.replace('unix://', ''),
      policy: { installation, repositories: ['sdp-mcp/test-instance'], peers: [] },
      log: line => refusals.push(line),
    })
    await new Promise<void>(done => server.listen(socket, done))
  })
  afterAll(async () => {
    server.closeAllConnections()
    server.close()
    await removeEverything(installation)
    await rm(folder, { recursive: true, force: true })
  })

  describeRuntime('docker', async () => {
    const { dispose, ...rest } = await runtimeUnderTest(installation, { engine: `unix://${socket}` })
    return {
      ...rest,
      async dispose() {
        await dispose()
        expect(refusals).toEqual([])
      },
    }
  })

  function call(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<number> {
    return new Promise((done, failed) => {
      const text = body === undefined ? undefined : JSON.stringify(body)
      request(
        {
          socketPath: socket,
          method,
          path,
          headers: {
            ...(text ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) } : {}),
            ...headers,
          },
        },
        response => {
          response.resume()
          done(response.statusCode ?? 0)
        },
      )
        .on('upgrade', (_response, upgraded) => {
          upgraded.destroy()
          done(101)
        })
        .on('error', failed)
        .end(text)
    })
  }

  test('other calls are 403, also about containers of others, and reach nobody', async () => {
    const foreign = await docker('create', '--label', 'com.sdp-mcp.installation=somebody-else', await testImage())
    try {
      for (const [method, path] of [
        ['GET', '/system/df'],
        ['GET', '/containers/json?all=1'],
        ['GET', `/containers/${foreign}/json`],
        ['POST', `/containers/${foreign}/start`],
        ['DELETE', `/containers/${foreign}?force=true`],
        ['GET', `/containers/${foreign}/logs?stdout=true`],
        ['POST', `/containers/${foreign}/exec`],
        ['POST', '/images/create?fromImage=x'],
        ['GET', '/../info'],
      ] as const)
        expect(await call(method, path), `${method} ${path}`).toBe(403)
      const upgrade = { connection: 'Upgrade', upgrade: 'tcp' }
      expect(await call('POST', `/containers/${foreign}/attach?stream=true&stdin=true`, undefined, upgrade)).toBe(403)
      expect(await call('POST', '/exec/x/start', undefined, upgrade)).toBe(403)
      expect(await call('POST', '/containers/create?name=evil', { Image: 'x', HostConfig: { Privileged: true } })).toBe(
        403,
      )
      expect(await docker('inspect', '--format', '{{.State.Status}}', foreign)).toBe('created')
    } finally {
      await docker('rm', '-f', foreign)
    }
    expect(await call('GET', '/version')).toBe(200)
    expect(await call('GET', '/info')).toBe(200)
    expect(refusals.length).toBeGreaterThan(8)
    refusals.length = 0
  })
})
