import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { freePort } from '@sdp-mcp/migrations/testing'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import type { DockerRuntimeOptions } from './docker-runtime.ts'
import { createOwnAddresses } from './own-addresses.ts'
import type { Runtime } from './runtime.ts'
import {
  docker,
  leftovers,
  removeEverything,
  runtimeUnderTest,
  testImage,
  testInstallation,
  testRuntime,
  withoutDocker,
} from './testing/docker.ts'
import { describeRuntime } from './testing/runtime-contract.ts'
import { answering, bootSecrets, eventually, getJson, testSpec } from './testing/support.ts'

describe.skipIf(withoutDocker)('on a Docker engine', () => {
  describeRuntime('docker', () => runtimeUnderTest(testInstallation()))

  describe('docker', () => {
    const installation = testInstallation()
    let image: string
    let runtime: Runtime
    const open = (options: Partial<DockerRuntimeOptions> = {}) =>
      testRuntime(installation, { extraHosts: ['host.docker.internal:host-gateway'], ...options })
    beforeAll(async () => {
      image = await testImage()
      runtime = open()
    })
    afterEach(() => removeEverything(installation))
    afterAll(() => runtime?.close())

    async function startAnswering(part: Parameters<typeof testSpec>[1] = {}, by = runtime) {
      const started = await by.start(await testSpec(image, part))
      await answering(started.address, started.userId, started.generation)
      return { ...started, address: started.address! }
    }

    test('an instance cannot write outside /tmp, run what it wrote, gain rights or fork without end', async () => {
      const { address } = await startAnswering()
      const write = (path: string) => getJson(address, `/write?path=${path}`)
      expect(await write('/tmp/note')).toEqual({ worked: true })
      for (const path of ['/note', '/etc/passwd', '/usr/local/bin/node', '/test-instance.ts', '/dev/note'])
        expect(await write(path)).toMatchObject({ worked: false, code: expect.stringMatching(/EROFS|EACCES|EPERM/) })
      expect(await getJson(address, '/execute')).toMatchObject({ worked: false, code: 'EACCES' })

      const status = (await getJson<string>(address, '/status')) as string
      const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1]
      for (const capabilities of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
        expect(field(capabilities)).toBe('0000000000000000')
      expect(field('NoNewPrivs')).toBe('1')
      expect(field('Uid')?.split('\t')).toEqual(['10001', '10001', '10001', '10001'])
      expect(field('Seccomp')).toBe('2')

      const { started } = await getJson<{ started: number }>(address, '/spawn?count=100')
      expect(started).toBeLessThan(64)
      await getJson(address, '/healthz')
    })

    test('an instance that takes too much memory is ended for that reason, and has no swap to hide in', async () => {
      const { id, address } = await startAnswering()
      const limits = JSON.parse(await docker('inspect', '--format', '{{json .HostConfig}}', id))
      expect(limits.MemorySwap).toBe(limits.Memory)
      void fetch(`${address}/hog`).catch(() => {})
      await eventually('ended', async () => (await runtime.list())[0]?.running === false)
      expect((await runtime.list())[0]?.exit).toMatchObject({ outOfMemory: true })
    })

    test('nothing secret shows in docker inspect, in the environment, in arguments or in the log', async () => {
      const { id, address } = await startAnswering()
      const { HostConfig, Config } = JSON.parse(await docker('inspect', '--format', '{{json .}}', id))
      const shown = [
        await docker('inspect', id),
        await docker('network', 'inspect', `sdp-mcp-${installation}-alice`),
        await docker('top', id),
        await docker('logs', id),
        JSON.stringify(await getJson(address, '/environment')),
      ].join('\n')
      for (const secret of Object.values(bootSecrets)) expect(shown).not.toContain(secret)
      expect((await getJson<{ dataKey: string }>(address, '/boot')).dataKey).toBe(bootSecrets.dataKey)
      expect(Config.Env.filter((line: string) => line.startsWith('SDP_'))).toEqual(['SDP_BOOT=stdin'])
      expect(HostConfig).toMatchObject({
        RestartPolicy: { Name: 'no' },
        LogConfig: { Type: 'json-file', Config: { 'max-size': '5m', 'max-file': '3' } },
        CapDrop: ['ALL'],
        Init: true,
        Binds: null,
        Privileged: false,
      })
      expect(HostConfig.PortBindings).toEqual({
        [`${address.split(':')[2]}/tcp`]: [{ HostIp: '127.0.0.1', HostPort: address.split(':')[2] }],
      })
    })

    test('instances of two users cannot reach each other, though each reaches the host', async () => {
      const hostService = createServer((_, response) => response.end('here')).listen(await freePort(), '0.0.0.0')
      await new Promise(done => hostService.once('listening', done))
      const hostPort = (hostService.address() as { port: number }).port
      const [one, two] = await Promise.all([startAnswering({ username: 'one' }), startAnswering({ username: 'two' })])
      const reach = (from: string, host: string, port: number | string) =>
        getJson<{ worked: boolean }>(from, `/connect?host=${host}&port=${port}`)
      expect(await reach(one.address, 'host.docker.internal', hostPort)).toEqual({ worked: true })
      const network = JSON.parse(await docker('inspect', '--format', '{{json .NetworkSettings.Networks}}', two.id))
      const [{ IPAddress, Gateway }] = Object.values(network) as [{ IPAddress: string; Gateway: string }]
      const port = new URL(two.address).port
      // it does answer there, to its own machine
      expect(await reach(two.address, IPAddress, port)).toEqual({ worked: true })
      for (const host of [IPAddress, Gateway, 'host.docker.internal', `sdp-mcp-${installation}-two-1`])
        expect(await reach(one.address, host, port), host).toMatchObject({ worked: false })
      hostService.close()
    }, 30_000)

    test('a new control plane finds what the old one started, without disturbing it', async () => {
      const before = await startAnswering({ generation: 3 })
      await runtime.close()
      runtime = open()
      expect(await runtime.list()).toEqual([{ ...before, startedAt: null }])
      await answering(before.address, before.userId, 3)
    })

    test('containers of other installations are neither seen nor touched', async () => {
      const other = open({ installation: `${installation}-other` })
      const theirs = await startAnswering({ username: 'theirs' }, other)
      expect(await runtime.list()).toEqual([])
      await expect(runtime.remove(theirs.id)).rejects.toMatchObject({ kind: 'refused' })
      await runtime.tidy()
      await answering(theirs.address, theirs.userId, 1)
      await other.remove(theirs.id)
      await other.close()
      expect(await leftovers(`${installation}-other`)).toEqual([])
    })

    test('a missing image is told with the way to get it, and leaves nothing behind', async () => {
      expect(await runtime.hasImage('sdp-mcp/not-built:0')).toBe(false)
      const failure = await runtime.start(await testSpec('sdp-mcp/not-built:0')).catch(error => error)
      expect(failure).toMatchObject({ kind: 'image-missing', message: expect.stringContaining('docker/images.sh') })
      expect(failure.message).toContain('sdp-mcp/not-built:0')
      expect(await leftovers(installation)).toEqual([])
    })

    test('a taken port leaves neither container nor network behind', async () => {
      const foreign = createServer().listen(await freePort(), '127.0.0.1')
      await new Promise(done => foreign.once('listening', done))
      const { port } = foreign.address() as { port: number }
      await expect(runtime.start(await testSpec(image, { port }))).rejects.toMatchObject({ kind: 'port-taken' })
      expect(await leftovers(installation)).toEqual([])
      foreign.close()
      await startAnswering({ port })
    })

    test('an engine that is not there, may not be used, or does not answer is unreachable, each with its next step', async () => {
      const absent = open({ engine: 'unix:///nowhere/docker.sock' })
      await expect(absent.ping()).rejects.toMatchObject({
        kind: 'unreachable',
        message: expect.stringContaining('SDP_DOCKER_SOCKET'),
      })
      await expect(absent.list()).rejects.toMatchObject({ kind: 'unreachable' })
      await expect(absent.start(await testSpec(image))).rejects.toMatchObject({ kind: 'unreachable' })
      const refusing = open({ engine: `tcp://127.0.0.1:${await freePort()}` })
      await expect(refusing.ping()).rejects.toMatchObject({ kind: 'unreachable' })
      const silent = createServer(() => {}).listen(await freePort(), '127.0.0.1')
      await new Promise(done => silent.once('listening', done))
      const mute = open({ engine: `tcp://127.0.0.1:${(silent.address() as { port: number }).port}` })
      const before = Date.now()
      await expect(mute.ping()).rejects.toMatchObject({ kind: 'unreachable', message: expect.stringContaining('3 s') })
      expect(Date.now() - before).toBeLessThan(4_000)
      silent.closeAllConnections()
      silent.close()
      await Promise.all([absent, refusing, mute].map(each => each.close()))
    })

    test('a container left behind in "created" does not stand in the way', async () => {
      const spec = await testSpec(image)
      const name = `sdp-mcp-${installation}-alice-1`
      const labels = [`installation=${installation}`, `user-id=${spec.boot.user.id}`, 'username=alice', 'generation=1']
      await docker('create', '--name', name, ...labels.flatMap(label => ['--label', `com.sdp-mcp.${label}`]), image)
      expect(await runtime.list()).toMatchObject([{ running: false, exit: null, generation: 1 }])
      const started = await runtime.start(spec)
      await answering(started.address, started.userId, 1)
      expect(await runtime.list()).toHaveLength(1)
    })

    test('a container and a network of a removed user of the same name are replaced', async () => {
      const before = await startAnswering({ username: 'phoenix' })
      const after = await startAnswering({ username: 'phoenix' })
      expect((await runtime.list()).map(({ id }) => id)).toEqual([after.id])
      expect(after.userId).not.toBe(before.userId)
    })

    test('a foreign container that has our name is left alone, and told', async () => {
      const name = `sdp-mcp-${installation}-alice-1`
      await docker('create', '--name', name, image)
      try {
        await expect(runtime.start(await testSpec(image))).rejects.toMatchObject({
          kind: 'refused',
          message: expect.stringContaining(`docker rm -f ${name}`),
        })
        expect(await docker('inspect', '--format', '{{.Name}}', name)).toBe(`/${name}`)
        expect(await leftovers(installation)).toEqual([])
      } finally {
        await docker('rm', '-f', name)
      }
    })

    test('a stopped container is used again as long as its definition is the same, and made anew when not', async () => {
      const spec = await testSpec(image)
      const first = await runtime.start(spec)
      await runtime.stop(first.id, 0)
      const again = await runtime.start(spec)
      await answering(again.address, again.userId, 1)
      expect(again.id).toBe(first.id)
      await runtime.stop(first.id, 0)
      const larger = await runtime.start({ ...spec, limits: { ...spec.limits, memoryMb: 160 } })
      await answering(larger.address, larger.userId, 1)
      expect(larger.id).not.toBe(first.id)
      expect(await runtime.list()).toHaveLength(1)
    })

    test('a stopped container whose network somebody removed is made anew with its network', async () => {
      const spec = await testSpec(image)
      const first = await runtime.start(spec)
      await runtime.stop(first.id, 0)
      await docker('network', 'rm', `sdp-mcp-${installation}-${spec.boot.user.username}`)
      const again = await runtime.start(spec)
      await answering(again.address, again.userId, 1)
      expect(await runtime.list()).toHaveLength(1)
    })

    test('a pool without a free subnet is told as such', async () => {
      const tiny = open({ networkPool: '10.214.0.0/29' })
      await startAnswering({ username: 'first' }, tiny)
      const failure = await tiny.start(await testSpec(image, { username: 'second' })).catch(error => error)
      expect(failure).toMatchObject({
        kind: 'network-exhausted',
        message: expect.stringContaining('SDP_INSTANCE_NETWORK_POOL'),
      })
      expect(await leftovers(installation)).toHaveLength(2)
      await tiny.close()
    })

    test('users whose subnets would begin at the same place get different ones', async () => {
      const small = open({ networkPool: '10.214.0.0/27' })
      const names = ['a1', 'b1', 'c1', 'd1']
      const started = await Promise.all(names.map(username => startAnswering({ username }, small)))
      expect(new Set(started.map(({ id }) => id)).size).toBe(4)
      await small.close()
    }, 30_000)

    test('an instance is reached by its own address on the engine’s host, and by its published port from elsewhere', async () => {
      const here = await startAnswering({ username: 'here' })
      const network = JSON.parse(await docker('inspect', '--format', '{{json .NetworkSettings.Networks}}', here.id))
      const [{ IPAddress, Gateway }] = Object.values(network) as [{ IPAddress: string; Gateway: string }]
      const { port } = new URL(here.address)
      const published = `http://127.0.0.1:${port}`
      // the engine of the tests may itself run in a virtual machine
      const isNative = createOwnAddresses().has(Gateway)
      expect(here.address).toBe(isNative ? `http://${IPAddress}:${port}` : published)
      // as with an engine in a virtual machine, whose networks are not ours
      const elsewhere = open({ isOwnAddress: () => false })
      expect((await elsewhere.list(here.userId))[0]).toMatchObject({ id: here.id, address: published })
      expect((await elsewhere.list()).map(({ address }) => address)).toEqual([published])
      await answering(published, here.userId, here.generation)
      await elsewhere.close()
    })

    test('with reach "network" nothing is published and the control plane’s container and peers join the user’s network', async () => {
      const label = `com.sdp-mcp.installation=${installation}`
      const bystander = (name: string) =>
        docker(
          'run',
          '-d',
          '--name',
          name,
          '--label',
          `test-of=${installation}`,
          image,
          'node',
          '-e',
          'setInterval(() => {}, 9e9)',
        )
      const [plane, database] = [`${installation}-plane`, `${installation}-database`]
      await Promise.all([plane, database].map(bystander))
      try {
        const networked = open({ reach: 'network', controlPlaneContainer: plane, networkPeers: [database] })
        const userId = randomUUID()
        const started = await networked.start(await testSpec(image, { userId, port: 42000 }))
        expect(started.address).toMatch(/^http:\/\/10\.213\.\d+\.\d+:42000$/)
        expect(await docker('inspect', '--format', '{{len .HostConfig.PortBindings}}', started.id)).toBe('0')
        // from inside the control plane's container the address answers
        const ask = (path: string) =>
          docker(
            'exec',
            plane,
            'node',
            '-e',
            `fetch('${started.address}${path}').then(r => r.text()).then(console.log)`,
          )
        await eventually('answers inside', async () => (await ask('/healthz')).includes(`instance:${userId}:1`))
        const databaseIp = await docker(
          'inspect',
          '--format',
          `{{(index .NetworkSettings.Networks "sdp-mcp-${installation}-alice").IPAddress}}`,
          database,
        )
        expect(databaseIp).toMatch(/^10\.213\./)
        // a replaced database container joins again when the fleet tidies
        await docker('network', 'disconnect', `sdp-mcp-${installation}-alice`, database)
        await networked.tidy()
        expect(await docker('network', 'inspect', `sdp-mcp-${installation}-alice`)).toContain(database)
        expect((await networked.list(userId))[0]).toMatchObject({ address: started.address })
        await networked.remove(started.id)
        expect(await docker('network', 'ls', '-q', '--filter', `label=${label}`)).toBe('')
        await networked.close()
      } finally {
        await docker('rm', '-f', plane, database)
      }
    }, 30_000)

    test('with restricted egress the user’s network leads nowhere, not even to the host, and one of another setting is made anew', async () => {
      const [plane, outside] = [`${installation}-plane`, `${installation}-outside`]
      const idle = ['node', '-e', 'require("node:http").createServer((q, r) => r.end("hello")).listen(8080)']
      for (const name of [plane, outside])
        await docker('run', '-d', '--name', name, '--label', `test-of=${installation}`, image, ...idle)
      try {
        const peers = { reach: 'network', controlPlaneContainer: plane } as const
        expect(() => open({ egress: 'restricted' })).toThrow('reach "network"')
        const userId = randomUUID()
        const network = `sdp-mcp-${installation}-alice`
        const isInternal = () => docker('network', 'inspect', '--format', '{{.Internal}}', network)
        const ipOf = (name: string, on: string) =>
          docker('inspect', '--format', `{{(index .NetworkSettings.Networks "${on}").IPAddress}}`, name)
        const reached = async (from: string, hosts: string[]) =>
          JSON.parse(
            await docker(
              ...['exec', from, 'node', '-e'],
              `Promise.all(${JSON.stringify(hosts)}.map(host => new Promise(done => {
                 const socket = require('node:net').connect({ host, port: 8080, timeout: 2000 }, () => { done('open'); socket.destroy() })
                 socket.on('error', () => done('closed')).on('timeout', () => { done('closed'); socket.destroy() })
               }))).then(all => console.log(JSON.stringify(all)))`,
            ),
          )
        const free = open(peers)
        const before = await free.start(await testSpec(image, { userId, port: 42000 }))
        expect(await isInternal()).toBe('false')
        await free.stop(before.id, 1)
        await free.close()

        const restricted = open({ ...peers, egress: 'restricted' })
        const started = await restricted.start(await testSpec(image, { userId, port: 42000, generation: 2 }))
        expect(await isInternal()).toBe('true')
        const [near, far] = [await ipOf(plane, network), await ipOf(outside, 'bridge')]
        const gateway = near.replace(/\d+$/, last => String((Number(last) & ~7) + 1))
        const hostAddress = await docker(
          'network',
          'inspect',
          '--format',
          '{{(index .IPAM.Config 0).Gateway}}',
          'bridge',
        )
        expect(await reached(started.id, [near, far, gateway, hostAddress])).toEqual([
          'open',
          'closed',
          'closed',
          'closed',
        ])
        // the one that is not restricted does reach it
        expect(await reached(plane, [far])).toEqual(['open'])
        for (const id of [before.id, started.id]) await restricted.remove(id)
        await restricted.close()
      } finally {
        await docker('rm', '-f', plane, outside)
      }
    }, 60_000)

    test('a lost event stream is opened again, and says that something may have been missed', async () => {
      // an engine that hangs up on whoever follows its events
      let opened = 0
      const flaky = createServer((_, response) => {
        opened++
        response.writeHead(200).end()
      }).listen(await freePort(), '127.0.0.1')
      await new Promise(done => flaky.once('listening', done))
      const watching = open({ engine: `tcp://127.0.0.1:${(flaky.address() as { port: number }).port}` })
      const told: (string | null)[] = []
      const abort = new AbortController()
      watching.watch(userId => told.push(userId), abort.signal)
      await eventually('opened again', () => opened >= 2)
      await eventually('told to look', () => told.includes(null))
      abort.abort()
      await watching.close()
      flaky.close()
    })
  })
})
